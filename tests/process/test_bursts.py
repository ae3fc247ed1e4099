"""Real members under bursts of calls and connections: nobody is cut off who could be served, and memory stays within its budget."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic

import grpc
import grpc.aio
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess
from tests.process.large_puts import MEGABYTE, PUT, peak_of

pytestmark = pytest.mark.process

BUDGET_BYTES = 128 * MEGABYTE


def test_two_thousand_clients_of_bench_are_all_served(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node()
    node.start()
    command = ["bench", "put", "--total=2500", "--val-size=256", "--clients=2000", "--conns=50"]
    ended = subprocess.run(
        [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={node.endpoint}", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "rror" not in ended.stdout


async def put_at_once(endpoint: str, *, connections: int, calls: int, size: int) -> Counter[str]:
    """So many puts, all begun at once; how they ended."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(endpoint, options=options) for _ in range(connections)]

    async def put(number: int) -> str:
        call: grpc.aio.UnaryUnaryMultiCallable = channels[number % connections].unary_unary(PUT)
        request = rpc_pb2.PutRequest(key=b"key%05d" % number, value=b"v" * size)
        try:
            await call(request.SerializeToString(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return "ok"

    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        return Counter(await asyncio.gather(*(put(number) for number in range(calls))))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def test_a_burst_on_one_connection_waits_in_the_client_and_is_served(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(f"--memory-budget={BUDGET_BYTES}")
    node.start()
    assert asyncio.run(put_at_once(node.endpoint, connections=1, calls=1500, size=1000)) == {"ok": 1500}


def test_a_burst_beyond_every_bound_costs_no_more_than_the_budget(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(f"--memory-budget={BUDGET_BYTES}")
    node.start()
    with peak_of(node) as peak:
        outcomes = asyncio.run(put_at_once(node.endpoint, connections=100, calls=3000, size=15_000))
    assert outcomes["ok"] > 100
    assert sum(outcomes.values()) - outcomes["ok"] > 100
    assert peak[0] < BUDGET_BYTES * 3 // 4  # without the bounds: more than all of it
    assert node.metrics()['kvserver_calls_refused_total{kind="unary"}'] >= outcomes["etcdserver: too many requests"]
    assert asyncio.run(put_at_once(node.endpoint, connections=1, calls=1, size=1)) == {"ok": 1}
    assert node.metrics()['kvserver_accounted_memory_bytes{owner="calls"}'] == 0


def test_pages_that_nobody_reads_delay_no_client(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node()
    node.start()
    pipelining = [pipelined(node.http_port) for _ in range(60)]
    done = threading.Event()
    scraper = threading.Thread(target=scrape_until, args=(node, done))
    scraper.start()
    try:
        began_s = monotonic()
        assert asyncio.run(put_at_once(node.endpoint, connections=1, calls=5, size=1)) == {"ok": 5}
        assert monotonic() - began_s < 2.0
    finally:
        done.set()
        scraper.join()
        for each in pipelining:
            each.close()


def pipelined(port: int) -> socket.socket:
    """A connection that asks a hundred times and reads nothing."""
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
    return made


def scrape_until(node: NodeProcess, done: threading.Event) -> None:
    while not done.is_set():
        node.metrics()
