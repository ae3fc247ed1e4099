"""A grpcio server over hand-made handlers, and what it logged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from kvserver.api import Api, BidiHandler, MethodName, StreamHandler, UnaryHandler
from kvserver.config import Url
from kvserver.logs import Level, Logger
from kvserver.metrics import Metrics
from kvserver.rpc import GrpcLimits, GrpcServer

ANY_PORT = Url(host="127.0.0.1", port=0)


class Lines:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write_line(self, line: str) -> None:
        self.records.append(json.loads(line))

    def of_level(self, level: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["level"] == level]


@dataclass
class Running:
    """A served api with a client channel to it."""

    server: GrpcServer
    url: Url
    channel: grpc.aio.Channel
    metrics: Metrics
    lines: Lines
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def unary(self, path: str) -> Callable[..., Any]:
        """A raw call: bytes in, bytes out."""
        return self.channel.unary_unary(path)


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
async def serve(lines: Lines) -> AsyncIterator[Serve]:
    stack = AsyncExitStack()

    async def start(
        unary: dict[MethodName, UnaryHandler] | None = None,
        server_streams: dict[MethodName, StreamHandler] | None = None,
        bidi_streams: dict[MethodName, BidiHandler] | None = None,
        limits: GrpcLimits | None = None,
    ) -> Running:
        metrics = Metrics(version="test", process=False)
        api = Api(
            unary=unary or {},
            server_streams=server_streams or {},
            bidi_streams=bidi_streams or {},
            health=None,  # type: ignore[arg-type]
            probes=None,  # type: ignore[arg-type]
            debug=None,  # type: ignore[arg-type]
        )
        server = GrpcServer(api, limits=limits or GrpcLimits(), metrics=metrics, logger=Logger(lines, level=Level.DEBUG))
        (url,) = await server.start([ANY_PORT])
        stack.push_async_callback(server.stop, 0.0)
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(url.netloc, options=options))
        return Running(server, url, channel, metrics, lines)

    yield start
    await stack.aclose()
