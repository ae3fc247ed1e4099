"""What the transport tells the node, handed on to the driver: messages, contacts, refusals, snapshots.

Rules: called on the loop, never blocks; decides nothing but who is a member.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from kvserver.config import ETCD_API_VERSION
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node.driver import Driver
from kvserver.node.inflow import Inflow
from kvserver.node.peers import PeerBook
from kvserver.peer import Refusal, RefusedError, SnapshotOutcome
from kvserver.types import ClusterId, Member, NodeId
from raft.messages import Message
from raft.types import Index, SnapshotMetadata

JOIN_PAGE: Final = "/kvserver/cluster"
"""What a joining member reads from those that are there (joining.py)."""


class NodePeerHandler:
    """The transport's counterpart. `driver`, `inflow`, `admit` and `answer` are set before the transport starts.

    `admit` answers what raft may see of a message: all, a part, or (None) nothing of it. What it may see goes through `inflow`.
    """

    def __init__(
        self,
        *,
        cluster_id: ClusterId,
        members: Callable[[], Mapping[NodeId, Member]],
        removed: Callable[[], Collection[NodeId]],
        on_removed: Callable[[], None],
        book: PeerBook,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._cluster_id = cluster_id
        self._members = members
        self._removed = removed
        self._on_removed = on_removed
        self._book = book
        self._metrics = metrics
        self._log = log
        self.driver: Driver | None = None
        self.inflow: Inflow | None = None
        self.admit: Callable[[Message], Message | None] = lambda message: message
        self.answer: Callable[[NodeId, int, bytes], Awaitable[bytes]] | None = None

    # --- membership and pages ------------------------------------------------------------------------------------------------------------

    def is_member(self, member_id: NodeId) -> bool:
        """Part of the membership as applied here."""
        return member_id in self._members()

    def is_removed(self, member_id: NodeId) -> bool:
        """Removed from the cluster for good."""
        return member_id in self._removed()

    def page(self, path: str) -> object | None:
        """`/version` and `/members` of the peer port, as etcd serves them."""
        if path == "/version":
            return {"etcdserver": ETCD_API_VERSION, "etcdcluster": ETCD_API_VERSION}
        if path == "/members":
            return self._member_page()
        if path == JOIN_PAGE:
            return {"cluster_id": self._cluster_id, "members": self._member_page(), "removed": sorted(self._removed())}
        return None

    def _member_page(self) -> list[dict[str, object]]:
        return [
            {
                "id": member.id,
                "peerURLs": list(member.peer_urls),
                "name": member.name,
                "clientURLs": list(member.client_urls),
                "isLearner": member.is_learner,
            }
            for _, member in sorted(self._members().items())
        ]

    # --- messages ------------------------------------------------------------------------------------------------------------------------

    def on_message(self, message: Message, floor: Index) -> None:
        """Raft's next message from a peer."""
        admitted = self.admit(message)
        if admitted is None:
            self._driver().note_contact(message.from_)
        else:
            assert self.inflow is not None, "the transport starts after the inflow is made"
            self.inflow.take(admitted, floor)

    async def on_request(self, sender: NodeId, kind: int, payload: bytes) -> bytes:
        """A member asks this one to do something; any member may."""
        assert self.answer is not None, "the transport starts after the node is made"
        return await self.answer(sender, kind, payload)

    def on_contact(self, member_id: NodeId) -> None:
        """That peer is alive."""
        self._driver().note_contact(member_id)

    def on_unreachable(self, member_id: NodeId) -> None:
        """Messages to that peer were dropped."""
        self._driver().report_unreachable(member_id)

    def on_refused(self, member_id: NodeId, error: RefusedError) -> None:
        """The transport has logged it. That this member was removed is news that may reach it only this way."""
        if error.reason is Refusal.REMOVED_MEMBER:
            self._on_removed()

    # --- snapshots -----------------------------------------------------------------------------------------------------------------------

    def on_snapshot_started(self, to: NodeId, metadata: SnapshotMetadata) -> None:
        """The copy is made: from now on its own position is pinned; not on a member that leads no more, where nothing would end it."""
        if self._driver().is_leader:
            self._book.pin(to, metadata.index)
        self._log.info("sending database snapshot", to=f"{to:x}", index=metadata.index)

    def on_snapshot_result(self, outcome: SnapshotOutcome) -> None:
        """The transfer ended; raft hears it exactly once: of a failure after a pause, as it asks for the next snapshot at once."""
        self._metrics.snapshot_sent_bytes.add(outcome.sent_bytes)
        to = outcome.to
        if outcome.ok:
            self._metrics.snapshots_sent["lagging"] += 1
            self._log.info("sent database snapshot", to=f"{to:x}", sent_bytes=outcome.sent_bytes, took_s=round(outcome.duration_s, 3))
            self._book.note_delivered(to)
            self._driver().report_snapshot(to, delivered=True)
            return
        self._metrics.snapshot_send_failures["lagging"] += 1
        pause_s = self._book.pause_after_failure_s(to)
        self._log.warning("failed to send database snapshot", to=f"{to:x}", reason=outcome.reason, next_after_s=pause_s)
        self._book.unpin(to)
        asyncio.get_running_loop().call_later(pause_s, partial(self._driver().report_snapshot, to, delivered=False))

    def on_snapshot_received(self, message: Message, path: Path, size_bytes: int) -> bool:
        """A whole, durable snapshot: raft decides whether it is news. The file of one that it did not take has no other use (False)."""
        del path  # its name says its position, and so does the message: the installer looks for it there
        self._metrics.snapshot_received_bytes.add(size_bytes)
        self._log.info("received database snapshot", sender=f"{message.from_:x}")
        driver = self._driver()
        assert message.snapshot is not None
        driver.step(message, Index(0))
        return driver.raw.pending_snapshot_index == message.snapshot.metadata.index

    def _driver(self) -> Driver:
        assert self.driver is not None, "the transport starts after the driver"
        return self.driver
