"""How requests come in: a call's message is received only when there is room for it.

Purpose: bounds the bytes of requests from their first one on the wire to the answer. grpcio delivers a whole message at once; what can be
decided is *when* it is asked for. Every method is therefore bound as one that reads its messages itself, whatever its kind (on the wire
there is no difference): a call that was not admitted has only what HTTP/2's window for one stream lets its client send ahead
(`GrpcLimits.stream_window_bytes`).

Rules
- How large a message is becomes known when it has arrived. Until then it counts as the largest that grpcio takes; then as what it is, until
  the call is answered.
- Writes have a gate of their own: while they wait for a slow disk, reads, status and health still come in, through the other one.
- A call waits as long as its client does, first come, first served; over the number of calls that may wait: `too many requests`.
- A client that has not sent its message within `PATIENCE_S` is cut off if others wait for the room that is kept for it.

Source: RFC 9113, 5.2 (flow control); grpc's aio server, which asks for a streamed message when its handler does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from kvserver.api import ByteGate, MethodName
from kvserver.errors import RequestTimeoutError

__all__ = ["PATIENCE_S", "Intake", "NoMessageError"]

PATIENCE_S: Final = 5.0

_WRITES: Final = frozenset({("KV", "Put"), ("KV", "DeleteRange"), ("KV", "Txn")})

_Context = Any  # grpc.aio.ServicerContext[bytes, bytes]


class NoMessageError(Exception):
    """The client ended the call without a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """The gates that requests pass.

    `message_bytes` is the largest message that grpcio takes; `patience_s` is for tests.
    """

    writes: ByteGate
    others: ByteGate
    message_bytes: int
    patience_s: float = PATIENCE_S

    def gate(self, method: MethodName) -> ByteGate:
        """The one for this method."""
        return self.writes if method in _WRITES else self.others

    async def receive(self, gate: ByteGate, context: _Context) -> bytes:
        """Wait for room, then for the message. Its size stays taken: the caller gives it back when the call is over.

        Raises:
            TooManyRequestsError: too many wait already.
            RequestTimeoutError: the client was too slow, and others wait.
            NoMessageError: it sent none.
        """
        room_bytes = self.message_bytes
        if not gate.try_take(room_bytes):
            await gate.take(room_bytes)
        message: bytes = b""
        try:
            message = await self._read(gate, context)
        finally:
            gate.give(room_bytes - len(message))
        return message

    async def _read(self, gate: ByteGate, context: _Context) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        sender = _Sender(task, gate, self.patience_s)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if not sender.is_cut_off or task.uncancel():
                raise
            raise RequestTimeoutError from None
        finally:
            sender.timer.cancel()
        if message is grpc.aio.EOF:
            raise NoMessageError
        assert isinstance(message, bytes)
        return message


class _Sender:
    """A client that is sending its message; cut off when it takes too long and others wait."""

    __slots__ = ("_gate", "_patience_s", "_task", "is_cut_off", "timer")

    def __init__(self, task: asyncio.Task[Any], gate: ByteGate, patience_s: float) -> None:
        self._task = task
        self._gate = gate
        self._patience_s = patience_s
        self.is_cut_off = False
        self.timer = asyncio.get_running_loop().call_later(patience_s, self._look)

    def _look(self) -> None:
        if self._gate.waiting_count:
            self.is_cut_off = True
            self._task.cancel()
        else:
            self.timer = asyncio.get_running_loop().call_later(self._patience_s, self._look)
