"""What the core hands out: Ready, the unit of work for whoever drives it, and the values in it.

Contract of Ready (synchronous mode), field by field:
- `snapshot`, `entries` and `hard_state` must be on disk (fsynced if `must_sync`) before any message of a type for which
  `raft.messages.must_be_durable_first` is true leaves, and before `advance` is called. Other messages may leave at once.
- `snapshot`, if any, replaces the log and the state machine, before anything else of this Ready is written.
- `committed_entries` are to be applied in order, after the snapshot; they may include entries of this same Ready.
- `messages` are in sending order: first those that may leave at once, then those that must wait.
- `soft_state` and `read_states` are for information: who leads, and which reads may be served once their index is applied.
With asynchronous storage writes, `messages` also holds MsgStorageAppend and MsgStorageApply, which carry the same work to the two threads;
the fields are then for information only, and `advance` is not called.

Source: etcd-io/raft doc.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from raft.messages import Message
from raft.types import NO_NODE, Entry, HardState, Index, NodeId, Snapshot


class StateType(Enum):
    """A member's role."""

    FOLLOWER = "StateFollower"
    CANDIDATE = "StateCandidate"
    LEADER = "StateLeader"
    PRE_CANDIDATE = "StatePreCandidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftState:
    """Who leads (0: nobody known) and in which role this member is; never stored."""

    lead: NodeId = NO_NODE
    state: StateType = StateType.FOLLOWER


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadState:
    """A read with `context` is linearizable once `index` is applied."""

    index: Index
    context: bytes


@dataclass(slots=True, kw_only=True)
class Ready:
    """One unit of work; see the module's contract. Its lists belong to the receiver; what is in them is shared and must not be changed."""

    soft_state: SoftState | None = None
    hard_state: HardState | None = None
    read_states: list[ReadState] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    snapshot: Snapshot | None = None
    committed_entries: list[Entry] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    must_sync: bool = False
