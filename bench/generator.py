"""A closed-loop load generator in a process of its own: `concurrency` callers over a few connections, unique keys, one JSON line as the
result."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time

import grpc
import uvloop

from kvserver.pb import rpc_pb2

MAX_CONNECTIONS = 10


async def load(target: str, total: int, concurrency: int, value_size_bytes: int) -> dict[str, float]:
    """Put `total` values and return the rate and latency quantiles in milliseconds."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(min(MAX_CONNECTIONS, concurrency))]
    calls = [
        channel.unary_unary(
            "/etcdserverpb.KV/Put",
            request_serializer=rpc_pb2.PutRequest.SerializeToString,
            response_deserializer=rpc_pb2.PutResponse.FromString,
        )
        for channel in channels
    ]
    value = b"v" * value_size_bytes
    numbers = itertools.count()
    prefix = f"bench/{time.time_ns()}/"
    latencies_s: list[float] = []

    async def caller(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        for number in numbers:
            if number >= total:
                return
            began = time.perf_counter()
            await call(rpc_pb2.PutRequest(key=f"{prefix}{number}".encode(), value=value))
            latencies_s.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller(calls[number % len(calls)]) for number in range(concurrency)))
    elapsed_s = time.perf_counter() - began
    for channel in channels:
        await channel.close()
    cuts = statistics.quantiles(latencies_s, n=100)
    return {"rate": len(latencies_s) / elapsed_s, "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--total", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--value-size", type=int, default=256)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(load(options.target, options.total, options.concurrency, options.value_size))))
