"""Linearizable reads: one ReadIndex round serves every read that was waiting when it began.

Purpose: `wait_linearizable` returns once this member has applied everything that was committed when the call began, confirmed by a quorum.
`wait_confirmed` asks for the quorum's word alone: who leads needs no more to know that it still does, however long an entry takes to apply.

Rules: at most one round is out; reads that arrive meanwhile share the next. A round without an answer is sent again (with a context of
its own) every `RESEND_S`, and at once when a leader appears; each read ends at its own deadline. Reads have no effect, so repeating them
is safe. At most `max_waiting()` reads are open, those that wait until their index is applied included (with a full disk none may be for
hours); more are refused. A read that ended leaves nothing behind: not itself, and with the last of its round not the wait for the index.

Source: Ongaro's thesis 6.4; etcd server's linearizableReadLoop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from kvserver.errors import NoLeaderError, RequestError, RequestTimeoutError, StoppedError, TooManyRequestsError
from raft.types import Index

RESEND_S: Final = 0.5


class ReadSink(Protocol):
    """What reads need of the driver."""

    def has_leader(self) -> bool: ...
    def request_read_index(self, context: bytes) -> None: ...
    def wait_applied(self, index: Index) -> asyncio.Future[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Confirmed:
    """A round whose index is known: the reads of it that are still open, and what they wait for."""

    open: set[asyncio.Future[None]]
    applied: asyncio.Future[None]


class Reads:
    """The reads of this member that wait for their turn."""

    def __init__(self, *, sink: ReadSink, incarnation: int, max_waiting: Callable[[], int]) -> None:
        self._sink = sink
        self._prefix = incarnation.to_bytes(8, "big")
        self._max_waiting = max_waiting
        self._counter = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._round: list[asyncio.Future[None]] = []
        self._confirmed: dict[asyncio.Future[None], _Confirmed] = {}  # each open one with its round
        self._only_confirmed: set[asyncio.Future[None]] = set()  # those that don't wait for apply
        self._contexts: set[bytes] = set()
        self._resend: asyncio.TimerHandle | None = None
        self._refusal: type[RequestError] | None = None

    @property
    def waiting_count(self) -> int:
        """Reads that are not answered yet."""
        return len(self._waiting) + len(self._round) + len(self._confirmed)

    async def wait_linearizable(self, deadline_s: float) -> None:
        """Return when a read of the local store is linearizable.

        Args:
            deadline_s: on the loop's clock.

        Raises:
            NoLeaderError: there was no leader at the deadline.
            RequestTimeoutError: the quorum did not confirm in time, or this member did not apply in time.
            TooManyRequestsError: as many are open as may be.
            StoppedError: this member is stopping.
            RequestError: what reads were stopped with.
        """
        await self._wait(asyncio.get_running_loop().create_future(), deadline_s)

    async def wait_confirmed(self, deadline_s: float) -> None:
        """Return when a round that began after the call was confirmed, whatever is applied by then. Raises as `wait_linearizable`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._only_confirmed.add(future)
        try:
            await self._wait(future, deadline_s)
        finally:
            self._only_confirmed.discard(future)

    async def _wait(self, future: asyncio.Future[None], deadline_s: float) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self.waiting_count >= self._max_waiting():
            raise TooManyRequestsError
        self._waiting.append(future)
        if not self._round:
            self._begin_round()
        try:
            async with asyncio.timeout_at(deadline_s):
                await future
        except TimeoutError:
            raise (RequestTimeoutError if self._sink.has_leader() else NoLeaderError) from None
        finally:
            self._forget(future)

    def resolve(self, context: bytes, index: Index) -> None:
        """Raft confirmed `index` for the round that `context` stands for."""
        if context not in self._contexts:
            return
        finished, self._round = self._round, []
        self._contexts.clear()
        self._cancel_resend()
        _release([future for future in finished if future in self._only_confirmed])
        applied = self._sink.wait_applied(index)
        if applied.done():
            _release(finished)
        else:
            self._keep_confirmed(finished, applied)
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
        self._round, self._waiting = [], []
        self._contexts.clear()

    def _keep_confirmed(self, finished: list[asyncio.Future[None]], applied: asyncio.Future[None]) -> None:
        """Have those of `finished` that are still open wait for `applied`."""
        confirmed = _Confirmed(open={future for future in finished if not future.done()}, applied=applied)
        if not confirmed.open:
            applied.cancel()  # the driver lets go of what is done
            return
        self._confirmed.update(dict.fromkeys(confirmed.open, confirmed))
        applied.add_done_callback(partial(self._release_confirmed, confirmed.open))

    def _forget(self, future: asyncio.Future[None]) -> None:
        """This read ended. One without an index stays until its round is sent or begun, and counts as long: rounds must not mix."""
        confirmed = self._confirmed.pop(future, None)
        if confirmed is None:
            return
        confirmed.open.discard(future)
        if not confirmed.open:
            confirmed.applied.cancel()  # as above

    def _release_confirmed(self, reads: set[asyncio.Future[None]], applied: asyncio.Future[None]) -> None:
        finished = list(reads)
        reads.clear()
        for future in finished:
            del self._confirmed[future]
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
