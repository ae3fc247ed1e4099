"""The values that raft, the WAL and the rest of kvserver exchange.

Purpose: one vocabulary for indexes, terms, entries, hard state and configuration, imported by every package and importing none.

Rules: values only, no behaviour beyond sizes; no IO, no clock. `Index` and `Term` start at 1; 0 means "none yet". `NodeId` is an unsigned
64-bit integer; 0 means "nobody".

Source: Ongaro's thesis, 3.5 (log structure) and 4.3 (joint configurations); etcd-io/raft's raftpb for the vocabulary and the encoded sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NewType

Index = NewType("Index", int)
Term = NewType("Term", int)
NodeId = NewType("NodeId", int)

NO_NODE: Final = NodeId(0)


class EntryType(IntEnum):
    """What an entry's data is: a command for the state machine, or a configuration change (version 1 or 2)."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


@dataclass(slots=True, kw_only=True)
class Entry:
    """One log entry. Treated as immutable once built.

    Not frozen: entries are built on the hot path and a frozen dataclass costs three times as much to construct.
    """

    term: Term
    index: Index
    type: EntryType = EntryType.NORMAL
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardState:
    """What a member must have on disk before it answers: its term, its vote in that term, and (as a hint) its commit index."""

    term: Term = Term(0)
    vote: NodeId = NO_NODE
    commit: Index = Index(0)


EMPTY_HARD_STATE: Final = HardState()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfState:
    """A cluster configuration as it is stored: ids in ascending order; `voters_outgoing` is non-empty exactly while joint."""

    voters: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    auto_leave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMetadata:
    """The position (`index`, `term`) that a snapshot covers, inclusive, and the configuration in force there."""

    index: Index = Index(0)
    term: Term = Term(0)
    conf_state: ConfState = ConfState()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot as the core sees it: its metadata, and opaque data that stays small (the state itself travels on a stream of its own)."""

    metadata: SnapshotMetadata = SnapshotMetadata()
    data: bytes = b""
