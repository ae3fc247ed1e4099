"""Linearizable reads that wait for a quorum to confirm the leader.

Purpose: a queue of read requests. Each takes the next position; every heartbeat carries the newest position as its context, and a member's
response confirms that it still followed this leader after every request up to that position. When a quorum (of both halves while joint) has
confirmed a position, the requests through it are released.

Rules: positions start at 1 and rise for as long as the leader leads; a request that is repeated while it waits keeps its place; the queue
is bounded, and beyond its bound a request is dropped (its sender asks again).

Source: Ongaro's thesis, 6.4.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from raft.messages import Message
from raft.quorum import JointVoters
from raft.types import Index, NodeId

MAX_WAITING_READS: Final = 16_384
"""Read requests that may wait for confirmation, or for the first commit of a term, at a time."""

_POSITION: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class WaitingRead:
    """A request, and the commit index when it arrived: what the read must see."""

    request: Message
    index: Index
    position: int


def _key(request: Message) -> tuple[NodeId, bytes]:
    return request.from_, request.entries[0].data


class ReadOnly:
    """The reads of one leadership. Mutable; owned by the core."""

    __slots__ = ("_acked", "_last_position", "_queue", "_waiting")

    def __init__(self) -> None:
        self._queue: deque[WaitingRead] = deque()
        self._waiting: set[tuple[NodeId, bytes]] = set()
        self._acked: dict[NodeId, Index] = {}
        self._last_position = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: Message, index: Index) -> None:
        """Queue a MsgReadIndex that arrived when `index` was committed."""
        key = _key(request)
        if key in self._waiting or len(self._queue) >= MAX_WAITING_READS:
            return
        self._last_position += 1
        self._waiting.add(key)
        self._queue.append(WaitingRead(request, index, self._last_position))

    def heartbeat_context(self) -> bytes:
        """The newest waiting position, encoded; empty if nothing waits."""
        return _POSITION.pack(self._last_position) if self._queue else b""

    def confirm(self, node: NodeId, context: bytes) -> None:
        """`node` answered a heartbeat that carried `context`; what is not a position handed out is ignored."""
        if len(context) == _POSITION.size:
            position = Index(_POSITION.unpack(context)[0])
            if self._acked.get(node, 0) < position <= self._last_position:
                self._acked[node] = position

    def release(self, voters: JointVoters) -> list[WaitingRead]:
        """The requests, in order, that a quorum has confirmed."""
        queue = self._queue
        released: list[WaitingRead] = []
        if queue:
            confirmed = voters.committed_index(self._acked)
            while queue and queue[0].position <= confirmed:
                read = queue.popleft()
                self._waiting.discard(_key(read.request))
                released.append(read)
        return released
