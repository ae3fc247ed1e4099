"""Puts of one megabyte from many clients at once, and the memory of who takes them; shared by the tests of bounds and of hard limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess

MEGABYTE = 1_000_000
PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


@contextmanager
def peak_of(node: NodeProcess) -> Iterator[list[int]]:
    """The largest anonymous memory seen within the block, in bytes."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], node.anonymous_bytes())

    watcher = threading.Thread(target=watch, name="watch-memory")
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


async def put_all(endpoint: str, *, clients: int, puts: int, first: int = 0) -> list[str]:
    """Put values of one megabyte under the keys from number `first` on, each client over a connection of its own; what was refused."""
    numbers, failures = iter(range(first, first + puts)), []

    async def client() -> None:
        async with grpc.aio.insecure_channel(endpoint, options=OPTIONS) as channel:
            call: Any = channel.unary_unary(PUT)
            for number in numbers:
                request = rpc_pb2.PutRequest(key=b"key%05d" % number, value=b"%05d" % number + b"v" * (MEGABYTE - 5))
                try:
                    await call(request.SerializeToString(), timeout=120)
                except grpc.aio.AioRpcError as error:
                    failures.append(f"{number}: {error.details()}")

    await asyncio.gather(*(client() for _ in range(clients)))
    return failures


async def count_keys(endpoint: str) -> int:
    async with grpc.aio.insecure_channel(endpoint, options=OPTIONS) as channel:
        call: Any = channel.unary_unary(RANGE)
        request = rpc_pb2.RangeRequest(key=b"key", range_end=b"kez", count_only=True)
        return rpc_pb2.RangeResponse.FromString(await call(request.SerializeToString(), timeout=60)).count
