"""A connection as an async stream of frames, with backpressure both ways: what snapshot transfers are made of.

Rules: one reader, one writer, who looks at `is_writable` before it writes more. `receive` gives frames in order; while one waits to be
received, reading is paused (frames that were already in the receive buffer still come, so the queue holds at most what one buffer does).
`send` returns when the connection's buffer has room again.
Caveat: data is copied out of the frame once, when it arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import ConnectionClosedError
from kvserver.peer.frames import Frame, FrameType


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedFrame:
    """A verified frame with its data as one bytes object."""

    type: FrameType
    meta: bytes
    data: bytes


class FrameStream:
    """Owner of a connection; create it, and set it as the connection's owner."""

    def __init__(self, connection: FrameConnection) -> None:
        self._connection = connection
        self._frames: deque[ReceivedFrame] = deque()
        self._changed = asyncio.Event()
        self._is_lost = False
        self._is_discarding = False

    @property
    def is_lost(self) -> bool:
        """The connection is over; frames that came before may still be received."""
        return self._is_lost or self._connection.lost.done()

    def receive_nowait(self) -> ReceivedFrame | None:
        """The next frame, if one is there."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        if not self._frames:
            self._connection.resume_reading()
        return frame

    async def receive(self) -> ReceivedFrame:
        """The next frame. Raises ConnectionClosedError when none will come."""
        while (frame := self.receive_nowait()) is None:
            if self.is_lost:
                raise ConnectionClosedError("connection closed by the peer")
            await self.wait_changed()
        return frame

    @property
    def is_open(self) -> bool:
        """Writing makes sense."""
        return self._connection.is_open and not self.is_lost

    def write(self, segments: list[bytes]) -> None:
        """Write without waiting. Raises ConnectionClosedError."""
        if not self.is_open:
            raise ConnectionClosedError("connection closed by the peer")
        self._connection.write(segments)

    @property
    def is_writable(self) -> bool:
        """The connection's buffer has room."""
        return self._connection.is_writable

    async def wait_changed(self) -> None:
        """Until a frame came, room came, or the connection went, after this call."""
        self._changed.clear()
        await self._changed.wait()

    async def wait_hangup(self, timeout_s: float) -> None:
        """Let the other side hang up first, so that it can read our last words; whatever still comes is discarded. Then close."""
        self._is_discarding = True
        self._frames.clear()
        self._connection.resume_reading()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._connection.lost)
        except TimeoutError:
            self._connection.abort()

    def close(self) -> None:
        """Send what is written, then close."""
        self._connection.close()

    def abort(self) -> None:
        """Close at once."""
        self._connection.abort()

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        """Queue it, and let the rest wait in the kernel."""
        data = frame.take((frame.data_size_bytes,))[0]
        if self._is_discarding:
            return
        self._frames.append(ReceivedFrame(type=frame.type, meta=frame.meta, data=data))
        connection.pause_reading()
        self._changed.set()

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Nothing to do: only whole frames matter here."""

    def on_writable(self, connection: FrameConnection) -> None:
        """Room in the connection's buffer."""
        self._changed.set()

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """The connection is over."""
        self._is_lost = True
        self._changed.set()
