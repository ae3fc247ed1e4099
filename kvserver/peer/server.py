"""The listening half: accepts connections on the peer URLs, judges the hello, and hands the connection to its stream.

Rules
- A connection proves itself within the hello's timeout, in a frame of at most 4 KiB; what begins like HTTP gets one answer (http) and goes.
- One message stream per remote member: a new one replaces the old one, which a restarted or cut-off peer may have left behind.
- A refused hello is answered with its reason; it is logged when the reason changes for that dialler, not per attempt.

Bounds: `max_accepted_connections` at a time, over which a connection is closed at once; remembered refusals: `_MAX_REMEMBERED_REFUSALS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kvserver.config.urls import Url
from kvserver.logs import Logger
from kvserver.peer import http
from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import RefusedError
from kvserver.peer.frames import Frame
from kvserver.peer.handshake import (
    Identity,
    Membership,
    RemoteIdentity,
    StreamKind,
    decode_hello,
    judge_hello,
    remote_identity,
    reply_frame,
)
from kvserver.peer.options import TransportOptions
from kvserver.types import NodeId

_MAX_REMEMBERED_REFUSALS: Final = 256

StreamAcceptor = Callable[[FrameConnection, RemoteIdentity, StreamKind], None]
"""Takes over an accepted connection: sets `connection.owner`."""


class PeerServer:
    """See the module."""

    def __init__(
        self,
        *,
        identity: Identity,
        membership: Membership,
        pages: http.PeerPages,
        accept: StreamAcceptor,
        options: TransportOptions,
        logger: Logger,
    ) -> None:
        self._identity = identity
        self._membership = membership
        self._pages = pages
        self._accept = accept
        self._options = options
        self._logger = logger
        self._servers: list[asyncio.Server] = []
        self._connections: set[FrameConnection] = set()
        self._refusals: dict[NodeId, str] = {}
        self._is_full = False

    @property
    def addresses(self) -> tuple[Url, ...]:
        """Where it listens, ports resolved."""
        sockets = [sock for server in self._servers for sock in server.sockets]
        return tuple(Url(host=sock.getsockname()[0], port=sock.getsockname()[1]) for sock in sockets)

    async def start(self, urls: Sequence[Url]) -> None:
        """Listen on every URL. Raises OSError, with nothing left listening, if one can't be bound."""
        loop = asyncio.get_running_loop()
        try:
            for url in urls:
                self._servers.append(await loop.create_server(self._new_connection, url.bind_host, url.port))
        except OSError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening and close every accepted connection."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        if connections:
            await asyncio.wait([connection.lost for connection in connections])
        for server in servers:
            await server.wait_closed()

    def _new_connection(self) -> FrameConnection:
        return AcceptedConnection(_Waiting(self), self._logger, self._pages)

    def opened(self, connection: FrameConnection) -> bool:
        """Count a new connection; False if there are too many."""
        full = len(self._connections) >= self._options.max_accepted_connections
        if full != self._is_full:
            self._is_full = full
            if full:
                self._logger.warning("too many peer connections: new ones are closed", limit=self._options.max_accepted_connections)
        if full:
            return False
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        return True

    def greet(self, connection: FrameConnection, frame: Frame) -> None:
        """Judge the first frame. Raises FrameError if it is no hello."""
        hello = decode_hello(frame)
        refused = judge_hello(hello, self._identity, self._membership)
        connection.write(reply_frame(self._identity, refused, self._options.max_frame_size_bytes))
        if refused is not None:
            self._note_refused(NodeId(hello.from_member_id), refused, connection)
            connection.close()
            return
        remote = remote_identity(hello)
        self._refusals.pop(remote.member_id, None)
        connection.decoder.max_frame_size_bytes = self._options.max_frame_size_bytes
        self._accept(connection, remote, StreamKind(hello.stream_kind))

    def _note_refused(self, dialler: NodeId, refused: RefusedError, connection: FrameConnection) -> None:
        if self._refusals.get(dialler) == str(refused):
            return
        if len(self._refusals) >= _MAX_REMEMBERED_REFUSALS:
            self._refusals.pop(next(iter(self._refusals)))
        self._refusals[dialler] = str(refused)
        self._logger.warning("peer refused", dialler_id=f"{dialler:x}", address=connection.peer_address, reason=str(refused))

    @property
    def hello_timeout_s(self) -> float:
        """How long a connection may take to prove itself."""
        return self._options.hello_timeout_s


class _Waiting:
    """Owner of an accepted connection until its hello is judged."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._timer: asyncio.TimerHandle | None = None

    def on_opened(self, connection: FrameConnection) -> None:
        """Count it, and begin to wait for the hello."""
        if not self._server.opened(connection):
            connection.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._server.hello_timeout_s, connection.abort)

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        """The hello; whoever takes the connection over becomes its owner."""
        self._stop_timer()
        self._server.greet(connection, frame)

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Nothing to do: only whole frames matter here."""

    def on_writable(self, connection: FrameConnection) -> None:
        """Nothing to do: nothing waits to be written."""

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        """It went before its hello, or was refused."""
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class AcceptedConnection(FrameConnection):
    """A connection from outside: tells HTTP from frames by its first bytes."""

    def __init__(self, owner: _Waiting, logger: Logger, pages: http.PeerPages) -> None:
        super().__init__(owner, logger)
        self._waiting = owner
        self._pages = pages
        self._is_first = True
        self._http_head: bytearray | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._waiting.on_opened(self)

    def buffer_updated(self, nbytes: int) -> None:
        if self._http_head is not None:
            self._http_head += self.decoder.get_buffer()[:nbytes]
            self._answer(self._http_head)
        elif self._is_first and self._begins_http(nbytes):
            self._answer(self._http_head or bytearray())
        else:
            super().buffer_updated(nbytes)

    def _begins_http(self, nbytes: int) -> bool:
        """Look at the first four bytes, once they are there."""
        begin = self.decoder.buffered() + bytes(self.decoder.get_buffer()[:nbytes])
        self._is_first = len(begin) < 4
        if self._is_first or not http.looks_like_http(begin):
            return False
        self._http_head = bytearray(begin)
        return True

    def _answer(self, head: bytearray) -> None:
        response = http.answer(bytes(head), self._pages)
        if response is not None and self.is_open:
            self.write([response])
            self.close()
