"""What a scrape asks of the node: values as they are now, in one consistent look.

Rules: the node builds a `NodeState` when asked, on the loop; nothing here is kept up to date between scrapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvserver.metrics.instruments import LatencyHistogram
from kvserver.types import Index, NodeId, Revision

__all__ = ["CallCountSource", "CallsSource", "GateSource", "LogWindowState", "NodeSource", "NodeState", "PeerState"]

_FIRST: Final = Index(1)
_NONE: Final = Index(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """One other member: what the leader knows of it (elsewhere the lags and what it holds are 0 and `state` is empty) and what its
    connection carried.

    `held_entries` and `held_bytes`: what of the log window is kept for it. `contact_age_s` and `round_trips` are None while unknown;
    `round_trips` is the live histogram of the connection.
    """

    id: NodeId
    state: str = ""
    lag_entries: int = 0
    lag_bytes: int = 0
    held_entries: int = 0
    held_bytes: int = 0
    contact_age_s: float | None = None
    round_trips: LatencyHistogram | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_failures: int = 0
    queued_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWindowState:
    """The raft log in memory, from `memory_first_index` through `memory_last_index`, and on disk, from `wal_first_index`; other members can
    be given what is at or above `log_first_index`."""

    entries: int = 0
    bytes: int = 0
    memory_first_index: Index = _FIRST
    memory_last_index: Index = _NONE
    log_first_index: Index = _FIRST
    wal_first_index: Index = _FIRST
    wal_entries: int = 0
    wal_bytes: int = 0
    max_entries: int = 0
    max_bytes: int = 0
    pins_active: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceState:
    """Where disk space is wanting: the store's commits, the WAL's segment in reserve, a write of the WAL itself."""

    store_full: bool = False
    spare_missing: bool = False
    append_held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """This member, now. Sizes in bytes; `proposals_pending` and `proposals_pending_bytes` count unanswered writes;
    `keys` is None where counting them would cost something; `accounted_bytes` are bytes of memory by owner."""

    member_id: NodeId
    has_leader: bool
    is_leader: bool
    is_learner: bool
    committed_index: Index
    applied_index: Index
    revision: Revision
    compact_revision: Revision
    proposals_pending: int = 0
    proposals_pending_bytes: int = 0
    quota_backend_bytes: int = 0
    db_bytes: int = 0
    db_in_use_bytes: int = 0
    keys: int | None = None
    space: SpaceState = SpaceState()
    log_window: LogWindowState = LogWindowState()
    peers: tuple[PeerState, ...] = ()
    accounted_bytes: Mapping[str, int] = field(default_factory=dict)


class GateSource(Protocol):
    """A gate that bytes pass: its bound, what is behind it, who waits now, and counts since the start."""

    @property
    def max_bytes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...
    @property
    def waited(self) -> int: ...
    @property
    def refused(self) -> int: ...


class CallCountSource(Protocol):
    """Calls of one kind: how many are open, how many may be, and how many were refused since the start."""

    @property
    def open(self) -> int: ...
    @property
    def max_open(self) -> int: ...
    @property
    def refused(self) -> int: ...


class CallsSource(Protocol):
    """Unary calls and streams."""

    @property
    def unary(self) -> CallCountSource: ...
    @property
    def streams(self) -> CallCountSource: ...


class NodeSource(Protocol):
    """Where the state comes from."""

    def node_state(self) -> NodeState:
        """The state now; called on the loop, must not block."""
