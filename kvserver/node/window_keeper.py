"""When the log window is compacted on this member: the rule of `compaction`, fed with what raft and the shell know.

Purpose: one place joins raft's progress, the contact clocks and pins, and the window's limits into `decide`. The driver asks after its
turns, and so does the simulator's member: what is proven there is what runs.

Rules: it decides and expires pins; the caller compacts. One owner.
"""

from __future__ import annotations

from kvserver.node.compaction import Decision, Role, Situation, WindowLimits, decide, is_within_slack
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from raft.raw_node import RawNode
from raft.types import Index


class WindowKeeper:
    """Decides about one log window."""

    def __init__(self, window: LogWindow, peers: PeerBook, limits: WindowLimits) -> None:
        self._window = window
        self._peers = peers
        self._limits = limits

    def decide(self, raw: RawNode, *, safe_index: Index, now_s: float, role_since_s: float, leader_floor: Index | None) -> Decision | None:
        """Where to compact now, if anywhere.

        Args:
            safe_index: what is applied, durable in the store, and known to raft as applied.
            role_since_s: since when this member leads or follows.
            leader_floor: last heard from the current leader, on followers.
        """
        window, peers, limits = self._window, self._peers, self._limits
        if is_within_slack(window, safe_index, limits) and not peers.pins:
            return None
        is_leader = raw.is_leader
        if is_leader:
            over_cap = window.size_bytes > 2 * limits.max_bytes or window.entry_count > 2 * limits.max_entries
            peers.expire(now_s, over_cap=over_cap, progress=raw.progress())
        situation = Situation(
            role=Role.LEADER if is_leader else Role.FOLLOWER,
            safe_index=safe_index,
            now_s=now_s,
            role_since_s=role_since_s,
            leader_floor=leader_floor,
        )
        claims = peers.claims(raw.progress(), raw.id) if is_leader else ()
        return decide(window, claims, situation, limits)
