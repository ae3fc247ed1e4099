"""How requests come in: a call's message is received only when there is room for it.

Purpose: bounds the bytes of requests from their first one on the wire to the answer. grpcio delivers a whole message at once; what can be
decided is *when* it is asked for. Every method is therefore bound as one that reads its messages itself, whatever its kind (on the wire
there is no difference): a call that was not admitted has only what HTTP/2's window for one stream lets its client send ahead
(`GrpcLimits.stream_window_bytes`).

Rules
- How large a message is becomes known when it has arrived. Until then a write counts as the largest request; then as what it is, until the
  call is answered. One that is larger than any request counts as what it is, too, and is refused in the same turn of the loop.
- Writes have a lane of their own: while they wait for a slow disk, reads, status and health still come in, through the other one.
- No other request is large. Until it has arrived it counts as one of `OTHERS_AT_A_TIME` parts of their gate (a 16th of the largest message
  at least); one that turns out larger passes if there is room at once, and is otherwise let go of with `too many requests`: waiting with
  what it holds, it could wait for others who do the same.
- A call waits until its client leaves or the server's own request timeout, first come, first served; over the number of calls that may
  wait: `too many requests`.
- A client that has not sent its message within `PATIENCE_S` is cut off if others wait, the longest first and no more than wait. While more
  than half of the gate is kept for messages on their way, patience is divided among those who wait, down to `LEAST_PATIENCE_S`. A
  connection that was cut off so has `SUSPECT_PATIENCE_S` for its next calls, until a message comes from it or nobody waits. So many
  connections are remembered at most, the latest: `MOST_SUSPECTS`.
- A small message is here already when it is asked for (it fits into the window): only the silent and the large make anybody wait.

Caveats: how much of a message has come can't be seen through grpc.aio: a client that sends a large write over a slow link looks like one
that sends nothing, and is cut off like one if others wait. A hostile client can make grpcio receive `OTHERS_AT_A_TIME` largest messages at
a time that are no writes; they are let go of one by one. How many that may be is the reason why they are few. Silent calls on many
connections delay writes by a second for each gateful.

Source: RFC 9113, 5.2 (flow control); grpc's aio server, which asks for a streamed message when its handler does.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc.aio

from kvserver.api import ByteGate, MethodName
from kvserver.errors import RequestTimeoutError, TooManyRequestsError

__all__ = ["LEAST_PATIENCE_S", "OTHERS_AT_A_TIME", "PATIENCE_S", "SUSPECT_PATIENCE_S", "Intake", "Lane", "NoMessageError"]

PATIENCE_S: Final = 5.0
LEAST_PATIENCE_S: Final = 1.0
SUSPECT_PATIENCE_S: Final = 0.05
OTHERS_AT_A_TIME: Final = 8
MOST_SUSPECTS: Final = 1024

_LOOK_S: Final = 0.05
_WRITES: Final = frozenset({("KV", "Put"), ("KV", "DeleteRange"), ("KV", "Txn")})

_Context = Any  # grpc.aio.ServicerContext[bytes, bytes]


class NoMessageError(Exception):
    """The client ended the call without a message."""


class Intake:
    """The lanes by which requests come in.

    Args:
        writes: the gate of writes.
        others: the gate of all other requests.
        message_bytes: the largest request; grpcio takes larger ones (grpc_binding.py), which are refused.
        wait_s: how long a call waits for room at most.
        patience_s: for tests.
    """

    __slots__ = ("_other_lane", "_write_lane", "others", "writes")

    def __init__(self, *, writes: ByteGate, others: ByteGate, message_bytes: int, wait_s: float, patience_s: float = PATIENCE_S) -> None:
        self.writes = writes
        self.others = others
        other_bytes = min(message_bytes, max(message_bytes // 16, others.max_bytes // OTHERS_AT_A_TIME))
        self._write_lane = Lane(writes, room_bytes=message_bytes, limit_bytes=message_bytes, wait_s=wait_s, patience_s=patience_s)
        self._other_lane = Lane(others, room_bytes=other_bytes, limit_bytes=message_bytes, wait_s=wait_s, patience_s=patience_s)

    def lane(self, method: MethodName) -> Lane:
        """The one for this method."""
        return self._write_lane if method in _WRITES else self._other_lane


class Lane:
    """A gate, and the way through it.

    Args:
        room_bytes: what a message counts until it has arrived.
        limit_bytes: the largest request.
        wait_s, patience_s: as for `Intake`.
    """

    __slots__ = ("_arrivals", "_limit_bytes", "_room_bytes", "_wait_s", "gate")

    def __init__(self, gate: ByteGate, *, room_bytes: int, limit_bytes: int, wait_s: float, patience_s: float) -> None:
        self.gate = gate
        self._room_bytes = room_bytes
        self._limit_bytes = limit_bytes
        self._wait_s = wait_s
        self._arrivals = Arrivals(gate, room_bytes=room_bytes, patience_s=patience_s)

    async def receive(self, context: _Context) -> bytes:
        """Wait for room, then for the message. Its size stays taken: the caller gives it back when the call is over.

        Raises:
            TooManyRequestsError: too many wait already, or it is larger than expected and there is no room.
            RequestTimeoutError: there was no room for too long; or the client was too slow, and others wait.
            NoMessageError: it sent none.
        """
        gate, taken_bytes = self.gate, self._room_bytes
        if not gate.try_take(taken_bytes):
            await self._wait()
        message: bytes = b""
        try:
            message = await self._read(context)
            more_bytes = len(message) - taken_bytes
            if more_bytes > 0:
                if len(message) > self._limit_bytes:
                    gate.add(more_bytes)
                elif not gate.try_take(more_bytes):
                    message = b""
                    gate.refused += 1
                    raise TooManyRequestsError
                taken_bytes += more_bytes
        finally:
            gate.give(taken_bytes - len(message))
        return message

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self.gate.take(self._room_bytes)
        except TimeoutError:
            raise RequestTimeoutError from None

    async def _read(self, context: _Context) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        sender = _Sender(task, context)
        self._arrivals.begin(sender)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if not sender.is_cut_off or task.uncancel():
                raise
            raise RequestTimeoutError from None
        finally:
            self._arrivals.end(sender)
        if message is grpc.aio.EOF:
            raise NoMessageError
        self._arrivals.trust(sender)
        assert isinstance(message, bytes)
        return message


class _Sender:
    """A client that was asked for its message; `looks` says how long ago."""

    __slots__ = ("context", "is_cut_off", "looks", "task")

    def __init__(self, task: asyncio.Task[Any], context: _Context) -> None:
        self.task = task
        self.context = context
        self.looks = 0
        self.is_cut_off = False

    def cut_off(self) -> None:
        """End its call."""
        self.is_cut_off = True
        self.task.cancel()


class Arrivals:
    """The messages on their way through one gate; those who are too slow while others wait are cut off.

    Time is counted in looks, not read from a clock: a loop that stood still has not given anybody's message the chance to be seen.
    """

    __slots__ = ("_gate", "_look_s", "_patience_s", "_room_bytes", "_senders", "_timer", "suspects")

    def __init__(self, gate: ByteGate, *, room_bytes: int, patience_s: float) -> None:
        self._gate = gate
        self._room_bytes = room_bytes
        self._patience_s = patience_s
        self._look_s = min(_LOOK_S, patience_s)
        self._senders: dict[_Sender, None] = {}  # in the order of their admission
        self.suspects: dict[str, None] = {}  # connections, the latest last
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, sender: _Sender) -> None:
        """It was asked for its message."""
        self._senders[sender] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def end(self, sender: _Sender) -> None:
        """Its message is here, or will not come."""
        del self._senders[sender]

    def trust(self, sender: _Sender) -> None:
        """Its message is here."""
        if self.suspects:
            self.suspects.pop(sender.context.peer(), None)

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look) if self._senders else None
        for sender in self._senders:
            sender.looks += 1
        waiting = self._gate.waiting_count
        if waiting:
            self._cut_off(waiting)
        else:
            self.suspects.clear()

    def _cut_off(self, places: int) -> None:
        is_crowded = 2 * len(self._senders) * self._room_bytes > self._gate.max_bytes
        patience_s = min(self._patience_s, max(LEAST_PATIENCE_S, self._patience_s / (1 + places))) if is_crowded else self._patience_s
        suspects = frozenset(self.suspects) if is_crowded else frozenset()
        for sender in self._senders:
            if not places:
                return
            waited_s = sender.looks * self._look_s
            if sender.is_cut_off or waited_s < min(patience_s, SUSPECT_PATIENCE_S):
                continue
            peer = sender.context.peer()
            if waited_s >= patience_s or peer in suspects:
                sender.cut_off()
                self.suspect(peer)
                places -= 1

    def suspect(self, peer: str) -> None:
        """Remember a connection; the one that was suspected first is forgotten for it if there are too many."""
        self.suspects.pop(peer, None)
        if len(self.suspects) >= MOST_SUSPECTS:
            del self.suspects[next(iter(self.suspects))]
        self.suspects[peer] = None
