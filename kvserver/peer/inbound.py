"""The incoming half of one peer: its messages, and the pongs back.

Rules: only PING and RAFT_MESSAGE may come; a message is decoded, checked (codec) and handed over in the call that brought it. Silence for
`2 * ping_timeout_s` ends the stream, unless this member itself has stopped reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kvserver.logs import Logger
from kvserver.peer.codec import decode_message
from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import Frame, FrameType, encode_frame
from kvserver.peer.handshake import RemoteIdentity
from kvserver.peer.link import PING_NONCE
from kvserver.types import NodeId
from raft.messages import Message
from raft.types import Index


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
        silence_timeout_s: float,
        events: InboundEvents,
        logger: Logger,
    ) -> None:
        self.remote = remote
        self._logger = logger
        self._connection = connection
        self._self_id = self_id
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
        """A message or a ping."""
        if frame.type is FrameType.RAFT_MESSAGE:
            message, floor = decode_message(frame, sender=self.remote.member_id, receiver=self._self_id)
            self._events.on_message(message, floor)
        elif frame.type is FrameType.PING and len(frame.meta) == PING_NONCE.size:
            frame.take(())
            if connection.is_writable:  # a peer that doesn't read its pongs gets no more of them
                connection.write(encode_frame(FrameType.PONG, frame.meta))
        else:
            raise FrameError(f"{frame.type.name} of {len(frame.meta)} bytes came on a message stream")

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Something arrived from the peer."""
        self._last_received_s = self._loop.time()
        self._events.on_received(self.remote.member_id, count_bytes)
        self._events.on_contact(self.remote.member_id)

    def on_writable(self, connection: FrameConnection) -> None:
        """Nothing waits: pongs that found no room are left out."""

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """The stream is over."""
        self._timer.cancel()
        self._events.on_end(self)

    def _check_silence(self) -> None:
        silent_s = 0.0 if self._is_paused else self._loop.time() - self._last_received_s
        if silent_s >= self._silence_timeout_s:
            self._logger.warning("peer stream closed: silent for too long", peer_id=f"{self.remote.member_id:x}", silent_s=silent_s)
            self._connection.abort()
            return
        self._timer = self._loop.call_later(self._silence_timeout_s - silent_s, self._check_silence)
