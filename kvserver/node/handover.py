"""Giving leadership away: to whom, and waiting until it is gone.

Purpose: an orderly stop (and a full disk, see `space`) hands leadership to a member that can do better, instead of leaving the others to
their election timeout.

Rules: candidates are voters that were heard from lately and whose stream stands, the one furthest ahead first; the caller may look at
them more closely. At most `HANDOVER_S`; when it does not come about, this member simply goes on leading (or stops).
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from kvserver.logs import Logger
from kvserver.node.peers import PeerBook
from kvserver.peer import Transport
from raft.raw_node import RawNode
from raft.types import NO_NODE, NodeId

HANDOVER_S: Final = 0.5


class Leadership(Protocol):
    """What handing over needs of the driver."""

    @property
    def raw(self) -> RawNode: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...
    def transfer_leader(self, to: NodeId) -> None: ...


class HandOver:
    """Hands this member's leadership over. `note_leader` is to be called whenever the leader changes."""

    def __init__(self, *, member_id: NodeId, driver: Leadership, book: PeerBook, transport: Transport, log: Logger) -> None:
        self._member_id = member_id
        self._driver = driver
        self._book = book
        self._transport = transport
        self._log = log
        self._leader_changed = asyncio.Event()

    def note_leader(self) -> None:
        """The leader changed."""
        self._leader_changed.set()

    def candidates(self, since_s: float) -> list[NodeId]:
        """The voters that could take over, best first: heard from at or after `since_s` (the loop's clock) and connected."""
        if not self._driver.is_leader:
            return []
        present = set(self._book.contacts_since(since_s))
        found = [
            (progress.match_index, peer)
            for peer, progress, is_learner in self._driver.raw.progress()
            if peer in present and not is_learner and peer in self._transport.peers and self._transport.stats(peer).is_connected
        ]
        return [peer for _, peer in sorted(found, reverse=True)]

    async def run(self, *, since_s: float) -> None:
        """Hand over to the best candidate, if there is one, and wait until another member leads, at most `HANDOVER_S`."""
        candidates = self.candidates(since_s)
        if candidates:
            await self.give_to(candidates[0])

    async def give_to(self, to: NodeId) -> bool:
        """Hand over to `to`; whether another member leads at the end."""
        self._log.info("leadership transfer starting", to=f"{to:x}")
        self._leader_changed.clear()
        self._driver.transfer_leader(to)
        try:
            async with asyncio.timeout(HANDOVER_S):
                while self._driver.leader_id in (self._member_id, NO_NODE):
                    self._leader_changed.clear()
                    await self._leader_changed.wait()
        except TimeoutError:
            self._log.warning("leadership transfer timed out", to=f"{to:x}")
            return False
        self._log.info("leadership transfer finished", to=f"{self._driver.leader_id:x}")
        return True
