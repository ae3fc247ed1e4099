"""The connections of a run: each a TCP connection of its own, dealt out over the endpoints and then over the clients.

Rules: connection n goes to endpoint n modulo their number, as in etcd's tool: fewer connections than endpoints leave endpoints out. All
must be up before the run starts; one that breaks during it is dialled again by gRPC, and what is sent meanwhile fails at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from kvserver.cli.bench.loads import Kind
from kvserver.cli.bench.runner import Failure
from kvserver.client import ClientConfig, ClientError, ConnectError, ServerError, methods
from kvserver.client.connection import Connection, Metadata
from kvserver.client.errors import UNAVAILABLE

_PATHS = {Kind.READ: methods.RANGE.path, Kind.WRITE: methods.PUT.path}


class Link:
    """One connection, as clients use it. `timeout_s` (None: no limit) is one request's."""

    def __init__(self, connection: Connection, metadata: Metadata, timeout_s: float | None) -> None:
        self._calls = {kind: connection.raw_caller(path) for kind, path in _PATHS.items()}
        self._metadata = metadata
        self._timeout_s = timeout_s

    async def send(self, kind: Kind, body: bytes) -> Failure | None:
        """Send one request, once; None when it was answered, else what went wrong."""
        try:
            await self._calls[kind](body, self._timeout_s, self._metadata)
        except ServerError as error:
            return Failure(text=str(error), is_unavailable=error.code == UNAVAILABLE)
        except ClientError as error:
            return Failure(text=str(error))
        return None


@asynccontextmanager
async def open_links(config: ClientConfig, number: int, metadata: Metadata, timeout_s: float | None) -> AsyncIterator[list[Link]]:
    """`number` links that are up; they are closed at the end. Raises `ConnectError` that names every endpoint that can't be reached."""
    endpoints = config.endpoints
    connections = [Connection(endpoints[at % len(endpoints)], config, own_socket=True) for at in range(number)]
    try:
        await _wait_dialled(connections, config.dial_timeout_s)
        yield [Link(connection, metadata, timeout_s) for connection in connections]
    finally:
        for connection in connections:
            await connection.close()


async def _wait_dialled(connections: Sequence[Connection], timeout_s: float) -> None:
    reasons: dict[str, str] = {}

    async def dial(connection: Connection) -> None:
        try:
            await connection.wait_dialled(timeout_s)
        except ConnectError as error:
            reasons.update(error.reasons)

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(dial(connection), name=f"dial {connection.endpoint.text}")
    if reasons:
        raise ConnectError(reasons)
