"""Servers to test the client against: real gRPC, in this process, with scripted answers."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest

from kvserver.pb import rpc_pb2 as pb

Answer = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


def free_port() -> int:
    """A port that nobody listens on, below the range that the kernel hands out by itself."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@dataclass
class FakeServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Counts calls by path; answers each with the next scripted failure, or success.

    A hold is set when its call is there, which then is never answered.
    """

    port: int
    calls: list[str] = field(default_factory=list)
    failures: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    hang: bool = False
    holds: list[asyncio.Event] = field(default_factory=list)
    server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = handler_call_details.method

        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.calls.append(path)
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
            if self.hang:
                await asyncio.Event().wait()
            if self.holds:
                self.holds.pop().set()
                await asyncio.Event().wait()
            if self.failures:
                await context.abort(*self.failures.pop(0))
            if path.endswith("Authenticate"):
                return pb.AuthenticateResponse(token="secret").SerializeToString()
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((self,))
        assert self.server.add_insecure_port(self.endpoint) == self.port
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    """Three running servers."""
    started = [FakeServer(port=free_port()) for _ in range(3)]
    for server in started:
        await server.start()
    yield started
    for server in started:
        await server.stop()
