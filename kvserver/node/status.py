"""How the node stands: the facts behind Status, MemberList and /metrics.

Rules: computed when asked, on the loop, without blocking; nothing is kept up to date in between. Never imports api or metrics' consumers:
the values are built for them by the composition root's Protocols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvserver.config import ServerConfig
from kvserver.metrics import LogWindowState, NodeState, PeerState, SpaceState
from kvserver.node.accounting import accounted_bytes
from kvserver.node.node import Node
from kvserver.types import ClusterId, Index, Member, NodeId, Revision, Term
from raft.progress import Progress


class NodeStatus:
    """Reads one node. Meets `api.ClusterView` (but for its message types) and `metrics.NodeSource`."""

    def __init__(self, node: Node, config: ServerConfig) -> None:
        self.node = node
        self.config = config

    @property
    def cluster_id(self) -> ClusterId:
        """The cluster's id."""
        return self.node.cluster_id

    @property
    def member_id(self) -> NodeId:
        """This member's id."""
        return self.node.member_id

    @property
    def term(self) -> Term:
        """Raft's current term."""
        return self.node.driver.term

    @property
    def leader_id(self) -> NodeId:
        """The leader, `NO_NODE` while there is none."""
        return self.node.driver.leader_id

    @property
    def is_learner(self) -> bool:
        """This member doesn't vote."""
        return self.member_id in self.node.store.conf_state.learners

    @property
    def commit_index(self) -> Index:
        """The last committed entry that this member knows of."""
        return self.node.driver.raw.commit_index

    def members(self) -> Sequence[Member]:
        """The members as applied here."""
        return tuple(self.node.store.members.values())

    def node_state(self) -> NodeState:
        """Everything that /metrics shows of the node."""
        node = self.node
        driver, store, space = node.driver, node.store, node.space.space
        return NodeState(
            member_id=node.member_id,
            has_leader=driver.has_leader(),
            is_leader=driver.is_leader,
            is_learner=self.is_learner,
            committed_index=self.commit_index,
            applied_index=driver.applied_index,
            revision=store.current_revision,
            compact_revision=Revision(max(0, store.compacted_revision)),
            proposals_pending=node.proposals.pending_count,
            proposals_pending_bytes=node.proposals.pending_bytes,
            quota_backend_bytes=self.config.quota_backend_bytes,
            db_bytes=store.size_bytes,
            db_in_use_bytes=store.size_in_use_bytes,
            space=SpaceState(store_full=space.store_full, spare_missing=space.spare_missing, append_held=space.append_held),
            log_window=self._window_state(),
            peers=tuple(self._peer_states()),
            accounted_bytes=accounted_bytes(node),
        )

    def _window_state(self) -> LogWindowState:
        node = self.node
        limits = self.config.log_window
        return LogWindowState(
            entries=node.window.entry_count,
            bytes=node.window.size_bytes,
            memory_first_index=node.window.first_index(),
            memory_last_index=node.window.last_index(),
            log_first_index=node.log_first_index,
            wal_first_index=node.releaser.wal_first_index,
            wal_entries=max(0, node.window.last_index() - node.releaser.wal_first_index + 1),
            wal_bytes=node.releaser.wal_bytes,
            max_entries=limits.max_entries,
            max_bytes=limits.max_bytes,
            pins_active=len(node.book.pins),
        )

    def _peer_states(self) -> list[PeerState]:
        node = self.node
        progress: dict[NodeId, Progress] = {}
        if node.driver.is_leader:
            progress = {peer: state for peer, state, _ in node.driver.raw.progress()}
        holds = node.driver.explain_window().holds
        states = []
        for peer in node.transport.peers:
            link = node.transport.stats(peer)
            tracked = progress.get(peer)
            hold = holds.get(peer)
            age_s = node.now_s() - node.book.last_contact_s(peer)
            states.append(
                PeerState(
                    id=peer,
                    state="" if tracked is None else tracked.state.name.lower(),
                    lag_entries=0 if tracked is None else max(0, node.driver.raw.last_index - tracked.match_index),
                    lag_bytes=0 if tracked is None else node.window.bytes_after(tracked.match_index),
                    held_entries=0 if hold is None else hold.share.entries,
                    held_bytes=0 if hold is None else hold.share.bytes,
                    contact_age_s=None if math.isinf(age_s) else age_s,
                    round_trips=link.round_trips,
                    sent_bytes=link.sent_bytes,
                    received_bytes=link.received_bytes,
                    sent_failures=link.dropped_messages,
                    queued_bytes=link.queued_bytes,
                )
            )
        return states
