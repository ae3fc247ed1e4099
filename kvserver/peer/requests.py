"""The requests of one link that are unanswered: correlation and bounds. No IO.

Rules
- A request holds its place until its answer comes or the connection ends, even if nobody waits for it any more (timeout, cancellation): it
  occupies the peer until then, and a new one must not be sent in its stead. The peer answers everything, in the time that the request
  names.
- Each waiter gets one result: the payload, or the error to raise. Errors are results, not exceptions, of the future: a waiter that was
  cancelled in the same loop turn leaves no unretrieved exception.
- Ids ascend for the life of the link, so no answer can meet the request of another connection. An answer to an id that was never given out
  is FrameError; one whose request is gone (a repeated answer) is dropped.

Bounds: `MAX_REQUESTS`, `MAX_REQUESTS_SIZE_BYTES`; over either `open` refuses and nothing changes.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, assert_never

from kvserver.peer.errors import (
    FrameError,
    PeerRequestError,
    PeerRequestLostError,
    PeerRequestOverflowError,
    PeerRequestRefusedError,
    PeerRequestTimeoutError,
)
from kvserver.peer.request_frames import MAX_REQUESTS, MAX_REQUESTS_SIZE_BYTES, Outcome, Response
from kvserver.types import NodeId


class _Place(NamedTuple):
    """One unanswered request; the future is done when nobody waits any more."""

    answer: asyncio.Future[bytes | PeerRequestError]
    size_bytes: int


class OutstandingRequests:
    """See the module. `peer_id` is for the errors' texts."""

    def __init__(self, peer_id: NodeId) -> None:
        self._peer_id = peer_id
        self._places: dict[int, _Place] = {}
        self._size_bytes = 0
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._places)

    def open(self, size_bytes: int) -> tuple[int, asyncio.Future[bytes | PeerRequestError]]:
        """A place for a request with a payload of this size: its id, and what will become of it. Raises PeerRequestOverflowError."""
        if len(self._places) >= MAX_REQUESTS:
            raise PeerRequestOverflowError(self._peer_id, f"{len(self._places)} requests are unanswered")
        if self._size_bytes + size_bytes > MAX_REQUESTS_SIZE_BYTES:
            raise PeerRequestOverflowError(self._peer_id, f"{self._size_bytes} bytes of requests are unanswered")
        self._last_id += 1
        place = _Place(asyncio.get_running_loop().create_future(), size_bytes)
        self._places[self._last_id] = place
        self._size_bytes += size_bytes
        return self._last_id, place.answer

    def withdraw(self, request_id: int) -> None:
        """Give the place of a request back that was not sent after all."""
        self._pop(request_id)

    def settle(self, response: Response) -> None:
        """An answer came. Raises FrameError for one that was not asked for."""
        if not 1 <= response.id <= self._last_id:
            raise FrameError(f"response {response.id} answers a request that was not sent")
        place = self._pop(response.id)
        if place is not None and not place.answer.done():
            place.answer.set_result(self._result(response))

    def fail_all(self, reason: str) -> None:
        """The connection is over: every waiter hears of it."""
        places, self._places, self._size_bytes = self._places, {}, 0
        for place in places.values():
            if not place.answer.done():
                place.answer.set_result(PeerRequestLostError(self._peer_id, reason))

    def _pop(self, request_id: int) -> _Place | None:
        place = self._places.pop(request_id, None)
        if place is not None:
            self._size_bytes -= place.size_bytes
        return place

    def _result(self, response: Response) -> bytes | PeerRequestError:
        outcome = response.outcome
        if outcome is Outcome.ANSWERED:
            return response.payload
        if outcome is Outcome.REFUSED:
            return PeerRequestRefusedError(response.code, response.text)
        if outcome is Outcome.BUSY:
            return PeerRequestOverflowError(self._peer_id, response.text)
        if outcome is Outcome.TIMED_OUT:
            return PeerRequestTimeoutError(self._peer_id, response.text)
        if outcome is Outcome.INTERNAL:
            return PeerRequestRefusedError(PeerRequestRefusedError.INTERNAL, response.text)
        assert_never(outcome)
