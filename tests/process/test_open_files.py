"""A real member whose file descriptors are used up by others: it goes on, and so does what is connected."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import grpc.aio
import pytest

from kvserver.open_files import LEAST_FILES
from kvserver.pb import rpc_pb2
from kvserver.testing.processes import NodeProcess

pytestmark = pytest.mark.process

PUT = "/etcdserverpb.KV/Put"
SMALL_SEGMENTS = "--wal-segment-bytes=65536"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GET = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"


def allowed(files: int) -> tuple[str, ...]:
    """A launcher after which a process may open so many files, and never more."""
    return ("/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")


@contextmanager
def connections(port: int, count: int, first: bytes = PREFACE) -> Iterator[int]:
    """So many connections that say hello and nothing more; gives how many are still open after a moment."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            each = socket.create_connection(("127.0.0.1", port), timeout=5)
            made.append(each)
            with suppress(OSError):  # closed at once: there are too many
                each.sendall(first)
        until_s = time.monotonic() + 5
        yield sum(is_open(each, until_s) for each in made)
    finally:
        for each in made:
            each.close()


def is_open(connection: socket.socket, until_s: float) -> bool:
    """Whether the other side has answered and not closed it."""
    connection.settimeout(max(0.01, until_s - time.monotonic()))
    try:
        return bool(connection.recv(1))
    except OSError:
        return False


async def put_some(call: grpc.aio.UnaryUnaryMultiCallable, count: int) -> None:
    for number in range(count):
        await call(rpc_pb2.PutRequest(key=b"k%d" % number, value=b"v" * 30_000).SerializeToString(), timeout=10)


def files_of(node: NodeProcess) -> list[int]:
    return sorted(int(name) for name in os.listdir(f"/proc/{node.pid}/fd"))


def test_clients_that_use_up_the_descriptors_are_turned_away_and_the_member_goes_on(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(SMALL_SEGMENTS)
    node.launcher = allowed(256)
    node.start()

    async def write_beside_a_crowd() -> None:
        async with grpc.aio.insecure_channel(node.endpoint) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable = channel.unary_unary(PUT)
            await put_some(call, 1)
            with connections(node.client_port, 300) as accepted:
                assert 50 < accepted < 120
                with connections(node.http_port, 60, GET) as served:
                    assert 20 < served <= 32
                    assert len(files_of(node)) < 230
                    await put_some(call, 20)  # ten cuts of the log

    asyncio.run(write_beside_a_crowd())
    assert node.is_running
    assert node.metrics()["kvserver_connections_max"] == 256 - 96 - 64
    asyncio.run(connect_and_put(node.endpoint))
    assert "fewer connections of clients than --max-connections allows" in node.log_path.read_text()


async def connect_and_put(endpoint: str) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        await put_some(channel.unary_unary(PUT), 1)


def test_a_member_without_a_free_descriptor_neither_ends_nor_spins_nor_blames_the_disk(
    make_node: Callable[..., NodeProcess],
) -> None:
    node = make_node(SMALL_SEGMENTS)
    node.start()
    limits = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)

    async def write_without_descriptors() -> None:
        async with grpc.aio.insecure_channel(node.endpoint) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable = channel.unary_unary(PUT)
            await put_some(call, 1)
            most = files_of(node)[-1] + 1
            resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
            with crowd(node.client_port), crowd(node.http_port), crowd(node.peer_port):
                async with asyncio.timeout(5):
                    while len(files_of(node)) < most:  # noqa: ASYNC110 - nothing of another process signals this one
                        await asyncio.sleep(0.01)
                before_s = cpu_seconds(node)
                await put_some(call, 20)  # ten cuts of the log
                await asyncio.sleep(1.5)  # the heap trimmer's turn, and time to spin
                assert cpu_seconds(node) - before_s < 1.0
                resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)

    asyncio.run(write_without_descriptors())
    assert node.is_running
    assert node.metrics()["etcd_server_has_leader"] == 1  # the HTTP port accepts again
    asyncio.run(connect_and_put(node.endpoint))
    log = node.log_path.read_text()
    assert "disk" not in log
    assert "can't" not in log


@contextmanager
def crowd(port: int) -> Iterator[None]:
    """Connections that nobody may accept."""
    made = []
    for _ in range(40):
        each = socket.socket()
        each.setblocking(False)
        each.connect_ex(("127.0.0.1", port))
        made.append(each)
    try:
        yield
    finally:
        for each in made:
            each.close()


def cpu_seconds(node: NodeProcess) -> float:
    with open(f"/proc/{node.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_soft_limit_is_raised_to_the_hard_one(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node()
    node.launcher = ("/bin/sh", "-c", 'ulimit -Sn 300; exec "$@"', "sh")
    node.start()
    soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    assert soft == hard > 300


def test_too_few_files_are_refused_at_the_start(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node()
    command = [*allowed(LEAST_FILES - 1), sys.executable, "-m", "kvserver", f"--data-dir={node.data_dir}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert f"this process may open {LEAST_FILES - 1} files" in ended.stderr
    assert "raise ulimit -n" in ended.stderr
    assert not node.data_dir.exists()
