"""When the in-memory log is compacted, and to where: a pure function of what is known.

Purpose: the rule of docs/memory.md. Entries are kept for members that are behind, by at most the caps, and for nobody else:
a single node and a cluster whose members are up to date keep only the slack.

Rules: no clock (the caller passes `now_s`, monotonic seconds), no IO, no state; `decide` looks and answers, the driver acts.

Invariants (property-tested): the target never passes `safe_index`; an active peer within the caps keeps what it needs; a peer that
needs less than the floor has no claim; a dead peer never holds more than half a cap, a live one never more than the cap.

Source: log-memory.md; contrast etcd's fixed `--snapshot-catchup-entries`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from raft.types import Index

DOWN_MEMBER_BUDGET_S: Final = 600.0
"""How long a silent voter may hold its (half) share of the window."""

SLACK_ENTRIES: Final = 100
SLACK_BYTES: Final = 64 * 1024


class Reason(Enum):
    """Why a compaction happened; the label of its metric."""

    PROGRESS = "progress"
    CAP = "cap"
    SINGLE = "single"
    FOLLOWER = "follower"


class Role(Enum):
    """The part of a member that the decision depends on."""

    LEADER = "leader"
    FOLLOWER = "follower"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLimits:
    """The operator's limits: entries, bytes, and how long a silent peer still counts as active."""

    max_entries: int = 100_000
    max_bytes: int = 64 * 1024 * 1024
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        if self.max_entries < 0 or self.max_bytes < 0 or self.grace_s < 0:
            raise ValueError("log window limits must not be negative")


class Window(Protocol):
    """What the decision reads of the log window."""

    @property
    def entry_count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def first_index(self) -> Index: ...
    def last_index(self) -> Index: ...
    def bytes_after(self, index: Index) -> int: ...
    def cap_index(self, max_entries: int, max_bytes: int) -> Index: ...


@dataclass(slots=True, kw_only=True)
class PeerClaim:
    """What the leader knows of one peer; `last_contact_s` is the shell's own clock, never the core's activity flag.

    `pin` is the index of the read view that its snapshot in flight was made from.
    """

    match_index: Index
    is_voter: bool
    last_contact_s: float
    pin: Index | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything else that the decision depends on. `leader_floor`: the floor last heard from the current leader (followers only)."""

    role: Role
    safe_index: Index
    now_s: float
    role_since_s: float
    leader_floor: Index | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Drop everything through `index`, for this reason."""

    index: Index
    reason: Reason


def is_within_slack(window: Window, safe_index: Index, limits: WindowLimits) -> bool:
    """`decide` would find nothing worth dropping, whatever the peers claim. Cheap: asked after every turn."""
    droppable = safe_index - window.first_index() + 1
    if droppable <= 0:
        return True
    count, size_bytes = window.entry_count, window.size_bytes
    return droppable < SLACK_ENTRIES and size_bytes < SLACK_BYTES and count <= limits.max_entries and size_bytes <= limits.max_bytes


def decide(window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> Decision | None:
    """Where to compact now, or None when what could go is below the slack."""
    cap = window.cap_index(limits.max_entries, limits.max_bytes)
    if situation.role is Role.FOLLOWER:
        held = situation.leader_floor
        want, reason = (cap, Reason.CAP) if held is None else (held, Reason.FOLLOWER)
    else:
        want, reason, pinned = _leader_want(window, peers, situation, limits)
        if pinned:
            cap = window.cap_index(2 * limits.max_entries, 2 * limits.max_bytes)
    if cap > want:
        want, reason = cap, Reason.CAP
    target = min(situation.safe_index, want)
    floor = window.first_index() - 1
    if target <= floor:
        return None
    over_cap = cap > floor
    droppable_bytes = window.bytes_after(Index(floor)) - window.bytes_after(Index(target))
    if over_cap or target - floor >= SLACK_ENTRIES or droppable_bytes >= SLACK_BYTES:
        return Decision(index=Index(target), reason=reason)
    return None


def _leader_want(window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> tuple[Index, Reason, bool]:
    """The highest index that no entitled peer still needs, and whether a snapshot in flight holds a pin."""
    want = int(situation.safe_index)
    alone, pinned = True, False
    for peer in peers:
        alone = False
        pinned = pinned or peer.pin is not None
        need = _claim(window, peer, situation, limits)
        if need is not None and need < want:
            want = need
    return Index(want), Reason.SINGLE if alone else Reason.PROGRESS, pinned


def _claim(window: Window, peer: PeerClaim, situation: Situation, limits: WindowLimits) -> Index | None:
    """The index through which this peer needs nothing; None when it has no claim."""
    if peer.pin is not None:
        return peer.pin
    floor = window.first_index() - 1
    # A new leader has heard from nobody: for one grace period it treats everyone as present.
    silent_s = situation.now_s - max(peer.last_contact_s, situation.role_since_s)
    active = silent_s <= limits.grace_s
    if peer.match_index == 0:
        return Index(floor) if active else None
    need = peer.match_index
    if need < floor:
        return None  # entries can't help it any more
    if active:
        return need
    affordable = window.last_index() - need <= limits.max_entries // 2 and window.bytes_after(need) <= limits.max_bytes // 2
    return need if peer.is_voter and silent_s <= DOWN_MEMBER_BUDGET_S and affordable else None
