"""The page of /debug/raft: everything that decides how much memory a member holds, as JSON-able values.

Purpose: answers "who holds the log window, and by how much" with the figures that the compaction itself works with
(`compaction.explain`), beside raft's own state, the peers, and the accounted bytes by owner.

Rules
- Computed when asked, on the loop, without blocking or copying entries; it holds no keys and no values, only sizes and positions.
- Ids are hexadecimal text, as in logs and metrics. What isn't known is null: a follower knows no progress of others, a pin in flight has no
  end, and where there is no /proc there are no figures of the process. Sizes in bytes, times in seconds.
- Fields may be added; those that are here keep their names (docs/memory.md, "Seeing it").
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvserver.config import ServerConfig
from kvserver.metrics import Metrics, process_memory
from kvserver.node.accounting import accounted_bytes
from kvserver.node.assembly import window_limits
from kvserver.node.compaction import SLACK_BYTES, SLACK_ENTRIES, Hold, Share
from kvserver.node.node import Node
from kvserver.node.window_keeper import WindowReport
from kvserver.types import Index, NodeId
from kvserver.version import __version__
from raft.progress import Progress
from raft.types import NO_NODE

Page = dict[str, object]


class DebugPages:
    """Reads one node. Meets `api.DebugSource`."""

    def __init__(self, node: Node, config: ServerConfig, metrics: Metrics) -> None:
        self._node = node
        self._config = config
        self._metrics = metrics

    def raft_page(self) -> Mapping[str, object]:
        """The whole page."""
        node = self._node
        report = node.driver.explain_window()
        return {
            "version": __version__,
            "cluster_id": f"{node.cluster_id:x}",
            "member": self._reference(node.member_id),
            "raft": self._raft(),
            "window": self._window(report),
            "peers": self._peers(report),
            "compactions": dict(sorted(self._metrics.log_window_compactions.items())),
            "pins_expired": node.book.pins_expired,
            "accounted_bytes": accounted_bytes(node),
            "process": _process(),
        }

    def _reference(self, member: NodeId) -> Page:
        known = self._node.store.members.get(member)
        return {"id": f"{member:x}", "name": "" if known is None else known.name}

    def _raft(self) -> Page:
        driver, store = self._node.driver, self._node.store
        leader = driver.leader_id
        return {
            "role": driver.raw.state.name.lower(),
            "is_learner": self._node.member_id in store.conf_state.learners,
            "term": driver.term,
            "leader": None if leader == NO_NODE else self._reference(leader),
            "commit_index": driver.raw.commit_index,
            "applied_index": driver.applied_index,
            "durable_index": store.durable_index,
            "last_index": driver.raw.last_index,
        }

    # --- the log window ------------------------------------------------------------------------------------------------------------------

    def _window(self, report: WindowReport) -> Page:
        node, limits, why = self._node, window_limits(self._config), report.explanation
        window = node.window
        return {
            "first_index": window.first_index(),
            "last_index": window.last_index(),
            "entries": window.entry_count,
            "bytes": window.size_bytes,
            "mem_first": window.first_index(),
            "log_first": node.log_first_index,
            "wal_bytes": node.releaser.wal_bytes,
            "limits": {"entries": limits.max_entries, "bytes": limits.max_bytes, "peer_grace_s": limits.grace_s},
            "slack_limits": {"entries": SLACK_ENTRIES, "bytes": SLACK_BYTES},
            "safe_index": why.safe_index,
            "cap_index": why.cap_index,
            "target_index": why.target_index,
            "decided_by": why.reason.value,
            "leader_floor": node.driver.leader_floor,
            "slack": _share(why.slack),
            "held": _share(why.held),
            "unsafe": _share(why.unsafe),
            "held_by": self._held_by(report),
        }

    def _held_by(self, report: WindowReport) -> Page | None:
        """Who waits for the most of what is held, and how much that is."""
        held = report.explanation.held
        if not held.entries:
            return None
        driver = self._node.driver
        if not driver.raw.is_leader:
            by = NO_NODE if driver.leader_floor is None else driver.leader_id
            return {"claim": "leader_floor", **self._reference(by), **_share(held), "remaining_s": None} if by != NO_NODE else None
        peer, hold = max(report.holds.items(), key=lambda item: item[1].share.entries)
        if not hold.share.entries:
            return None
        return {**self._claim(peer, hold), **self._reference(peer)}

    def _claim(self, peer: NodeId, hold: Hold) -> Page:
        book, claim = self._node.book, hold.claim
        ends_s = min(claim.ends_s, book.pin_end_s(peer)) if peer in book.pins else claim.ends_s
        return {"claim": claim.kind.value, **_share(hold.share), "remaining_s": self._remaining_s(ends_s)}

    def _remaining_s(self, ends_s: float) -> float | None:
        return None if math.isinf(ends_s) else round(max(0.0, ends_s - self._node.now_s()), 3)

    # --- the peers -----------------------------------------------------------------------------------------------------------------------

    def _peers(self, report: WindowReport) -> list[Page]:
        node = self._node
        tracked: dict[NodeId, Progress] = {}
        if node.driver.raw.is_leader:
            tracked = {peer: progress for peer, progress, _ in node.driver.raw.progress() if peer != node.member_id}
        ids = sorted({*node.transport.peers, *tracked})
        return [self._peer(peer, tracked.get(peer), report.holds.get(peer)) for peer in ids]

    def _peer(self, peer: NodeId, progress: Progress | None, hold: Hold | None) -> Page:
        node = self._node
        link = node.transport.stats(peer) if peer in node.transport.peers else None
        age_s = node.now_s() - node.book.last_contact_s(peer)
        return {
            **self._reference(peer),
            "is_learner": peer in node.store.conf_state.learners,
            "is_connected": link is not None and link.is_connected,
            "contact_age_s": None if math.isinf(age_s) else round(age_s, 3),
            "queued_bytes": 0 if link is None else link.queued_bytes,
            **self._progress(progress),
            "pin": self._pin(peer),
            "hold": None if hold is None else self._claim(peer, hold),
        }

    def _progress(self, progress: Progress | None) -> Page:
        if progress is None:
            return dict.fromkeys(("state", "match_index", "next_index", "lag_entries", "lag_bytes"))
        match = progress.match_index
        return {
            "state": progress.state.name.lower(),
            "match_index": match,
            "next_index": progress.next_index,
            "lag_entries": max(0, self._node.driver.raw.last_index - match),
            "lag_bytes": self._node.window.bytes_after(match),
        }

    def _pin(self, peer: NodeId) -> Page | None:
        index: Index | None = self._node.book.pins.get(peer)
        return None if index is None else {"index": index, "remaining_s": self._remaining_s(self._node.book.pin_end_s(peer))}


def _share(share: Share) -> Page:
    return {"entries": share.entries, "bytes": share.bytes}


def _process() -> Page:
    memory = process_memory()
    if memory is None:
        return {"rss_bytes": None, "anonymous_bytes": None, "file_bytes": None}
    return {"rss_bytes": memory.rss_bytes, "anonymous_bytes": memory.anonymous_bytes, "file_bytes": memory.file_bytes}
