"""Linearizable reads: one ReadIndex round serves every read that was waiting when it began.

Purpose: `wait_linearizable` returns once this member has applied everything that was committed when the call began, confirmed by a quorum.

Rules: at most one round is out; reads that arrive meanwhile share the next. A round without an answer is sent again (with a context of
its own) every `RESEND_S`, and at once when a leader appears; each read ends at its own deadline. Reads have no effect, so repeating them
is safe.

Source: Ongaro's thesis 6.4; etcd server's linearizableReadLoop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, Protocol

from kvserver.errors import NoLeaderError, RequestError, RequestTimeoutError, StoppedError
from raft.types import Index

RESEND_S: Final = 0.5


class ReadSink(Protocol):
    """What reads need of the driver."""

    def has_leader(self) -> bool: ...
    def request_read_index(self, context: bytes) -> None: ...
    def wait_applied(self, index: Index) -> asyncio.Future[None]: ...


class Reads:
    """The reads of this member that wait for their turn."""

    def __init__(self, *, sink: ReadSink, incarnation: int, max_waiting: int) -> None:
        self._sink = sink
        self._prefix = incarnation.to_bytes(8, "big")
        self._max_waiting = max_waiting
        self._counter = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._round: list[asyncio.Future[None]] = []
        self._confirmed: set[asyncio.Future[None]] = set()  # their index is known; they wait until it is applied
        self._contexts: set[bytes] = set()
        self._resend: asyncio.TimerHandle | None = None
        self._refusal: type[RequestError] | None = None

    @property
    def waiting_count(self) -> int:
        """Reads that are not answered yet."""
        return len(self._waiting) + len(self._round)

    async def wait_linearizable(self, deadline_s: float) -> None:
        """Return when a read of the local store is linearizable.

        Args:
            deadline_s: on the loop's clock.

        Raises:
            NoLeaderError: there was no leader at the deadline.
            RequestTimeoutError: the quorum did not confirm in time.
            StoppedError: this member is stopping.
            RequestError: what reads were stopped with.
        """
        if self._refusal is not None:
            raise self._refusal
        if self.waiting_count >= self._max_waiting:
            raise NoLeaderError if not self._sink.has_leader() else RequestTimeoutError
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._round:
            self._begin_round()
        try:
            async with asyncio.timeout_at(deadline_s):
                await future
        except TimeoutError:
            raise (RequestTimeoutError if self._sink.has_leader() else NoLeaderError) from None

    def resolve(self, context: bytes, index: Index) -> None:
        """Raft confirmed `index` for the round that `context` stands for."""
        if context not in self._contexts:
            return
        finished, self._round = self._round, []
        self._contexts.clear()
        self._cancel_resend()
        applied = self._sink.wait_applied(index)
        if applied.done():
            _release(finished)
        else:
            self._confirmed.update(finished)
            applied.add_done_callback(partial(self._release_confirmed, finished))
        if self._waiting:
            self._begin_round()

    def note_leader(self) -> None:
        """A leader appeared or changed: ask again at once."""
        if self._round:
            self._send_round()

    def stop(self, refusal: type[RequestError] = StoppedError) -> None:
        """Answer everything that is open, and whatever comes from now on, with `refusal`."""
        self._refusal = refusal
        self._cancel_resend()
        for future in (*self._round, *self._waiting, *self._confirmed):
            if not future.done():
                future.set_exception(refusal())

    def _release_confirmed(self, finished: list[asyncio.Future[None]], applied: asyncio.Future[None]) -> None:
        self._confirmed.difference_update(finished)
        if applied.cancelled():
            for future in finished:
                if not future.done():
                    future.set_exception(StoppedError())
            return
        _release(finished)

    def _begin_round(self) -> None:
        self._round, self._waiting = [future for future in self._waiting if not future.done()], []
        if self._round:
            self._send_round()

    def _send_round(self) -> None:
        self._round = [future for future in self._round if not future.done()]
        if not self._round:
            self._contexts.clear()
            if self._waiting:
                self._begin_round()
            return
        self._cancel_resend()
        self._counter += 1
        context = self._prefix + self._counter.to_bytes(8, "big")
        self._contexts.add(context)
        self._resend = asyncio.get_running_loop().call_later(RESEND_S, self._send_round)
        self._sink.request_read_index(context)

    def _cancel_resend(self) -> None:
        if self._resend is not None:
            self._resend.cancel()
            self._resend = None


def _release(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
