"""The incoming half of one peer: its messages and requests; pongs and answers back.

Rules
- Only PING, RAFT_MESSAGE and REQUEST may come; a message is decoded, checked (codec) and handed over in the call that brought it.
- Every request is answered on this stream (answers), or the stream ends: what is being answered then is cancelled, as nobody waits for it.
- Silence for `2 * ping_timeout_s` ends the stream, unless this member itself has stopped reading.

Bounds: what waits to go back is bounded by `BACK_LIMITS`. A pong that finds no room is left out; an answer that finds none is replaced by
an error, and where not even that fits the asker doesn't read: the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvserver.logs import Logger
from kvserver.peer.answers import AnswerDesk
from kvserver.peer.codec import decode_message
from kvserver.peer.connection import WRITE_HIGH_WATER_BYTES, FrameConnection
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import Frame, FrameType, encode_frame
from kvserver.peer.handshake import RemoteIdentity
from kvserver.peer.link import PING_NONCE
from kvserver.peer.outbox import Outbox, OutboxLimits, OutFrame, out_frame
from kvserver.peer.request_frames import Outcome, encode_failure
from kvserver.types import NodeId
from raft.messages import Message
from raft.types import Index

BACK_LIMITS: Final = OutboxLimits(bulk_size_bytes=512 * 1024, bulk_frames=256, urgent_size_bytes=256 * 1024, urgent_frames=1024)
"""Answers and pongs that the peer has not read yet; all requests' errors together fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundEvents:
    """Whom a stream tells what; all called on the loop, none may block."""

    on_message: Callable[[Message, Index], None]
    on_contact: Callable[[NodeId], None]
    on_received: Callable[[NodeId, int], None]
    on_end: Callable[[InboundStream], None]


class InboundStream:
    """Owner of an accepted connection that carries messages."""

    def __init__(
        self,
        connection: FrameConnection,
        remote: RemoteIdentity,
        self_id: NodeId,
        *,
        answers: AnswerDesk,
        silence_timeout_s: float,
        events: InboundEvents,
        logger: Logger,
    ) -> None:
        self.remote = remote
        self._logger = logger
        self._connection = connection
        self._self_id = self_id
        self._answers = answers
        self._answering: set[asyncio.Task[None]] = set()
        self._back = Outbox(BACK_LIMITS)
        self._silence_timeout_s = silence_timeout_s
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._last_received_s = self._loop.time()
        self._is_paused = False
        self._timer = self._loop.call_later(silence_timeout_s, self._check_silence)

    def pause(self) -> None:
        """Stop reading; what is already received is still handed over."""
        self._is_paused = True
        self._connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._last_received_s = self._loop.time()
        self._connection.resume_reading()

    def abort(self) -> None:
        """End the stream at once."""
        self._connection.abort()

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        """A message, a request or a ping."""
        if frame.type is FrameType.RAFT_MESSAGE:
            message, floor = decode_message(frame, sender=self.remote.member_id, receiver=self._self_id)
            self._events.on_message(message, floor)
        elif frame.type is FrameType.PING and len(frame.meta) == PING_NONCE.size:
            frame.take(())
            self._back.push(out_frame(encode_frame(FrameType.PONG, frame.meta), is_urgent=True))  # left out if it finds no room
            self._flush()
        elif frame.type is FrameType.REQUEST:
            task = self._answers.start(frame, self._send_answer)
            if task is not None:
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        else:
            raise FrameError(f"{frame.type.name} of {len(frame.meta)} bytes came on a message stream")

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Something arrived from the peer."""
        self._last_received_s = self._loop.time()
        self._events.on_received(self.remote.member_id, count_bytes)
        self._events.on_contact(self.remote.member_id)

    def on_writable(self, connection: FrameConnection) -> None:
        """Room in the connection's buffer."""
        self._flush()

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """The stream is over, and with it whatever was to go back."""
        self._timer.cancel()
        self._back.clear()
        for task in self._answering:
            task.cancel()
        self._events.on_end(self)

    def _send_answer(self, request_id: int, answer: OutFrame) -> None:
        """Queue the answer to a request, and write what can be written now."""
        if not self._connection.is_open:
            return
        if not self._back.push(answer):
            text = "the peer has answered, but too many of its answers wait to be read"
            if not self._back.push(encode_failure(request_id, Outcome.INTERNAL, text)):
                self._logger.warning("peer stream closed: answers are not read", peer_id=f"{self.remote.member_id:x}")
                self._connection.abort()
                return
        self._flush()

    def _flush(self) -> None:
        while self._connection.is_writable and len(self._back):
            segments, _ = self._back.take(WRITE_HIGH_WATER_BYTES)
            self._connection.write(segments)

    def _check_silence(self) -> None:
        silent_s = 0.0 if self._is_paused else self._loop.time() - self._last_received_s
        if silent_s >= self._silence_timeout_s:
            self._logger.warning("peer stream closed: silent for too long", peer_id=f"{self.remote.member_id:x}", silent_s=silent_s)
            self._connection.abort()
            return
        self._timer = self._loop.call_later(self._silence_timeout_s - silent_s, self._check_silence)
