"""One TCP connection that carries frames: the IO under every peer stream.

Rules
- A connection has one owner at a time (`ConnectionOwner`), which gets its frames and its end, and may hand it on after the hello.
- Malformed input closes the connection with one log line, and nothing else: FrameError never leaves this module.
- Writing never blocks: `write` hands segments to the transport; `is_writable` says whether the owner should go on. The transport's own
  buffer is bounded by the owner's obedience: high-water mark plus what one call writes.
- `close` flushes, `abort` doesn't; `on_lost` comes exactly once, after either or when the other side goes.

Caveat: TCP_NOTSENT_LOWAT keeps bulk out of the kernel's send buffer where the platform has it, so that an urgent frame overtakes it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol, cast

from kvserver.logs import Logger
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import Frame, FrameDecoder

WRITE_HIGH_WATER_BYTES: Final = 256 * 1024
NOT_SENT_LOW_WATER_BYTES: Final = 128 * 1024
HELLO_FRAME_BOUND_BYTES: Final = 4 * 1024
"""Bound on a frame before the hello is accepted: a stranger can't make us hold more."""

KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3


class ConnectionOwner(Protocol):
    """Who gets what a connection brings. All calls come on the loop and must not block."""

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        """A verified frame; its data must be taken before this returns. May raise FrameError: the connection closes."""

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """All frames of one read have been given out; it brought `count_bytes`."""

    def on_writable(self, connection: FrameConnection) -> None:
        """The transport's buffer drained after `is_writable` was False."""

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """The connection is over; nothing follows."""


class FrameConnection(asyncio.BufferedProtocol):
    """Decodes frames for its owner and writes segments for it."""

    def __init__(self, owner: ConnectionOwner, logger: Logger, *, max_frame_size_bytes: int = HELLO_FRAME_BOUND_BYTES) -> None:
        self.owner = owner
        self._logger = logger
        self.decoder = FrameDecoder(max_frame_size_bytes)
        self.is_writable = False
        self.send_bound_bytes = max_frame_size_bytes
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._is_reading_paused = False

    @property
    def is_open(self) -> bool:
        """Between the connection's start and its close."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def peer_address(self) -> str:
        """The other side's address, for logs."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if name else "unknown"

    @property
    def unsent_bytes(self) -> int:
        """Bytes written and still in this process."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        _set_socket_options(self._transport.get_extra_info("socket"))
        self.is_writable = True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self.decoder.received(nbytes):
                self.owner.on_frame(self, frame)
                if not self.is_open:
                    return
            self.owner.on_received(self, nbytes)
        except FrameError as error:
            self._logger.warning("peer connection closed: malformed input", address=self.peer_address, reason=str(error))
            self.abort()

    def write(self, segments: list[bytes]) -> None:
        """Hand the segments to the transport; ignored once the connection is closing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(segments)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self.owner.on_writable(self)

    def pause_reading(self) -> None:
        """Let the other side's bytes wait in the kernel; at most one receive buffer of frames is given out after this."""
        if self.is_open and not self._is_reading_paused:
            self._is_reading_paused = True
            cast(asyncio.Transport, self._transport).pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self.is_open and self._is_reading_paused:
            self._is_reading_paused = False
            cast(asyncio.Transport, self._transport).resume_reading()

    def close(self) -> None:
        """Send what is written, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what is not yet sent is lost."""
        self.is_writable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_writable = False
        if not self.lost.done():
            self.lost.set_result(None)
        self.owner.on_lost(self, exc)


def _set_socket_options(sock: socket.socket | None) -> None:
    """Low latency, keepalive, little unsent data in the kernel. A socket without one of these options works without it."""
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_NOTSENT_LOWAT", NOT_SENT_LOW_WATER_BYTES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
