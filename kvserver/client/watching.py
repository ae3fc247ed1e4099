"""Watching through any endpoint, across failures of endpoints: no gap, no repetition.

    async with client.watch(pb.WatchCreateRequest(key=b"a", range_end=b"b")) as watch:
        async for message in watch:
            ...

Rules
- One watcher, one stream. When the stream breaks, the next endpoint is asked to go on from the revision behind the last one that was told
  (of events, of a progress message, or of the creation), as long as it takes; so what a caller sees is one sequence of messages.
- Fragments are put together: a message has whole revisions.
- The creation is not shown. The last message is a cancelled one: `compact_revision` says that the next revision is compacted,
  `cancel_reason` why the server refused. Errors that another endpoint can't mend are raised as `ServerError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from kvserver.client.connection import Connection, Duplex, Metadata
from kvserver.client.errors import INTERNAL, UNAVAILABLE, ConnectError, ServerError
from kvserver.client.methods import WATCH
from kvserver.client.policy import backoff_s
from kvserver.client.pool import EndpointPool
from kvserver.pb import rpc_pb2 as pb

__all__ = ["Watch"]

_MENDABLE: Final = frozenset({UNAVAILABLE, INTERNAL})
_REQUIRE_LEADER: Final = ("hasleader", "true")


class Watch:
    """See above. Made by `Client.watch`; bound to the client's loop, and used by one task (but for `request_progress`)."""

    def __init__(
        self,
        pool: EndpointPool,
        authenticate: Callable[[Connection], Awaitable[Metadata]],
        request: pb.WatchCreateRequest,
        *,
        require_leader: bool,
    ) -> None:
        self._pool = pool
        self._authenticate = authenticate
        self._request = pb.WatchCreateRequest()
        self._request.CopyFrom(request)
        self._extra: Metadata = (_REQUIRE_LEADER,) if require_leader else ()
        self._call: Duplex[pb.WatchRequest, pb.WatchResponse] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the watch."""
        if self._call is not None:
            self._call.cancel()

    async def request_progress(self) -> None:
        """Ask how far the watch has come; the answer is a message without events. Nothing happens while there is no stream."""
        if self._call is not None:
            try:
                await self._call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            except ServerError:
                return  # the stream has just broken: whoever reads the messages opens another

    async def __aiter__(self) -> AsyncIterator[pb.WatchResponse]:
        """The messages, until the watch is cancelled. Raises `ConnectError` (no endpoint at the start) and `ServerError`."""
        connection: Connection | None = None
        attempt = 0
        while True:
            try:
                connection = await self._pool.wait_connected(avoid=connection)
                async for message in self._messages(connection):
                    attempt = 0
                    yield message
                    if message.canceled:
                        return
            except ConnectError:
                if self._call is None:
                    raise
            except ServerError as error:
                if error.code not in _MENDABLE:
                    raise
            finally:
                self.close()
            attempt += 1
            await asyncio.sleep(backoff_s(attempt))

    async def _messages(self, connection: Connection) -> AsyncIterator[pb.WatchResponse]:
        """The messages of one stream, from the revision on that is next. Raises `ServerError` at its end."""
        metadata = (*await self._authenticate(connection), *self._extra)
        call = self._call = connection.duplex(WATCH, metadata)
        await call.write(pb.WatchRequest(create_request=self._request))
        pieces: list[pb.WatchResponse] = []
        while True:
            message = await call.read()
            if message.created and not message.canceled:
                if not self._request.start_revision:
                    self._request.start_revision = message.header.revision + 1
                continue
            if message.fragment:
                pieces.append(message)
                continue
            if pieces:
                message = _joined([*pieces, message])
                pieces = []
            told = message.events[-1].kv.mod_revision if message.events else message.header.revision
            if not message.canceled:
                self._request.start_revision = max(self._request.start_revision, told + 1)
            yield message


def _joined(pieces: list[pb.WatchResponse]) -> pb.WatchResponse:
    whole = pb.WatchResponse()
    for piece in pieces:
        whole.MergeFrom(piece)
    whole.fragment = False
    return whole
