"""A listening member against hostile bytes: the connection closes, one line is logged, the member lives."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace

import pytest

from kvserver.peer import Identity, TransportOptions
from kvserver.peer.codec import encode_message
from kvserver.peer.frames import FrameType, encode_frame
from kvserver.peer.handshake import StreamKind, hello_frame
from kvserver.peer.request_frames import encode_request
from kvserver.types import ClusterId, NodeId
from raft.messages import Message, MessageType
from raft.types import Entry, Index, Term

DIALLER = Identity(cluster_id=ClusterId(0xC1), member_id=NodeId(1))
HELLO = b"".join(hello_frame(DIALLER, NodeId(2), StreamKind.MESSAGES))
SNAPSHOT_HELLO = b"".join(hello_frame(DIALLER, NodeId(2), StreamKind.SNAPSHOT))
MESSAGE = b"".join(
    encode_message(
        Message(type=MessageType.APP, from_=NodeId(1), to=NodeId(2), entries=[Entry(term=Term(1), index=Index(1), data=b"value")])
    ).segments
)
REQUEST = b"".join(encode_request(1, 7, 5.0, b"question").segments)

FAST_OPTIONS = TransportOptions(backoff_min_s=0.005, backoff_max_s=0.02)


async def talk(url: str, data: bytes, *, hang_up: bool = True) -> bytes:
    """Send, and return everything that comes back until the member closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        if hang_up:
            writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def assert_alive(two) -> None:
    """The member still answers HTTP and still takes messages."""
    assert b"etcdserver" in await talk(two.url, b"GET /version HTTP/1.1\r\n\r\n")
    before = len(two.handler.messages)
    await talk(two.url, HELLO + MESSAGE)
    await two.handler.until(lambda: len(two.handler.messages) > before)


async def target(start_member):
    two = await start_member(2)
    two.transport.add_peer(NodeId(1), ["http://127.0.0.1:1"])
    return two


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff" * 100, id="oversized length"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"\x00\x00\x20\x00" + HELLO[4:], id="first frame over 4 KiB"),
        pytest.param(MESSAGE, id="message before the hello"),
        pytest.param(HELLO + HELLO, id="second hello"),
        pytest.param(HELLO + MESSAGE[:-1] + b"?", id="wrong data checksum"),
        pytest.param(HELLO + b"".join(encode_frame(FrameType.PING, b"short")), id="short ping"),
        pytest.param(HELLO + b"".join(encode_frame(FrameType.SNAPSHOT_CHUNK, b"")), id="chunk on a message stream"),
        pytest.param(HELLO + b"".join(encode_frame(FrameType.RESPONSE, b"")), id="response to the listener"),
        pytest.param(HELLO + b"".join(encode_frame(FrameType.REQUEST, b"\xff")), id="unreadable request"),
        pytest.param(HELLO + REQUEST[:-1] + b"?", id="wrong checksum of a request's payload"),
        pytest.param(HELLO + b"\x7f\xff\xff\xff" + MESSAGE[4:], id="oversized length after the hello"),
        pytest.param(b"".join(encode_frame(FrameType.HELLO, b"\xff\xff")), id="unreadable hello"),
        pytest.param(b"".join(encode_frame(FrameType.HELLO, b"", (b"data",))), id="hello with data"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 60, id="TLS"),
    ],
)
async def test_malformed_input_closes_the_connection_with_one_line(start_member, data):
    two = await target(start_member)
    await talk(two.url, data, hang_up=False)
    assert two.log.count("malformed input") == 1
    await assert_alive(two)


@pytest.mark.parametrize("data", [HELLO[:10], HELLO + MESSAGE[:30], b"", b"GE"], ids=["hello", "message", "nothing", "http"])
async def test_truncated_input_is_dropped_silently(start_member, data):
    two = await target(start_member)
    await talk(two.url, data)
    assert two.log.count("malformed") == 0
    assert two.handler.messages == []
    await assert_alive(two)


async def test_silent_connection_is_closed_after_the_hello_timeout(start_member):
    two = await start_member(2, options=replace(FAST_OPTIONS, hello_timeout_s=0.05))
    assert await talk(two.url, b"", hang_up=False) == b""


async def test_connections_are_bounded(start_member):
    two = await start_member(2, options=replace(FAST_OPTIONS, max_accepted_connections=2))
    host, port = two.url.removeprefix("http://").split(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    assert await talk(two.url, b"GET /version HTTP/1.1\r\n\r\n", hang_up=False) == b""
    assert two.log.count("too many peer connections") == 1
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(10):
        while not await talk(two.url, b"GET /version HTTP/1.1\r\n\r\n", hang_up=False):
            continue


@pytest.mark.parametrize(
    "base",
    [HELLO, HELLO + MESSAGE * 3, HELLO + REQUEST * 3, SNAPSHOT_HELLO + MESSAGE],
    ids=["hello", "messages", "requests", "snapshot"],
)
async def test_mutated_streams_never_hurt_the_member(start_member, base):
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    two = await target(start_member)
    genuine = len(two.handler.messages)
    for _ in range(40):
        mutated = bytearray(base)
        for _ in range(chance.randrange(1, 4)):
            kind, at = chance.randrange(4), chance.randrange(len(mutated))
            if kind == 0:
                mutated[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del mutated[at : at + chance.randrange(1, 40)]
            elif kind == 2:
                mutated[at:at] = chance.randbytes(chance.randrange(1, 40))
            else:
                mutated[at : at + 4] = chance.randbytes(4)
            if not mutated:
                mutated = bytearray(b"\x00")
        await talk(two.url, bytes(mutated))
    for message, _ in two.handler.messages[genuine:]:
        assert [entry.data for entry in message.entries] == [b"value"], f"seed {seed}: a mutated message was believed"
    assert set(two.handler.requests) <= {(1, 7, b"question")}, f"seed {seed}: a mutated request was believed"
    assert two.transport.stats(NodeId(1)).running_answers == 0
    await assert_alive(two)
