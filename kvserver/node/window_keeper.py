"""When the log window is compacted on this member: the rule of `compaction`, fed with what raft and the shell know.

Purpose: one place joins raft's progress, the contact clocks and pins, and the window's limits into `decide`. The driver asks after its
turns, and so does the simulator's member: what is proven there is what runs.

Rules: it decides and expires pins; the caller compacts. `explain` tells the same without changing anything. One owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvserver.node.compaction import Decision, Explanation, Hold, Role, Situation, WindowLimits, decide, explain, is_within_slack
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from raft.raw_node import RawNode
from raft.types import Index, NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """Why the window is as long as it is; `holds` are the peers' on a leader, nothing elsewhere."""

    explanation: Explanation
    holds: dict[NodeId, Hold]


class WindowKeeper:
    """Decides about one log window. `log_first` answers what can be had at all, from memory or from the WAL (None: only memory serves)."""

    def __init__(
        self, window: LogWindow, peers: PeerBook, limits: WindowLimits, log_first: Callable[[], Index | None] = lambda: None
    ) -> None:
        self._window = window
        self._peers = peers
        self._limits = limits
        self._log_first = log_first

    def is_idle(self, safe_index: Index) -> bool:
        """`decide` would find nothing to do, whatever the peers claim; no pin may have to end either."""
        return is_within_slack(self._window, safe_index, self._limits) and not self._peers.pins

    def decide(self, raw: RawNode, *, safe_index: Index, now_s: float, role_since_s: float, leader_floor: Index | None) -> Decision | None:
        """Where to compact now, if anywhere.

        Args:
            safe_index: what is applied, durable in the store, and known to raft as applied.
            role_since_s: since when this member leads or follows.
            leader_floor: last heard from the current leader, on followers.
        """
        window, peers, limits = self._window, self._peers, self._limits
        if self.is_idle(safe_index):
            return None
        is_leader = raw.is_leader
        if is_leader:
            peers.expire(now_s, doubled_cap=window.cap_index(2 * limits.max_entries, 2 * limits.max_bytes), progress=raw.progress())
        situation = self._situation(is_leader, safe_index, now_s, role_since_s, leader_floor)
        claims = peers.claims(raw.progress(), raw.id) if is_leader else ()
        return decide(window, claims, situation, limits)

    def explain(self, raw: RawNode, *, safe_index: Index, now_s: float, role_since_s: float, leader_floor: Index | None) -> WindowReport:
        """What `decide`, asked the same, would weigh; pins that are due stay until it is asked."""
        claims = self._peers.claims(raw.progress(), raw.id) if raw.is_leader else ()
        situation = self._situation(raw.is_leader, safe_index, now_s, role_since_s, leader_floor)
        explanation = explain(self._window, claims, situation, self._limits)
        ids = [peer for peer, _, _ in raw.progress() if peer != raw.id] if raw.is_leader else []
        return WindowReport(explanation=explanation, holds=dict(zip(ids, explanation.holds, strict=True)))

    def _situation(self, is_leader: bool, safe_index: Index, now_s: float, role_since_s: float, leader_floor: Index | None) -> Situation:
        return Situation(
            role=Role.LEADER if is_leader else Role.FOLLOWER,
            safe_index=safe_index,
            now_s=now_s,
            role_since_s=role_since_s,
            leader_floor=leader_floor,
            log_first=self._log_first(),
        )
