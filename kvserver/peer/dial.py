"""Dialling a peer: connect, say hello, judge the answer.

Rules: what a dialler receives is small by protocol, so the bound of the hello stays on its connection (the link raises it for answers to
its requests). Connecting and the hello have a
timeout each; on any failure the connection is gone when the error is raised. The returned connection may have been lost in the same loop
turn: look at `is_open`.
"""

from __future__ import annotations

import asyncio
from random import Random

from kvserver.config.urls import Url
from kvserver.logs import Logger
from kvserver.pb import peer_pb2
from kvserver.peer.connection import FrameConnection
from kvserver.peer.errors import ConnectionClosedError, FrameError
from kvserver.peer.frames import Frame
from kvserver.peer.handshake import Identity, RemoteIdentity, StreamKind, check_reply, decode_hello_reply, hello_frame
from kvserver.peer.options import TransportOptions
from kvserver.types import NodeId


class Backoff:
    """Delays that double up to a maximum, less up to half by chance, so that members don't dial in step."""

    def __init__(self, options: TransportOptions, random: Random) -> None:
        self._options = options
        self._random = random
        self._delay_s = options.backoff_min_s

    def next_delay_s(self) -> float:
        """How long to wait before the next attempt."""
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, self._options.backoff_max_s)
        return delay_s * (1 - self._random.random() / 2)

    def reset(self) -> None:
        """An attempt succeeded: begin from the minimum again."""
        self._delay_s = self._options.backoff_min_s


class _Greeter:
    """Owner of a dialled connection until the hello is answered."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[peer_pb2.HelloReply] = asyncio.get_running_loop().create_future()

    def on_frame(self, connection: FrameConnection, frame: Frame) -> None:
        reply = decode_hello_reply(frame)
        if self.reply.done():
            raise FrameError("a second hello reply came")
        self.reply.set_result(reply)

    def on_received(self, connection: FrameConnection, count_bytes: int) -> None:
        """Nothing to do: only whole frames matter here."""

    def on_writable(self, connection: FrameConnection) -> None:
        """Nothing to do: nothing is written behind the hello."""

    def on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        if not self.reply.done():
            self.reply.set_exception(ConnectionClosedError(f"connection closed during the hello{f': {error}' if error else ''}"))


async def dial(
    url: Url, to: NodeId, kind: StreamKind, *, identity: Identity, options: TransportOptions, logger: Logger
) -> tuple[FrameConnection, RemoteIdentity]:
    """An accepted connection to member `to` at `url`, and who answered; the caller sets its `owner` at once.

    Raises OSError or TimeoutError if nobody answers, RefusedError if the peer refuses or is somebody else, ConnectionClosedError if it
    hangs up.
    """
    loop = asyncio.get_running_loop()
    greeter = _Greeter()
    async with asyncio.timeout(options.dial_timeout_s):
        _, connection = await loop.create_connection(lambda: FrameConnection(greeter, logger), url.host, url.port)
    try:
        connection.write(hello_frame(identity, to, kind))
        async with asyncio.timeout(options.hello_timeout_s):
            reply = await greeter.reply
        remote = check_reply(reply, identity, to)
    except BaseException:
        _abandon(connection, greeter)
        raise
    connection.send_bound_bytes = min(reply.max_frame_size_bytes or options.max_frame_size_bytes, options.max_frame_size_bytes)
    return connection, remote


def _abandon(connection: FrameConnection, greeter: _Greeter) -> None:
    """Close, and leave no unretrieved error behind."""
    connection.abort()
    if not greeter.reply.cancel() and not greeter.reply.cancelled():
        greeter.reply.exception()
