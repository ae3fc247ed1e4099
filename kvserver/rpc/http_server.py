"""HTTP/1.1 on sockets that are already bound: uvicorn's protocol, without uvicorn's server.

Purpose: serve an ASGI application inside our loop. uvicorn's `Server` brings signal handlers, a polling main loop and a log configuration
of its own; its protocol class needs none of them.

Limits (`HttpLimits`; a client beyond them is disconnected): the size of a request line with its headers, the time until they are complete,
the requests sent ahead of their answers, the connections at a time. Bodies are never kept beyond uvicorn's 64 KiB window, because no
endpoint takes one.

Rules: nothing that a client sends is logged above debug; an exception in the application is logged by uvicorn's error logger, which
`StdlibBridge` carries to ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kvserver.config import Url
from kvserver.logs import Logger
from kvserver.rpc.ports import bind_listener

__all__ = ["HttpLimits", "HttpServer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a client may take: `max_pipelined` requests that wait for the answers to those before them, `first_request_timeout_s` from the
    connection to the end of the first request's headers, `next_request_timeout_s` from an answer to the end of the next one's.
    """

    max_head_bytes: int = 32 * 1024
    max_connections: int = 256
    max_pipelined: int = 8
    first_request_timeout_s: float = 10.0
    next_request_timeout_s: float = 75.0


_DEFAULT_LIMITS: Final = HttpLimits()


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the head of a request and on the time it may take."""

    def __init__(self, *, config: Config, state: ServerState, limits: HttpLimits) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._limits = limits
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
            return
        self._arm(self._limits.first_request_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)  # too much by the body that came along; on_headers_complete starts anew
        super().data_received(data)
        if self._head_bytes > self._limits.max_head_bytes and self._timer is not None and not self.transport.is_closing():
            self.send_400_response("Request header is too large.")

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._disarm()
        if self.transport.is_closing():
            return  # the rest of what came in one piece
        super().on_headers_complete()
        if len(self.pipeline) > self._limits.max_pipelined:
            self.pipeline.clear()
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._head_bytes = 0
            self._arm(self._limits.next_request_timeout_s)

    def _arm(self, timeout_s: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(timeout_s, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class HttpServer:
    """One ASGI application on one or several addresses. Made and used on the loop."""

    def __init__(self, app: Starlette, *, logger: Logger, limits: HttpLimits = _DEFAULT_LIMITS) -> None:
        self._logger = logger
        self._limits = limits
        self._state = ServerState()
        self._config = Config(
            app,
            loop="none",
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.next_request_timeout_s) + 1,  # ours ends first
        )
        self._config.load()
        self._servers: list[asyncio.Server] = []

    async def start(self, urls: Sequence[Url]) -> tuple[Url, ...]:
        """Listen and serve; returns the URLs with the ports that were bound (for port 0).

        Raises `ListenError` when an address can't be bound; nothing is served then.
        """
        bound: list[Url] = []
        try:
            for url in urls:
                listener = bind_listener(url)
                server = await asyncio.get_running_loop().create_server(self._protocol, sock=listener)
                self._servers.append(server)
                bound.append(Url(host=url.host, port=int(listener.getsockname()[1])))
        except BaseException:
            await self.stop(0.0)
            raise
        for url in bound:
            self._logger.info("serving client requests", address=url.netloc, protocol="http", tls=False)
        return tuple(bound)

    async def stop(self, grace_s: float = 0.3) -> None:
        """Stop listening, give requests being served `grace_s` seconds, then cut every connection. May be called twice."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=grace_s)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def _protocol(self) -> asyncio.Protocol:
        return _BoundedProtocol(config=self._config, state=self._state, limits=self._limits)
