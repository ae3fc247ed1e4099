"""Maintenance.Snapshot on the wire: a client that stops reading holds the stream up, not the memory, and is cut off in the end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from kvserver.api.guard import Guard
from kvserver.api.snapshot import CHUNK_BYTES, SnapshotService
from kvserver.pb import rpc_pb2

SIZE_BYTES = 64 << 20
PATH = "/etcdserverpb.Maintenance/Snapshot"


class View:
    is_learner = False
    leader_id = 1


class Clock:
    def monotonic_s(self) -> float:
        return 0.0


class Zeros:
    """A large copy of zeros, and how much of it was read."""

    size_bytes = SIZE_BYTES
    sha256 = hashlib.sha256(bytes(SIZE_BYTES)).digest()

    def __init__(self) -> None:
        self.read_bytes = 0
        self.held = 0
        self.let_go = asyncio.Event()

    async def read(self, offset: int, length_bytes: int) -> bytes:
        self.read_bytes += length_bytes
        return bytes(length_bytes)

    @asynccontextmanager
    async def open(self, *, deadline_s: float) -> AsyncIterator[Zeros]:
        self.held += 1
        try:
            yield self
        finally:
            self.held -= 1
            self.let_go.set()


def snapshot_of(source: Zeros, stall_s: float) -> Any:
    guard = Guard(view=View(), clock=Clock(), request_timeout_s=5.0)  # type: ignore[arg-type]
    return {("Maintenance", "Snapshot"): SnapshotService(guard=guard, source=source, stall_s=stall_s).snapshot}


async def test_the_whole_stream_arrives(serve) -> None:
    source = Zeros()
    running = await serve(server_streams=snapshot_of(source, 60.0))
    digest, seen = hashlib.sha256(), []
    async for raw in running.channel.unary_stream(PATH)(b""):
        seen.append(rpc_pb2.SnapshotResponse.FromString(raw))
        digest.update(seen[-1].blob if len(seen) <= SIZE_BYTES // CHUNK_BYTES else b"")
    assert (len(seen), seen[-1].blob) == (SIZE_BYTES // CHUNK_BYTES + 1, source.sha256)
    assert digest.digest() == source.sha256
    assert source.held == 0


async def test_a_client_that_stops_reading_is_read_ahead_for_by_little_and_then_cut_off(serve) -> None:
    source = Zeros()
    running = await serve(server_streams=snapshot_of(source, 0.5))
    call = running.channel.unary_stream(PATH)(b"")
    await call.read()
    async with asyncio.timeout(60):
        await source.let_go.wait()
    assert source.held == 0
    assert source.read_bytes < SIZE_BYTES // 2, "nobody reads, and all of it was sent"
    async with asyncio.timeout(60):
        with pytest.raises(grpc.aio.AioRpcError, match="etcdserver: request timed out"):
            await read_all(call)


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_client_that_cancels_lets_the_copy_go(serve) -> None:
    source = Zeros()
    running = await serve(server_streams=snapshot_of(source, 60.0))
    call = running.channel.unary_stream(PATH)(b"")
    await call.read()
    call.cancel()
    async with asyncio.timeout(60):
        await source.let_go.wait()
    assert source.held == 0
