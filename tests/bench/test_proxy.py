"""The relay between members: who dialled, and how slowly bytes pass."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.proxy import Link, ProxyProcess, Relay, owns_socket, pause_s, socket_inode
from kvserver.testing.ports import PortAllocator

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:4EF1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:BC0A 0100007F:4EF1 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1
   2: 0100007F:4EF1 0100007F:BC0A 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0 20 4 30 10 -1
"""
PAYLOAD_BYTES = 300_000


def test_the_inode_is_that_of_the_connection_not_of_the_listener() -> None:
    assert socket_inode(TABLE, 0xBC0A) == "222"
    assert socket_inode(TABLE, 0x4EF1) == "333"
    assert socket_inode(TABLE, 1) is None


def test_a_socket_is_owned_by_the_process_that_has_it_open() -> None:
    with socket.socket() as mine:
        inode = str(os.fstat(mine.fileno()).st_ino)
        assert owns_socket(os.getpid(), inode)
    assert not owns_socket(os.getpid(), "1")
    assert not owns_socket(2**22 + 1, inode)


@pytest.mark.parametrize(
    ("sent_bytes", "elapsed_s", "rate", "expected"), [(1000, 0.5, 1000, 0.5), (1000, 2.0, 1000, 0), (1000, 0, 0, 0), (0, 0, 9, 0)]
)
def test_the_pause_makes_up_for_what_was_sent_too_fast(sent_bytes: int, elapsed_s: float, rate: float, expected: float) -> None:
    assert pause_s(sent_bytes, elapsed_s, rate) == pytest.approx(expected)


@asynccontextmanager
async def echoing(relay: Relay, ports: PortAllocator) -> AsyncIterator[Link]:
    """A relay before a server that answers each connection with the number of bytes it read."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = 0
        while received < PAYLOAD_BYTES and (piece := await reader.read(65536)):
            received += len(piece)
        writer.write(b"%d\n" % received)
        writer.close()

    link = Link(listen_port=ports.next_port(), target_port=ports.next_port())
    target = await asyncio.start_server(count, "127.0.0.1", link.target_port)
    front = await relay.serve(link)
    try:
        yield link
    finally:
        front.close()
        target.close()


async def send_through(link: Link) -> tuple[float, int]:
    """Seconds and bytes that the far end counted."""
    began_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.listen_port)
    writer.write(b"x" * PAYLOAD_BYTES)
    await writer.drain()
    counted = int(await reader.readline())
    assert await reader.read() == b""
    writer.close()
    return time.monotonic() - began_s, counted


@pytest.mark.parametrize("by", ["dialler", "listener"])
async def test_a_slow_member_is_throttled_whoever_dialled(by: str) -> None:
    relay = Relay()
    async with echoing(relay, PortAllocator()) as link, asyncio.timeout(30):
        # The test is the dialler; the listener is named by its port and a process that is not the dialler.
        wish = {"pid": os.getpid(), "port": 1} if by == "dialler" else {"pid": 2**22 + 1, "port": link.target_port}
        relay.order(json.dumps({**wish, "bytes_per_s": 600_000}).encode())
        seconds, counted = await send_through(link)
        assert counted == PAYLOAD_BYTES
        assert seconds >= 0.35  # 0.5 s, less the last piece


async def test_connections_of_others_and_after_the_release_pass_unhindered(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def record(sent_bytes: int, elapsed_s: float, bytes_per_s: float) -> float:
        pauses.append(pause_s(sent_bytes, elapsed_s, bytes_per_s))
        return 0.0

    monkeypatch.setattr("bench.proxy.pause_s", record)
    relay = Relay()
    async with echoing(relay, PortAllocator()) as link, asyncio.timeout(30):
        relay.order(json.dumps({"pid": 2**22 + 1, "port": 1, "bytes_per_s": 1}).encode())
        assert (await send_through(link))[1] == PAYLOAD_BYTES
        assert pauses
        assert set(pauses) == {0.0}
        relay.order(json.dumps({"pid": os.getpid(), "port": 1, "bytes_per_s": 1}).encode())
        await send_through(link)
        assert max(pauses) > 1000
        pauses.clear()
        relay.order(b'{"bytes_per_s": 0}')
        await send_through(link)
        assert set(pauses) == {0.0}


async def test_a_member_that_is_down_looks_like_a_closed_connection() -> None:
    ports = PortAllocator()
    link = Link(listen_port=ports.next_port(), target_port=ports.next_port())
    server = await Relay().serve(link)
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", link.listen_port)
            assert await reader.read() == b""
            writer.close()
    finally:
        server.close()


def test_the_process_relays_takes_orders_and_is_gone_when_stopped() -> None:
    ports = PortAllocator()
    with socket.create_server(("127.0.0.1", ports.next_port())) as target:
        link = Link(listen_port=ports.next_port(), target_port=target.getsockname()[1])
        proxy = ProxyProcess([link])
        try:
            proxy.throttle(os.getpid(), 1, 1e6)
            proxy.release()
            with socket.create_connection(("127.0.0.1", link.listen_port), timeout=20) as near:
                near.sendall(b"hello")
                far, _ = target.accept()
                with far:
                    assert far.recv(5, socket.MSG_WAITALL) == b"hello"
        finally:
            proxy.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", link.listen_port), timeout=5)


async def test_a_delay_holds_for_each_direction_and_leaves_the_bytes_as_they_are() -> None:
    relay = Relay()
    async with echoing(relay, PortAllocator()) as link, asyncio.timeout(30):
        relay.order(b'{"delay_s": 0.1}')
        seconds, counted = await send_through(link)
        assert counted == PAYLOAD_BYTES
        assert seconds >= 0.2  # there and back
        assert seconds < 2.0  # five pieces, and not a delay for each and more
        relay.order(b'{"bytes_per_s": 0}')  # an order leaves alone what it doesn't name
        assert (await send_through(link))[0] >= 0.2
        relay.order(b'{"delay_s": 0}')
        assert (await send_through(link))[1] == PAYLOAD_BYTES


async def write_until_closed(writer: asyncio.StreamWriter) -> None:
    """Write without an end.

    Raises:
        ConnectionError: the other end is gone.
    """
    while True:
        writer.write(b"x" * PAYLOAD_BYTES)
        await writer.drain()
        await asyncio.sleep(0)


async def test_a_far_end_that_goes_away_closes_a_connection_with_bytes_on_their_way() -> None:
    ports, relay = PortAllocator(), Relay()
    relay.order(b'{"delay_s": 0.05}')

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    link = Link(listen_port=ports.next_port(), target_port=ports.next_port())
    async with asyncio.timeout(30), await asyncio.start_server(hang_up, "127.0.0.1", link.target_port), await relay.serve(link):
        _, writer = await asyncio.open_connection("127.0.0.1", link.listen_port)
        with pytest.raises(ConnectionError):
            await write_until_closed(writer)
        writer.close()
