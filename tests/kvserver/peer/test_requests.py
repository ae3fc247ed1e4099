"""Requests between real transports over loopback: every one ends exactly once, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from kvserver.peer import (
    MAX_PAYLOAD_SIZE_BYTES,
    Identity,
    OutboxLimits,
    PeerNotConnectedError,
    PeerRequestError,
    PeerRequestLostError,
    PeerRequestOverflowError,
    PeerRequestRefusedError,
    PeerRequestTimeoutError,
    TransportOptions,
)
from kvserver.peer.frames import FrameDecoder, FrameType
from kvserver.peer.handshake import StreamKind, hello_frame, reply_frame
from kvserver.peer.request_frames import MAX_REQUESTS, Outcome, decode_response, encode_answer, encode_request
from kvserver.types import ClusterId, NodeId
from raft.messages import Message, MessageType
from raft.types import Entry, Index, Term

CALM = TransportOptions(ping_interval_s=10, ping_timeout_s=20, backoff_min_s=0.005, backoff_max_s=0.02)


class Gate:
    """An answerer that holds every request until it is opened, and counts how they end."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.running = 0
        self.idle = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, kind: int, payload: bytes) -> bytes:
        self.running += 1
        self.idle.clear()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
        return payload


async def echo(kind: int, payload: bytes) -> bytes:
    return payload


async def until_idle(one, two) -> None:
    """Until neither side holds anything of a request."""
    await one.handler.until(lambda: one.transport.stats(two.id).outstanding_requests == 0)
    await two.handler.until(lambda: two.transport.stats(one.id).running_answers == 0)


async def ended(task) -> BaseException | None:
    """How the request ended: its error, None if it was answered."""
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@pytest.fixture
async def ask():
    """`ask(one, two, payload)` is the task of a request."""
    tasks = []

    def start(one, two, payload=b"", *, timeout_s=30.0, kind=7):
        task = asyncio.create_task(one.transport.request(two.id, kind, payload, timeout_s=timeout_s))
        tasks.append(task)
        return task

    yield start
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()


@pytest.fixture
async def start_raw():
    """`await start_raw(url, data)` is a dialler that sends `data` behind its hello, and reads only when told to."""
    raws = []

    async def start(url, data):
        raw = RawAsker(url)
        raws.append(raw)
        await raw.start(data)
        return raw

    yield start
    for raw in raws:
        await raw.stop()


@pytest.fixture
def pair(start_member, connect):
    """`await pair()` gives two members that are connected."""

    async def make(**options):
        one, two = await start_member(1, **options), await start_member(2, **options)
        await connect(one, two)
        return one, two

    return make


@pytest.mark.parametrize("size", [0, 1, 2048, 2049, 70_000, MAX_PAYLOAD_SIZE_BYTES])
async def test_the_answer_comes_back(pair, size):
    one, two = await pair()
    two.handler.answer = echo
    payload = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
    assert await one.transport.request(two.id, 2**32 - 1, payload, timeout_s=10) == payload
    assert two.handler.requests == [(one.id, 2**32 - 1, payload)]
    await until_idle(one, two)


async def test_many_at_once_in_both_directions_get_each_their_own_answer(pair):
    one, two = await pair()
    turns = {b"%d" % number: asyncio.Event() for number in range(200)}

    async def in_reverse(kind, payload):
        await turns[payload].wait()
        following = b"%d" % (int(payload) - 1)
        if following in turns:
            turns[following].set()
        return b"answer " + payload

    two.handler.answer, one.handler.answer = in_reverse, echo
    asking = [asyncio.ensure_future(one.transport.request(two.id, 1, each, timeout_s=10)) for each in turns]
    back = [asyncio.ensure_future(two.transport.request(one.id, 1, each, timeout_s=10)) for each in turns]
    assert await asyncio.gather(*back) == list(turns)
    turns[b"199"].set()
    assert await asyncio.gather(*asking) == [b"answer " + each for each in turns]
    await until_idle(one, two)


async def test_messages_and_requests_share_the_connection(pair):
    one, two = await pair()
    two.handler.answer = echo
    entries = [Entry(term=Term(1), index=Index(1), data=b"e" * 300_000)]
    for _ in range(5):
        one.transport.send([Message(type=MessageType.APP, from_=one.id, to=two.id, term=Term(1), entries=entries)])
        assert await one.transport.request(two.id, 1, b"q" * 100_000, timeout_s=10) == b"q" * 100_000
    assert len(two.handler.messages) == 5
    assert one.transport.stats(two.id).is_connected


async def test_a_refusal_brings_its_code_and_text(pair):
    one, two = await pair()

    async def refuse(kind, payload):
        raise PeerRequestRefusedError("not_leader", "ask member 3")

    two.handler.answer = refuse
    with pytest.raises(PeerRequestRefusedError) as caught:
        await one.transport.request(two.id, 1, b"", timeout_s=10)
    assert (caught.value.code, caught.value.text) == ("not_leader", "ask member 3")
    assert two.log.count("peer request failed") == 0


async def test_an_unknown_kind_is_answered_with_an_error(pair):
    one, two = await pair()
    with pytest.raises(PeerRequestRefusedError, match="kind 77") as caught:
        await one.transport.request(two.id, 77, b"", timeout_s=10)
    assert caught.value.code == PeerRequestRefusedError.UNKNOWN_KIND
    assert one.transport.stats(two.id).is_connected


async def _answer_of_a_cancelled_future(kind, payload):
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


async def _raise_timeout(kind, payload):
    raise TimeoutError("my own")


async def _raise_key_error(kind, payload):
    raise KeyError(kind)


async def _raise_request_error(kind, payload):
    raise PeerNotConnectedError(NodeId(9))


async def _refuse_with_a_bad_code(kind, payload):
    raise PeerRequestRefusedError("x" * 65, "")


async def _answer_too_much(kind, payload):
    return b"x" * (MAX_PAYLOAD_SIZE_BYTES + 1)


async def _answer_none(kind, payload):
    return None


async def _answer_text(kind, payload):
    return "text"


@pytest.mark.parametrize(
    "answer",
    [
        _answer_of_a_cancelled_future,
        _raise_timeout,
        _raise_key_error,
        _raise_request_error,
        _refuse_with_a_bad_code,
        _answer_too_much,
        _answer_none,
        _answer_text,
    ],
)
async def test_what_a_handler_should_not_do_is_internal_and_logged_once(pair, answer):
    one, two = await pair()
    two.handler.answer = answer
    for _ in range(3):
        with pytest.raises(PeerRequestRefusedError) as caught:
            await one.transport.request(two.id, 1, b"", timeout_s=10)
        assert caught.value.code == PeerRequestRefusedError.INTERNAL
    assert two.log.count("peer request failed") == 1
    two.handler.answer = echo
    assert await one.transport.request(two.id, 1, b"fine", timeout_s=10) == b"fine"
    await until_idle(one, two)


async def test_a_handler_without_the_method_answers_internal(pair, monkeypatch):
    one, two = await pair()
    monkeypatch.delattr(type(two.handler), "on_request")
    with pytest.raises(PeerRequestRefusedError, match="internal"):
        await one.transport.request(two.id, 1, b"", timeout_s=10)


@pytest.mark.parametrize(("kind", "timeout_s", "size"), [(0, 1, 0), (1, 0, 0), (1, 61, 0), (1, 1, MAX_PAYLOAD_SIZE_BYTES + 1)])
async def test_a_request_out_of_range_is_a_value_error_and_holds_no_place(pair, kind, timeout_s, size):
    one, two = await pair()
    with pytest.raises(ValueError, match=r"kind|time|payload"):
        await one.transport.request(two.id, kind, b"x" * size, timeout_s=timeout_s)
    assert one.transport.stats(two.id).outstanding_requests == 0


async def test_without_a_connection_nothing_is_sent(start_member):
    one = await start_member(1)
    one.transport.add_peer(NodeId(2), ["http://127.0.0.1:1"])
    for peer_id in (1, 2, 99):
        with pytest.raises(PeerNotConnectedError, match=f"member {peer_id:x}") as caught:
            await one.transport.request(NodeId(peer_id), 1, b"", timeout_s=10)
        assert caught.value.retryable
    await one.transport.stop()
    with pytest.raises(PeerNotConnectedError):
        await one.transport.request(NodeId(2), 1, b"", timeout_s=10)


async def test_time_runs_out_on_both_sides(pair, ask):
    one, two = await pair()
    two.handler.answer = gate = Gate()
    error = await ended(ask(one, two, timeout_s=0.05))
    assert type(error) is PeerRequestTimeoutError
    assert not error.retryable
    await until_idle(one, two)
    assert (gate.running, gate.cancelled) == (0, 1)
    assert one.transport.stats(two.id).is_connected
    assert two.log.count("peer request failed") == 0


async def test_a_late_answer_is_dropped_and_gives_the_place_back(start_member, start_proxy, ask):
    one, two = await start_member(1), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    two.handler.answer = echo
    proxy.flow.clear()
    assert type(await ended(ask(one, two, b"late", timeout_s=0.05))) is PeerRequestTimeoutError
    assert one.transport.stats(two.id).outstanding_requests == 1
    proxy.flow.set()
    await until_idle(one, two)
    assert await one.transport.request(two.id, 1, b"next", timeout_s=10) == b"next"
    assert proxy.connections == 1


async def test_a_cancelled_asker_leaves_nothing_behind(pair, ask):
    one, two = await pair()
    two.handler.answer = gate = Gate()
    asking = [ask(one, two, b"%d" % number) for number in range(20)]
    await two.handler.until(lambda: gate.running == 20)
    for task in asking[::2]:
        task.cancel()
    gate.opened.set()
    for number, task in enumerate(asking):
        error = await ended(task)
        assert isinstance(error, asyncio.CancelledError) if number % 2 == 0 else error is None
    await until_idle(one, two)
    assert one.transport.stats(two.id).is_connected


async def _asker_stops(one, two, proxy):
    await one.transport.stop()


async def _answerer_stops(one, two, proxy):
    await two.transport.stop()


async def _asker_forgets(one, two, proxy):
    one.transport.remove_peer(two.id)


async def _answerer_forgets(one, two, proxy):
    two.transport.remove_peer(one.id)


async def _asker_dials_elsewhere(one, two, proxy):
    one.transport.update_peer(two.id, [two.url])


async def _network_cuts(one, two, proxy):
    proxy.cut()


@pytest.mark.parametrize("end", [_asker_stops, _answerer_stops, _asker_forgets, _answerer_forgets, _asker_dials_elsewhere, _network_cuts])
async def test_the_end_of_the_connection_ends_the_request_on_both_sides(start_member, start_proxy, ask, end):
    one, two = await start_member(1), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    two.handler.answer = gate = Gate()
    asking = [ask(one, two) for _ in range(5)]
    await two.handler.until(lambda: gate.running == 5)
    await end(one, two, proxy)
    for task in asking:
        error = await ended(task)
        assert type(error) is PeerRequestLostError
        assert not error.retryable
    async with asyncio.timeout(10):
        await gate.idle.wait()
    assert gate.cancelled == 5
    assert two.log.count("peer request failed") == 0


async def test_a_newer_connection_ends_the_requests_of_the_older(pair, start_member, ask):
    one, two = await pair()
    two.handler.answer = gate = Gate()
    asking = ask(one, two)
    await two.handler.until(lambda: gate.running == 1)
    again = await start_member(1)
    again.transport.add_peer(two.id, [two.url])
    assert type(await ended(asking)) is PeerRequestLostError
    assert gate.cancelled == 1


async def test_requests_cancelled_before_their_first_step_give_their_place_back(pair):
    one, two = await pair()
    two.handler.answer = echo
    frame = b"".join(b"".join(encode_request(1 + number, 1, 5, b"").segments) for number in range(50))
    for _ in range(5):
        host, port = two.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"".join(hello_frame(_identity(1), two.id, StreamKind.MESSAGES)) + frame + b"garbage" * 20)
        await two.handler.until(lambda: two.log.count("malformed") > 0)
        two.log.lines.clear()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    await two.handler.until(lambda: two.transport.stats(one.id).running_answers == 0)


# --- bounds ------------------------------------------------------------------------------------------------------------------------------


async def test_requests_over_the_bound_are_refused_until_one_is_answered(pair, ask):
    one, two = await pair()
    two.handler.answer = gate = Gate()
    asking = [ask(one, two, b"%d" % number) for number in range(MAX_REQUESTS)]
    await two.handler.until(lambda: gate.running == MAX_REQUESTS)
    error = await ended(ask(one, two))
    assert type(error) is PeerRequestOverflowError
    asking[0].cancel()
    await asyncio.wait([asking[0]])
    assert type(await ended(ask(one, two))) is PeerRequestOverflowError, "an abandoned request still occupies the peer"
    gate.opened.set()
    assert [await ended(task) for task in asking[1:]] == [None] * (MAX_REQUESTS - 1)
    assert await ended(ask(one, two)) is None
    await until_idle(one, two)


async def test_payloads_over_the_bound_are_refused(pair, ask):
    one, two = await pair()
    two.handler.answer = gate = Gate()
    asking = [ask(one, two, b"x" * MAX_PAYLOAD_SIZE_BYTES) for _ in range(4)]
    await two.handler.until(lambda: gate.running == 4)
    assert type(await ended(ask(one, two, b"x"))) is PeerRequestOverflowError
    gate.opened.set()
    assert [await ended(task) for task in asking] == [None] * 4
    await until_idle(one, two)


async def test_a_request_that_finds_the_queue_full_is_refused_and_holds_no_place(start_member, start_proxy):
    options = replace(CALM, outbox=OutboxLimits(urgent_frames=1, bulk_frames=1))
    one, two = await start_member(1, options=options), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    for _ in range(1000):
        entry = Entry(term=Term(1), index=Index(1), data=b"x" * 1_000_000)
        one.transport.send([Message(type=MessageType.APP, from_=one.id, to=two.id, term=Term(1), entries=[entry])])
        if one.transport.stats(two.id).dropped_messages:
            break  # and ask in the same turn of the loop, before anything can leave
        await asyncio.sleep(0)
    with pytest.raises(PeerRequestOverflowError, match="no room"):
        await one.transport.request(two.id, 1, b"x" * 10_000, timeout_s=10)
    assert one.transport.stats(two.id).outstanding_requests == 0


async def test_a_small_request_overtakes_the_queued_bulk(start_member, start_proxy, ask):
    one, two = await start_member(1, options=CALM), await start_member(2, options=CALM)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    seen = []

    async def note(kind, payload):
        seen.append(len(two.handler.messages))
        return payload

    two.handler.answer = note
    proxy.flow.clear()
    entry = Entry(term=Term(1), index=Index(1), data=b"x" * 500_000)
    one.transport.send([Message(type=MessageType.APP, from_=one.id, to=two.id, term=Term(1), entries=[entry]) for _ in range(40)])
    asking = ask(one, two, b"urgent")
    await asyncio.sleep(0)
    assert one.transport.stats(two.id).outstanding_requests == 1
    proxy.flow.set()
    assert await ended(asking) is None
    await two.handler.until(lambda: len(two.handler.messages) == 40)
    assert seen[0] < 35


async def test_an_asker_that_asks_too_much_is_answered_busy(start_member, start_raw):
    two = await start_member(2, options=CALM)
    two.transport.add_peer(NodeId(1), ["http://127.0.0.1:1"])
    two.handler.answer = gate = Gate()
    frames = [b"".join(encode_request(number, 1, 30, b"").segments) for number in range(1, MAX_REQUESTS + 11)]
    raw = await start_raw(two.url, b"".join(frames))
    busy = [await raw.next_response() for _ in range(10)]
    assert {each.outcome for each in busy} == {Outcome.BUSY}
    assert [each.id for each in busy] == list(range(MAX_REQUESTS + 1, MAX_REQUESTS + 11))
    gate.opened.set()
    rest = [await raw.next_response() for _ in range(MAX_REQUESTS)]
    assert {each.outcome for each in rest} == {Outcome.ANSWERED}


async def test_answers_that_nobody_reads_are_bounded_and_every_request_is_still_answered(start_member, start_raw):
    two = await start_member(2, options=CALM)
    two.transport.add_peer(NodeId(1), ["http://127.0.0.1:1"])

    async def large(kind, payload):
        return b"x" * MAX_PAYLOAD_SIZE_BYTES

    two.handler.answer = large
    raw = await start_raw(two.url, b"".join(b"".join(encode_request(number, 1, 30, b"").segments) for number in range(1, 101)))
    await two.handler.until(lambda: len(two.handler.requests) == 100)
    answers = [await raw.next_response() for _ in range(100)]
    assert {each.id for each in answers} == set(range(1, 101))
    internal = [each for each in answers if each.outcome is Outcome.INTERNAL]
    assert 50 < len(internal) < 100
    assert "wait to be read" in internal[0].text
    assert two.transport.stats(NodeId(1)).running_answers == 0


async def test_an_asker_that_reads_nothing_at_all_is_hung_up_on(start_member, start_raw):
    two = await start_member(2, options=CALM)
    two.transport.add_peer(NodeId(1), ["http://127.0.0.1:1"])

    async def refuse(kind, payload):
        raise PeerRequestRefusedError("no", "n" * 1000)

    two.handler.answer = refuse
    raw = await start_raw(two.url, b"")
    number = 0
    async with asyncio.timeout(20):
        while not two.log.count("answers are not read"):
            frames = [b"".join(encode_request(number := number + 1, 1, 30, b"").segments) for _ in range(200)]
            await raw.write(b"".join(frames))
        await raw.wait_hangup()
    assert two.transport.stats(NodeId(1)).running_answers == 0


async def test_an_answer_that_was_not_asked_for_closes_the_connection(start_member):
    async def rogue(reader, writer):
        hello = hello_frame(_identity(1), NodeId(2), StreamKind.MESSAGES)
        await reader.readexactly(len(b"".join(hello)))
        writer.write(b"".join(reply_frame(_identity(2), None, 1 << 24)))
        await reader.readexactly(28)  # the first ping: the link is up
        writer.write(b"".join(encode_answer(1, b"surprise").segments))
        await reader.read()
        writer.close()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(rogue, "127.0.0.1", 0)
    one = await start_member(1, options=replace(CALM, backoff_min_s=5, backoff_max_s=5))
    one.transport.add_peer(NodeId(2), [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    try:
        async with asyncio.timeout(5):
            await closed.wait()
    finally:
        await one.transport.stop()
        server.close()
        await server.wait_closed()
    assert one.log.count("malformed input") == 1
    assert one.log.count("was not sent") == 1


def _identity(member_id):
    # As the rogue expects a hello of known length, it is that of the conftest's members.
    return Identity(cluster_id=ClusterId(0xC1), member_id=NodeId(member_id), server_version="0.1.0", incarnation=1)


class RawAsker:
    """A dialler that reads only when told to."""

    def __init__(self, url: str) -> None:
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._decoder = FrameDecoder(1 << 21)
        self._frames = []

    async def start(self, data: bytes) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port), limit=1024)
        self._writer.write(b"".join(hello_frame(_identity(1), NodeId(2), StreamKind.MESSAGES)) + data)
        await self._next(FrameType.HELLO_REPLY, lambda frame: None)

    async def write(self, data: bytes) -> None:
        """Write, and let the member read."""
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()
        await asyncio.sleep(0)

    async def next_response(self):
        return await self._next(FrameType.RESPONSE, decode_response)

    async def _next(self, frame_type, read):
        async with asyncio.timeout(20):
            while not self._frames:
                buffer = self._decoder.get_buffer()
                data = await self._reader.read(min(len(buffer), 65536))
                assert data, "the member hung up"
                buffer[: len(data)] = data
                for frame in self._decoder.received(len(data)):
                    decode = decode_response if frame.type is FrameType.RESPONSE else (lambda frame: None)
                    self._frames.append((frame.type, decode(frame)))
        kind, value = self._frames.pop(0)
        assert kind is frame_type
        return value

    async def wait_hangup(self) -> None:
        """Read what is left, until the member has closed the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                continue

    async def stop(self) -> None:
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def test_every_request_error_says_whether_it_may_be_sent_again():
    leaves = PeerRequestError.__subclasses__()
    assert {each for each in leaves if each.retryable} == {PeerNotConnectedError, PeerRequestOverflowError}
    assert len(leaves) == 5
