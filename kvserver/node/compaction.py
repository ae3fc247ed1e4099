"""When the in-memory log is compacted, and to where: a pure function of what is known.

Purpose: the rule of docs/memory.md. Entries are kept for members that are behind, by at most the caps, and for nobody else:
a single node and a cluster whose members are up to date keep only the slack.

Rules: no clock (the caller passes `now_s`, monotonic seconds), no IO, no state; `decide` looks and answers, the driver acts. `explain`
says who holds the window and by how much, from the very same weighing: what an operator is shown is what is done.

Invariants (property-tested): the target never passes `safe_index`; an active peer within the caps keeps what it needs; a peer that
needs less than the floor has no claim; a dead peer never holds more than half a cap, a live one never more than the cap.

Source: log-memory.md; contrast etcd's fixed `--snapshot-catchup-entries`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

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
    """Everything else that the decision depends on.

    `leader_floor`: the floor last heard from the current leader (followers only). `log_first`: the lowest entry that can be had at all,
    from memory or from the WAL; None if only memory serves.
    """

    role: Role
    safe_index: Index
    now_s: float
    role_since_s: float
    leader_floor: Index | None = None
    log_first: Index | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Drop everything through `index`, for this reason."""

    index: Index
    reason: Reason


class ClaimKind(Enum):
    """Why entries are kept for a peer; the last three: why none are."""

    SNAPSHOT = "snapshot"
    """A snapshot is on its way to it, or has just arrived: what comes after its position."""
    ACTIVE = "active"
    """It was heard from within the grace period."""
    JOINING = "joining"
    """As `ACTIVE`, and nothing is known to match: the whole window."""
    DOWN = "down"
    """A silent voter within its budget of time and of half the caps."""
    DISK = "disk"
    """It needs what memory has dropped and the WAL still has: it is fed from there."""
    BEYOND = "beyond"
    """It needs what is gone: a snapshot has to help it."""
    SILENT = "silent"
    """It is silent, and no voter, or for too long, or needs more than half a cap."""


class Claim(NamedTuple):
    """What the rule grants one peer: every entry above `need`, None for nothing; by `ends_s` it ends, or turns into another, if nothing is
    heard of the peer.
    """

    kind: ClaimKind
    need: Index | None
    ends_s: float = math.inf


class Share(NamedTuple):
    """A part of the window."""

    entries: int
    bytes: int


class Hold(NamedTuple):
    """What a claim holds of the window: entries that are safe to drop, and within the caps, but for this peer."""

    claim: Claim
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `decide` weighs. The caps reach down to `cap_index`; the window may be dropped through `target_index`.

    The window is the sum of three parts: `slack` could go but isn't worth it yet, `held` waits for somebody, `unsafe` is not applied and
    durable here. `holds` has one for each peer, in the order in which they were given; a follower grants nothing and has none.
    """

    safe_index: Index
    cap_index: Index
    target_index: Index
    reason: Reason
    slack: Share
    held: Share
    unsafe: Share
    holds: tuple[Hold, ...]


class _Weighed(NamedTuple):
    """The outcome of weighing; `target` is not above `safe_index`, and may lie below the window."""

    target: Index
    cap: Index
    reason: Reason
    claims: list[Claim]


def is_within_slack(window: Window, safe_index: Index, limits: WindowLimits) -> bool:
    """`decide` would find nothing worth dropping, whatever the peers claim. Cheap: asked after every turn."""
    droppable = safe_index - window.first_index() + 1
    if droppable <= 0:
        return True
    size_bytes = window.size_bytes
    if droppable >= SLACK_ENTRIES or window.entry_count > limits.max_entries or size_bytes > limits.max_bytes:
        return False
    return size_bytes < SLACK_BYTES or size_bytes - window.bytes_after(safe_index) < SLACK_BYTES


def decide(window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> Decision | None:
    """Where to compact now, or None when what could go is below the slack."""
    target, cap, reason, _ = _weigh(window, peers, situation, limits)
    floor = window.first_index() - 1
    if target <= floor:
        return None
    over_cap = cap > floor
    droppable_bytes = window.bytes_after(Index(floor)) - window.bytes_after(target)
    if over_cap or target - floor >= SLACK_ENTRIES or droppable_bytes >= SLACK_BYTES:
        return Decision(index=target, reason=reason)
    return None


def explain(window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> Explanation:
    """Who holds the window, why, and by how much: what `decide` weighs, without acting on it and without the slack."""
    target, cap, reason, claims = _weigh(window, peers, situation, limits)
    floor, last = Index(window.first_index() - 1), window.last_index()
    safe = min(last, max(floor, situation.safe_index))
    dropped = min(safe, max(floor, target))
    lowest = max(floor, cap)
    return Explanation(
        safe_index=situation.safe_index,
        cap_index=cap,
        target_index=target,
        reason=reason,
        slack=_share(window, floor, dropped),
        held=_share(window, dropped, safe),
        unsafe=_share(window, safe, last),
        holds=tuple(Hold(claim, _share(window, safe if claim.need is None else max(claim.need, lowest), safe)) for claim in claims),
    )


def _share(window: Window, after: Index, through: Index) -> Share:
    """What stands in `(after, through]`."""
    if after >= through:
        return Share(0, 0)
    return Share(through - after, window.bytes_after(after) - window.bytes_after(through))


def _weigh(window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits) -> _Weighed:
    """Claims against caps: through where the window may be dropped, and why there."""
    cap = window.cap_index(limits.max_entries, limits.max_bytes)
    claims: list[Claim] = []
    if situation.role is Role.FOLLOWER:
        held = situation.leader_floor
        want, reason = (cap, Reason.CAP) if held is None else (held, Reason.FOLLOWER)
    else:
        want, reason, pinned = _leader_want(window, peers, situation, limits, claims)
        if pinned:
            cap = window.cap_index(2 * limits.max_entries, 2 * limits.max_bytes)
    if cap > want:
        want, reason = cap, Reason.CAP
    return _Weighed(min(situation.safe_index, want), cap, reason, claims)


def _leader_want(
    window: Window, peers: Iterable[PeerClaim], situation: Situation, limits: WindowLimits, claims: list[Claim]
) -> tuple[Index, Reason, bool]:
    """The highest index that no entitled peer still needs, and whether a snapshot in flight holds a pin; adds each grant to `claims`."""
    want = int(situation.safe_index)
    alone, pinned = True, False
    for peer in peers:
        alone = False
        pinned = pinned or peer.pin is not None
        claim = _claim(window, peer, situation, limits)
        claims.append(claim)
        if claim.need is not None and claim.need < want:
            want = claim.need
    return Index(want), Reason.SINGLE if alone else Reason.PROGRESS, pinned


def _claim(window: Window, peer: PeerClaim, situation: Situation, limits: WindowLimits) -> Claim:
    """What this peer is granted."""
    if peer.pin is not None:
        return Claim(ClaimKind.SNAPSHOT, peer.pin)
    floor = window.first_index() - 1
    # A new leader has heard from nobody: for one grace period it treats everyone as present.
    heard_s = max(peer.last_contact_s, situation.role_since_s)
    silent_s = situation.now_s - heard_s
    active = silent_s <= limits.grace_s
    if peer.match_index == 0:
        return Claim(ClaimKind.JOINING, Index(floor), heard_s + limits.grace_s) if active else Claim(ClaimKind.SILENT, None)
    need = peer.match_index
    if need < floor:  # entries in memory can't help it any more
        is_on_disk = situation.log_first is not None and need >= situation.log_first - 1
        return Claim(ClaimKind.DISK if is_on_disk else ClaimKind.BEYOND, None)
    if active:
        return Claim(ClaimKind.ACTIVE, need, heard_s + limits.grace_s)
    affordable = window.last_index() - need <= limits.max_entries // 2 and window.bytes_after(need) <= limits.max_bytes // 2
    if peer.is_voter and silent_s <= DOWN_MEMBER_BUDGET_S and affordable:
        return Claim(ClaimKind.DOWN, need, heard_s + DOWN_MEMBER_BUDGET_S)
    return Claim(ClaimKind.SILENT, None)
