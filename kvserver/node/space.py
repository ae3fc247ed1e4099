"""What a member short of disk space does: pure decisions.

Purpose: the facts (what the store and the WAL met on their disks) as one value, the events that change it, and what follows from it.
`space_watch` feeds it and acts.

Theory of operation
- Three things can be wanting. *The store's disk is full*: a batch waits to be committed, and entries pile up behind it in the write buffer.
  *The spare is missing*: the WAL's next cut has no segment in reserve; what is left is the current one. *An append is held*: the WAL
  had to begin a segment and could not; nothing is acknowledged.
- With any of them this member is short: it takes nothing that needs space for good, and a leader looks for a member that is not short.
  Deletions, compactions, alarms and membership changes go on: they are small, and some of them give space back.
- Nothing at all is taken while nothing could be acknowledged: an append is held, or the write buffer is full as well.
- Reads are never refused here.
- How much has to be free before all is taken again: `SETTLED_BYTES` behind the store's waiting batch, and a segment for the WAL's reserve
  (two while an append is held: it takes one itself). Where store and WAL share a disk, both together (`shortages`).

Rules: the state changes by `advance` only, which is total: an event that says what is known already changes nothing.

Invariants: `refusal(...)` is NOTHING exactly when the member is not short.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import txn_cost_bytes
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import FatalError
from kvserver.pb.rpc_pb2 import TxnRequest
from raft.types import Entry, EntryType

SETTLED_BYTES: Final = 8 << 20
"""So much the store must be able to write before it counts as having space again: two batches. Without it a member on the edge would go to
and fro between taking writes and refusing them."""
HAND_OVER_PAUSE_S: Final = 5.0
"""Between two attempts to find a better leader."""


class SpaceEvent(Enum):
    """What the store and the WAL say of their disks."""

    STORE_FULL = "the store's disk is full"
    STORE_FREE = "the store has space"
    SPARE_LOST = "the WAL has no segment in reserve"
    SPARE_MADE = "the WAL has a segment in reserve"
    APPEND_HELD = "the WAL has no space"
    APPEND_SAVED = "the WAL has space"


class Refusal(IntEnum):
    """What a member does not take now, from the least to the most."""

    NOTHING = 0
    GROWTH = 1
    EVERYTHING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is wanting on this member."""

    store_full: bool = False
    spare_missing: bool = False
    append_held: bool = False

    @property
    def is_short(self) -> bool:
        """Anything is wanting."""
        return self.store_full or self.spare_missing or self.append_held


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """Where a member keeps its store and its WAL; `is_one`: on the same file system."""

    store: Path
    wal: Path
    is_one: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What is wanting on one disk, for people.

    `what` says it in the words of the metric; so many bytes have to be free where `directory` lies before writes are taken again.
    """

    what: tuple[str, ...]
    directory: Path
    needed_bytes: int


_CHANGES: Final[Mapping[SpaceEvent, Mapping[str, bool]]] = {
    SpaceEvent.STORE_FULL: {"store_full": True},
    SpaceEvent.STORE_FREE: {"store_full": False},
    SpaceEvent.SPARE_LOST: {"spare_missing": True},
    SpaceEvent.SPARE_MADE: {"spare_missing": False},
    SpaceEvent.APPEND_HELD: {"append_held": True, "spare_missing": True},  # a cut takes the spare first
    SpaceEvent.APPEND_SAVED: {"append_held": False},
}


def advance(space: Space, event: SpaceEvent) -> Space:
    """The state after the event."""
    return replace(space, **_CHANGES[event])


def refusal(space: Space, *, buffer_full: bool) -> Refusal:
    """What is refused; `buffer_full` says that the store's write buffer takes no further entry."""
    if not space.is_short:
        return Refusal.NOTHING
    if space.append_held or (space.store_full and buffer_full):
        return Refusal.EVERYTHING
    return Refusal.GROWTH


def shortages(space: Space, disks: Disks, *, store_needed_bytes: int, segment_bytes: int) -> tuple[Shortage, ...]:
    """What is wanting on each disk; nothing exactly when the member is not short.

    Args:
        store_needed_bytes: what the store needs, if it is short (`store_needs`).
        segment_bytes: the size of a WAL segment.
    """
    store = (Shortage(what=("store",), directory=disks.store, needed_bytes=store_needed_bytes),) if space.store_full else ()
    wanting = [name for name, is_wanting in (("wal", space.append_held), ("wal_spare", space.spare_missing)) if is_wanting]
    if not wanting:
        return store
    wal = Shortage(what=tuple(wanting), directory=disks.wal, needed_bytes=segment_bytes * len(wanting))
    if not (store and disks.is_one):
        return (*store, wal)
    both = replace(store[0], what=(*store[0].what, *wal.what), needed_bytes=store_needed_bytes + wal.needed_bytes)
    return (both,)


def store_needs(*, is_committed: bool, waiting_bytes: int, reusable_bytes: int) -> int:
    """Bytes that must be free on a full store's disk before it counts as having space: `SETTLED_BYTES`, and what waits to be committed.
    Once a commit has succeeded, free pages of the file count as well; before, nothing says that they help."""
    return max(0, SETTLED_BYTES - reusable_bytes) if is_committed else SETTLED_BYTES + waiting_bytes


def has_settled(*, free_bytes: int, reusable_bytes: int) -> bool:
    """Whether a store that has committed again may count as having space: on its disk, or in pages of its own file that are free."""
    return free_bytes + reusable_bytes >= SETTLED_BYTES


def should_hand_over(space: Space, *, is_leader: bool, now_s: float, last_try_s: float = -math.inf) -> bool:
    """Whether to look for a leader that has space."""
    return is_leader and space.is_short and now_s - last_try_s >= HAND_OVER_PAUSE_S


def grows(kind: CommandKind, request: PbMessage) -> bool:
    """Whether the command needs space for good: a put, a transaction with a put in any branch at any depth, a lease grant."""
    if kind in (CommandKind.PUT, CommandKind.LEASE_GRANT):
        return True
    return kind is CommandKind.TXN and isinstance(request, TxnRequest) and txn_cost_bytes(request) > 0


def is_refused(level: Refusal, kind: CommandKind, request: PbMessage) -> bool:
    """Whether a command is refused at that level."""
    return level is Refusal.EVERYTHING or (level is Refusal.GROWTH and grows(kind, request))


def refused_proposal(level: Refusal, data: bytes) -> ProposalId | None:
    """The id of an encoded command that is refused at that level; None if it isn't, or can't be read (raft and apply judge it then)."""
    if level is Refusal.NOTHING:
        return None
    try:
        command = commands.decode(data)
        if level is Refusal.GROWTH and command.kind is CommandKind.TXN:
            return command.id if txn_cost_bytes(TxnRequest.FromString(bytes(command.payload))) > 0 else None
    except (FatalError, DecodeError):
        return None
    return command.id if level is Refusal.EVERYTHING or command.kind in (CommandKind.PUT, CommandKind.LEASE_GRANT) else None


def split_forwarded(level: Refusal, entries: Iterable[Entry]) -> tuple[list[Entry], list[ProposalId]]:
    """Forwarded entries that are taken at that level, and the ids of the others. A membership change is always taken: it may be what
    brings a healthy member in."""
    taken: list[Entry] = []
    refused: list[ProposalId] = []
    for entry in entries:
        proposal = refused_proposal(level, entry.data) if entry.type is EntryType.NORMAL and entry.data else None
        if proposal is None:
            taken.append(entry)
        else:
            refused.append(proposal)
    return taken, refused
