"""What the leader knows of one member's log, and how fast it may send to it.

    state       the leader sends                                  leaves it by
    PROBE       one MsgApp, then waits (heartbeats let one more)  an accepting response -> REPLICATE; entries gone -> SNAPSHOT
    REPLICATE   optimistically, within the inflights window       rejection or unreachable -> PROBE; entries gone -> SNAPSHOT
    SNAPSHOT    nothing                                           a response that reaches the log -> REPLICATE; report -> PROBE

Rules: `match_index` is known to be replicated, `next_index` is what is sent next; `sent_commit` is the highest commit index told to the
member, so that commit-only messages are not repeated.

Invariants: match_index < next_index; `pending_snapshot` is 0 except in SNAPSHOT; inflights are empty except in REPLICATE.

Source: Ongaro's thesis, 3.5 and 10.2.1; etcd-io/raft design.md.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from raft.inflights import Inflights
from raft.types import Index


class ProgressState(Enum):
    """How the leader replicates to a member."""

    PROBE = "StateProbe"
    REPLICATE = "StateReplicate"
    SNAPSHOT = "StateSnapshot"


PROBE: Final = ProgressState.PROBE
REPLICATE: Final = ProgressState.REPLICATE
SNAPSHOT: Final = ProgressState.SNAPSHOT
"""The states by names of their own: looking up a member of an enum is slow, and they are compared for every message."""


class Progress:
    """One member as its leader sees it. Mutable; owned by the tracker."""

    __slots__ = (
        "inflights",
        "is_flow_paused",
        "is_learner",
        "is_recently_active",
        "match_index",
        "next_index",
        "pending_snapshot",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        *,
        next_index: Index,
        inflights: Inflights,
        match_index: Index = Index(0),
        is_learner: bool = False,
        is_recently_active: bool = False,
    ) -> None:
        self.match_index = match_index
        self.next_index = next_index
        self.state = PROBE
        self.inflights = inflights
        self.is_learner = is_learner
        self.is_recently_active = is_recently_active
        self.is_flow_paused = False
        self.pending_snapshot = Index(0)
        self.sent_commit = Index(0)

    def copy(self) -> Progress:
        """An independent copy."""
        copied = Progress(
            next_index=self.next_index,
            inflights=self.inflights.copy(),
            match_index=self.match_index,
            is_learner=self.is_learner,
            is_recently_active=self.is_recently_active,
        )
        copied.state = self.state
        copied.is_flow_paused = self.is_flow_paused
        copied.pending_snapshot = self.pending_snapshot
        copied.sent_commit = self.sent_commit
        return copied

    @property
    def is_paused(self) -> bool:
        """Nothing may be sent now."""
        return self.is_flow_paused or self.state is SNAPSHOT

    def _enter(self, state: ProgressState) -> None:
        self.is_flow_paused = False
        self.pending_snapshot = Index(0)
        self.state = state
        self.inflights.reset()

    def become_probe(self) -> None:
        """Find out where the member's log ends: behind a snapshot under way, else behind what is known to match."""
        next_index = max(self.match_index, self.pending_snapshot) + 1
        self._enter(PROBE)
        self.next_index = Index(next_index)
        self._regress_sent_commit()

    def become_replicate(self) -> None:
        """Send as fast as the window allows, from behind what is known to match."""
        self._enter(REPLICATE)
        self.next_index = Index(self.match_index + 1)

    def become_snapshot(self, index: Index) -> None:
        """A snapshot that covers `index` is on its way."""
        self._enter(SNAPSHOT)
        self.pending_snapshot = index
        self.next_index = Index(index + 1)
        self.sent_commit = index

    def _regress_sent_commit(self) -> None:
        """What was told about positions that must be sent again may not have arrived."""
        self.sent_commit = Index(min(self.sent_commit, self.next_index - 1))

    def note_sent_entries(self, count: int, size_bytes: int) -> None:
        """A MsgApp with `count` entries of `size_bytes` payload was sent."""
        if self.state is REPLICATE:
            if count:
                self.next_index = Index(self.next_index + count)
                self.inflights.add(Index(self.next_index - 1), size_bytes)
            # A message that fills the window, or finds it full, is itself the probe: wait for a response or a heartbeat.
            self.is_flow_paused = self.inflights.is_full
        elif count:
            assert self.state is PROBE, "nothing is sent to a member that awaits a snapshot"
            self.is_flow_paused = True

    def note_sent_commit(self, commit: Index) -> None:
        """A message carried `commit`."""
        self.sent_commit = commit

    def can_bump_commit(self, commit: Index) -> bool:
        """A commit-only message with `commit` would tell the member something it was not told yet and can use."""
        return commit > self.sent_commit and self.sent_commit < self.next_index - 1

    def maybe_update(self, index: Index) -> bool:
        """Take an acknowledgement of `index`; False if it is old news."""
        if index <= self.match_index:
            return False
        self.match_index = index
        self.next_index = Index(max(self.next_index, index + 1))
        self.is_flow_paused = False
        return True

    def maybe_decrease(self, rejected: Index, match_hint: Index) -> bool:
        """Step back after the member rejected the position `rejected` and hinted at `match_hint`; False if the rejection is stale."""
        if self.state is REPLICATE:
            if rejected <= self.match_index:
                return False
            self.next_index = Index(self.match_index + 1)
            self._regress_sent_commit()
            return True
        # Outside REPLICATE exactly one position is probed at a time; any other rejection is late.
        if self.next_index - 1 != rejected:
            return False
        self.next_index = Index(max(min(rejected, match_hint + 1), self.match_index + 1))
        self._regress_sent_commit()
        self.is_flow_paused = False
        return True

    def __str__(self) -> str:
        parts = [f"{self.state.value} match={self.match_index} next={self.next_index}"]
        if self.is_learner:
            parts.append("learner")
        if self.is_paused:
            parts.append("paused")
        if self.pending_snapshot:
            parts.append(f"pendingSnap={self.pending_snapshot}")
        if not self.is_recently_active:
            parts.append("inactive")
        if self.inflights:
            parts.append(f"inflight={len(self.inflights)}{'[full]' if self.inflights.is_full else ''}")
        return " ".join(parts)
