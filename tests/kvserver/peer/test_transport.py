"""Messages between real transports over loopback: delivery, refusals, reconnecting, bounds."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace

import pytest

from kvserver.peer import OutboxLimits, Refusal, TransportOptions
from kvserver.types import NodeId
from raft.messages import Message, MessageType
from raft.types import Entry, Index, Snapshot, Term


def heartbeat(from_: int, to: int, commit: int = 0) -> Message:
    return Message(type=MessageType.HEARTBEAT, from_=NodeId(from_), to=NodeId(to), term=Term(1), commit=Index(commit))


def append(from_: int, to: int, *datas: bytes, index: int = 0) -> Message:
    entries = [Entry(term=Term(1), index=Index(index + 1 + i), data=data) for i, data in enumerate(datas)]
    return Message(type=MessageType.APP, from_=NodeId(from_), to=NodeId(to), term=Term(1), index=Index(index), entries=entries)


async def test_messages_arrive_in_order_with_entries_and_floor(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    sent = [append(1, 2, b"", bytes([i % 256]) * (i * 7), b"x", index=3 * i) for i in range(200)]
    for message in sent:
        one.transport.send([message], Index(message.index))
    await two.handler.until(lambda: len(two.handler.messages) == len(sent))
    assert [message for message, _ in two.handler.messages] == sent
    assert [floor for _, floor in two.handler.messages] == [message.index for message in sent]


async def test_large_entries_arrive_whole(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    sent = append(1, 2, b"a" * 1_500_000, b"b" * 65_516, b"", b"c" * 3_000_000)
    one.transport.send([sent, heartbeat(1, 2)])
    await two.handler.until(lambda: len(two.handler.messages) == 2)
    assert sorted((message.type for message, _ in two.handler.messages)) == [MessageType.APP, MessageType.HEARTBEAT]
    assert next(message for message, _ in two.handler.messages if message.type is MessageType.APP) == sent


async def test_large_messages_leave_one_by_one_so_that_the_loop_turns_between_them(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    one.transport.send([append(1, 2, bytes([i]) * 1_000_000, index=i) for i in range(6)])
    assert one.transport.stats(two.id).queued_bytes >= 5_000_000
    waiting = [one.transport.stats(two.id).queued_bytes]
    while waiting[-1]:
        await asyncio.sleep(0)
        waiting.append(one.transport.stats(two.id).queued_bytes)
    assert max(before - after for before, after in itertools.pairwise(waiting)) < 2_100_000
    await two.handler.until(lambda: len(two.handler.messages) == 6)
    assert [message.index for message, _ in two.handler.messages] == list(range(6))


async def test_both_directions_and_three_members(start_member, connect):
    members = [await start_member(i) for i in (1, 2, 3)]
    await connect(*members)
    for each in members:
        each.transport.send([heartbeat(each.id, other.id) for other in members if other is not each])
    for each in members:
        await each.handler.until(lambda each=each: len(each.handler.messages) == 2)
        assert {message.from_ for message, _ in each.handler.messages} == {other.id for other in members if other is not each}


async def test_stats_show_connection_bytes_and_rtt(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    one.transport.send([append(1, 2, b"x" * 1000)])
    await two.handler.until(lambda: bool(two.handler.messages))
    await one.handler.until(lambda: one.transport.stats(two.id).rtt_s is not None)
    stats = one.transport.stats(two.id)
    assert stats.is_connected
    assert stats.sent_bytes > 1000
    assert 0 <= stats.rtt_s < 2
    assert stats.remote is not None
    assert stats.remote.server_version == "0.1.0"
    assert stats.dropped_messages == 0
    assert two.transport.stats(one.id).received_bytes > 1000


async def test_contact_is_reported_without_messages(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    one.handler.contacts.clear()
    two.handler.contacts.clear()
    await one.handler.until(lambda: len(one.handler.contacts) > 3)
    await two.handler.until(lambda: len(two.handler.contacts) > 3)


@pytest.mark.parametrize(
    ("members", "removed", "cluster_id", "dialled", "reason", "text"),
    [
        ({1, 2}, set(), 0xC2, 2, Refusal.CLUSTER_ID, "cluster c1"),
        ({2}, set(), 0xC1, 2, Refusal.UNKNOWN_MEMBER, "not known"),
        ({1, 2}, {1}, 0xC1, 2, Refusal.REMOVED_MEMBER, "removed"),
        ({1, 2}, set(), 0xC1, 3, Refusal.WRONG_MEMBER, "member 3 was dialled, this is 2"),
    ],
)
async def test_refusal_says_why_and_is_logged_once(start_member, members, removed, cluster_id, dialled, reason, text):
    one = await start_member(1)
    two = await start_member(2, members=members, cluster_id=cluster_id)
    two.handler.removed = removed
    one.transport.add_peer(NodeId(dialled), [two.url])
    await one.handler.until(lambda: len(one.handler.refused) >= 5)
    assert {error.reason for error in one.handler.refused} == {reason}
    assert text in str(one.handler.refused[0])
    assert one.log.count("peer can't be reached") == 1
    assert two.log.count("peer refused") == 1
    assert not one.transport.stats(NodeId(dialled)).is_connected


async def test_refused_member_is_let_in_once_it_is_known(start_member):
    one, two = await start_member(1), await start_member(2, members={2})
    one.transport.add_peer(two.id, [two.url])
    two.transport.add_peer(one.id, [one.url])
    await one.handler.until(lambda: bool(one.handler.refused))
    two.handler.members.add(one.id)
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)


async def test_reconnects_after_the_peer_restarts(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    await two.transport.stop()
    await one.handler.until(lambda: not one.transport.stats(two.id).is_connected)
    await one.handler.until(lambda: two.id in one.handler.unreachable)
    again = await start_member(2, listen=two.url)
    again.transport.add_peer(one.id, [one.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    one.transport.send([heartbeat(1, 2, 7)])
    await again.handler.until(lambda: bool(again.handler.messages))
    assert again.handler.messages[0][0].commit == 7
    assert one.log.count("peer can't be reached") <= 2


async def test_tries_every_url_in_turn(start_member):
    one, two = await start_member(1), await start_member(2)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, ["http://127.0.0.1:1", two.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)


async def test_update_peer_moves_the_connection(start_member):
    one, two = await start_member(1), await start_member(2)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, ["http://127.0.0.1:1"])
    one.transport.update_peer(two.id, [two.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)


async def test_unconnected_peer_drops_and_is_reported_once_per_turn(start_member):
    one = await start_member(1)
    one.transport.add_peer(NodeId(2), ["http://127.0.0.1:1"])
    one.transport.send([heartbeat(1, 2) for _ in range(10)])
    one.transport.send([heartbeat(1, 2)])
    assert one.handler.unreachable == []  # never from inside send
    await one.handler.until(lambda: bool(one.handler.unreachable))
    await asyncio.sleep(0)
    assert one.handler.unreachable == [2]
    assert one.transport.stats(NodeId(2)).dropped_messages == 11


async def test_bulk_over_the_bound_is_dropped_and_urgent_messages_still_pass(start_member, start_proxy):
    limits = OutboxLimits(bulk_size_bytes=1_000_000, urgent_size_bytes=10_000)
    one, two = await start_member(1, options=_slow(limits)), await start_member(2, options=_slow(limits))
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    size = 100_000
    sent = 0
    while not one.transport.stats(two.id).dropped_messages:
        one.transport.send([append(1, 2, b"x" * size, index=sent)])
        sent += 1
        assert sent < 1000, "nothing was ever dropped"
        await asyncio.sleep(0)
    await one.handler.until(lambda: bool(one.handler.unreachable))
    assert 1_000_000 - 2 * size < one.transport.stats(two.id).queued_bytes < 1_000_000 + 2 * size + 256 * 1024
    dropped = one.transport.stats(two.id).dropped_messages
    one.transport.send([heartbeat(1, 2, commit=9)])
    assert one.transport.stats(two.id).dropped_messages == dropped
    proxy.flow.set()
    await two.handler.until(lambda: len(two.handler.messages) == sent - dropped + 1)
    kinds = [message.type for message, _ in two.handler.messages]
    position = kinds.index(MessageType.HEARTBEAT)
    assert position < len(kinds) - 5, "the heartbeat waited behind the queued bulk"
    assert [message.index for message, _ in two.handler.messages if message.type is MessageType.APP] == list(range(sent - dropped))


async def test_what_waited_for_a_lost_connection_is_dropped_and_counted(start_member, start_proxy):
    one, two = await start_member(1, options=_slow(OutboxLimits())), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    # More than the sockets on the way can hold, so that most of it waits in the outbox.
    one.transport.send([append(1, 2, b"x" * 500_000, index=index) for index in range(50)])
    assert one.transport.stats(two.id).queued_bytes > 10_000_000
    proxy.cut()
    await one.handler.until(lambda: not one.transport.stats(two.id).is_connected)
    assert one.transport.stats(two.id).queued_bytes == 0
    assert one.transport.stats(two.id).dropped_messages > 20
    await one.handler.until(lambda: bool(one.handler.unreachable))
    proxy.flow.set()
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    one.transport.send([heartbeat(1, 2)])
    await two.handler.until(lambda: bool(two.handler.messages))
    assert [message.type for message, _ in two.handler.messages] == [MessageType.HEARTBEAT]


def _slow(limits: OutboxLimits) -> TransportOptions:
    return TransportOptions(outbox=limits, ping_interval_s=10, ping_timeout_s=20, backoff_min_s=0.005, backoff_max_s=0.02)


async def test_urgent_lane_has_a_bound_of_its_own(start_member, start_proxy):
    limits = OutboxLimits(bulk_size_bytes=100_000, urgent_size_bytes=10_000)
    one, two = await start_member(1, options=_slow(limits)), await start_member(2, options=_slow(limits))
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    for index in range(100):
        one.transport.send([append(1, 2, b"x" * 90_000, index=index)])
        await asyncio.sleep(0)
    one.transport.send([heartbeat(1, 2) for _ in range(1000)])
    stats = one.transport.stats(two.id)
    assert stats.dropped_messages > 500
    assert stats.queued_bytes < 90_000 + 110_000 + 256 * 1024 + 100_000


async def test_message_larger_than_the_peers_frame_bound_is_dropped_not_sent(start_member, connect):
    one = await start_member(1)
    two = await start_member(2, options=replace(_slow(OutboxLimits()), max_frame_size_bytes=50_000))
    await connect(one, two)
    one.transport.send([append(1, 2, b"x" * 60_000), heartbeat(1, 2)])
    await two.handler.until(lambda: bool(two.handler.messages))
    assert one.transport.stats(two.id).dropped_messages == 1
    assert one.transport.stats(two.id).is_connected
    assert one.log.count("larger than the peer's frame bound") == 1


async def test_dead_peer_is_noticed_without_a_reset(start_member, start_proxy):
    options = TransportOptions(ping_interval_s=0.02, ping_timeout_s=0.1, backoff_min_s=0.005, backoff_max_s=0.02, hello_timeout_s=0.2)
    one, two = await start_member(1, options=options), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).rtt_s is not None)
    proxy.flow.clear()
    await one.handler.until(lambda: not one.transport.stats(two.id).is_connected)
    assert one.log.count("no pong in time") == 1
    proxy.flow.set()
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)


async def test_silent_inbound_stream_is_closed(start_member, start_proxy):
    options = TransportOptions(ping_interval_s=0.02, ping_timeout_s=0.05)
    one, two = await start_member(1), await start_member(2, options=options)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, ["http://127.0.0.1:1"])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    await one.handler.until(lambda: not one.transport.stats(two.id).is_connected)
    assert two.log.count("silent for too long") == 1


async def test_newer_connection_of_a_member_replaces_the_older(start_member, start_proxy):
    one, two = await start_member(1), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    again = await start_member(1)
    again.transport.add_peer(two.id, [two.url])
    await again.handler.until(lambda: again.transport.stats(two.id).is_connected)
    await one.handler.until(lambda: not one.transport.stats(two.id).is_connected)


async def test_paused_receiving_holds_messages_back_and_resuming_delivers_them(start_member, connect):
    one, two = await start_member(1, options=_slow(OutboxLimits())), await start_member(2)
    await connect(one, two)
    one.transport.send([heartbeat(1, 2, 1)])
    await two.handler.until(lambda: len(two.handler.messages) == 1)
    two.transport.pause_receiving()
    one.transport.send([append(1, 2, b"x" * 500_000, index=index) for index in range(20)])
    await one.handler.until(lambda: bool(one.handler.contacts))
    await _a_round_trip(one, two)
    assert len(two.handler.messages) == 1
    two.transport.resume_receiving()
    await two.handler.until(lambda: len(two.handler.messages) == 21)


async def _a_round_trip(one, two):
    """Something that needs several turns of the loop and the network: an HTTP request to the peer port."""
    host, port = two.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_removed_peer_is_hung_up_on_in_both_directions(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    two.handler.removed.add(one.id)
    two.transport.remove_peer(one.id)
    two.transport.remove_peer(one.id)
    await one.handler.until(lambda: any(error.reason is Refusal.REMOVED_MEMBER for error in one.handler.refused))
    assert not one.transport.stats(two.id).is_connected
    assert two.transport.peers == []
    with pytest.raises(KeyError):
        two.transport.stats(one.id)


async def test_message_for_a_stranger_is_dropped(start_member):
    one = await start_member(1)
    one.transport.send([heartbeat(1, 99)])


async def test_snapshot_and_local_messages_are_refused_by_send(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    for bad in (
        Message(type=MessageType.SNAP, from_=one.id, to=two.id, snapshot=Snapshot()),
        Message(type=MessageType.HUP, from_=one.id, to=two.id),
    ):
        with pytest.raises(ValueError, match=r"snapshot|not for another member"):
            one.transport.send([bad])


async def test_written_messages_leave_before_stop_returns(start_member, connect):
    one, two = await start_member(1), await start_member(2)
    await connect(one, two)
    one.transport.send([Message(type=MessageType.TIMEOUT_NOW, from_=one.id, to=two.id, term=Term(3))])
    await one.transport.stop()
    await two.handler.until(lambda: bool(two.handler.messages))
    assert two.handler.messages[0][0].type is MessageType.TIMEOUT_NOW


async def test_stop_waits_for_what_is_written(start_member, start_proxy):
    one, two = await start_member(1, options=replace(_slow(OutboxLimits()), stop_timeout_s=30)), await start_member(2)
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    proxy.flow.clear()
    one.transport.send([append(1, 2, b"x" * 500_000, index=index) for index in range(50)])
    for _ in range(5):
        await _a_round_trip(two, two)  # the sockets on the way fill up
    assert one.transport.stats(two.id).queued_bytes > 1_000_000
    stopping = asyncio.create_task(one.transport.stop())
    await _a_round_trip(two, two)
    assert not stopping.done()
    proxy.flow.set()
    await stopping
    assert len(two.handler.messages) < 50, "what was only queued doesn't leave"


async def test_port_in_use_is_an_error(start_member):
    one = await start_member(1)
    with pytest.raises(OSError, match=r"in use|bind"):
        await start_member(2, listen=one.url)


@pytest.mark.parametrize(
    ("request_bytes", "status", "content"),
    [
        (b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n", 200, {"etcdserver": "3.5.0", "etcdcluster": "3.5.0"}),
        (b"GET /members?x=1 HTTP/1.0\r\n\r\n", 200, [{"id": 1}]),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404, {"message": "no such page"}),
        (b"POST /version HTTP/1.1\r\n\r\n", 405, {"message": "only GET is answered on the peer port"}),
        (b"GET /version\r\n\r\n", 400, {"message": "malformed request line"}),
        (b"GET /" + b"x" * 10_000, 431, {"message": "request head too large"}),
    ],
)
async def test_http_on_the_peer_port(start_member, request_bytes, status, content):
    one = await start_member(1)
    host, port = one.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for start in range(0, len(request_bytes), 3000):
        writer.write(request_bytes[start : start + 3000])
        await writer.drain()
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body) == content


async def test_http_arriving_byte_by_byte_is_answered(start_member):
    one = await start_member(1)
    host, port = one.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for byte in b"HEAD /version HTTP/1.1\r\n\r\n":
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n")
