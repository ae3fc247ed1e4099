"""The load at a rate: when puts are sent, and from when their latency counts."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from bench import workloads
from bench.workloads import LoadProcess, Workload, run_load
from kvserver.pb import rpc_pb2


class Server:
    """Answers puts at once, but for the first, which waits for `stall_s`."""

    def __init__(self, stall_s: float) -> None:
        self.puts = 0
        self._stall_s = stall_s

    async def put(self, request: rpc_pb2.PutRequest, context: grpc.aio.ServicerContext) -> rpc_pb2.PutResponse:
        self.puts += 1
        if self.puts == 1:
            await asyncio.sleep(self._stall_s)
        return rpc_pb2.PutResponse()


@asynccontextmanager
async def serving(stall_s: float) -> AsyncIterator[tuple[Server, str]]:
    """The server and its endpoint."""
    answers = Server(stall_s)
    handler = grpc.unary_unary_rpc_method_handler(answers.put, rpc_pb2.PutRequest.FromString, rpc_pb2.PutResponse.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Put": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield answers, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def options(endpoint: str, **values: object) -> argparse.Namespace:
    settings = {"prefix": "p", "puts": 40, "seconds": 30.0, "value_bytes": 100, "clients": 4, "rate": 0.0}
    settings |= {"one_key": False, "key_count": 1000}
    return argparse.Namespace(endpoint=endpoint, **{**settings, **values})


async def test_puts_at_a_rate_are_spread_over_the_time_whatever_the_number_of_clients() -> None:
    async with serving(0.0) as (server, endpoint), asyncio.timeout(60):
        done = await run_load(options(endpoint, rate=100.0, clients=8))
    assert len(done.done_s) == server.puts == 40
    assert done.ended_s - done.began_s >= 0.39  # put 39 is due then


async def test_without_a_rate_puts_follow_each_other() -> None:
    async with serving(0.0) as (_, endpoint), asyncio.timeout(60):
        done = await run_load(options(endpoint))
    assert len(done.done_s) == 40
    assert not done.failures


async def test_with_a_rate_the_wait_behind_a_stall_is_part_of_the_latency() -> None:
    async with serving(0.5) as (_, endpoint), asyncio.timeout(60):
        late = await run_load(options(endpoint, rate=100.0, clients=1))
    assert len(late.done_s) == 40
    assert min(late.latencies_s) >= 0.1  # the last one was due after 0.39 s, and the stall held up all of them until 0.5 s


@pytest.mark.parametrize("rate", [0.0, 50.0])
async def test_a_load_ends_when_its_seconds_are_over(rate: float) -> None:
    async with serving(0.0) as (_, endpoint), asyncio.timeout(60):
        done = await run_load(options(endpoint, puts=1 << 40, seconds=0.3, rate=rate))
    assert 0.3 <= done.ended_s - done.began_s < 20
    assert done.done_s


async def test_a_result_larger_than_a_pipe_arrives_whole_though_stdout_is_unbuffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    puts = 3_000  # about 130 KB of figures, twice what a pipe holds
    async with serving(0.0) as (_, endpoint), asyncio.timeout(100):
        load = await asyncio.to_thread(
            LoadProcess, endpoint, Workload(puts=puts, value_bytes=10, clients=8), prefix="p", puts=puts, seconds=90
        )
        done = await asyncio.to_thread(load.result)
    assert len(done.done_s) == len(done.latencies_s) == puts


def test_a_result_that_is_cut_is_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "load.py"
    script.write_text("""print('begun', flush=True); print('{"began_s": 1.0, "done_s": [1.')""")
    monkeypatch.setattr(workloads, "__file__", str(script))
    load = LoadProcess("127.0.0.1:1", Workload(puts=1, value_bytes=1), prefix="p", puts=1, seconds=10)
    with pytest.raises(RuntimeError, match="can't be read"):
        load.result()
