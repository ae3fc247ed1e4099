"""Snapshots between real transports and real files: delivery, sharing, resuming, and every way to fail, each told exactly once."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvserver.config.urls import parse_url
from kvserver.errors import KvError
from kvserver.logs import Logger
from kvserver.peer import Identity, SnapshotOptions
from kvserver.peer.dial import dial
from kvserver.peer.handshake import StreamKind
from kvserver.peer.options import TransportOptions
from kvserver.peer.stream import FrameStream
from kvserver.snapshot import OutgoingFile, SnapshotStorageError
from kvserver.snapshot.incoming import IncomingFile
from kvserver.types import ClusterId, NodeId
from raft.messages import Message, MessageType
from raft.types import ConfState, Index, Snapshot, SnapshotMetadata, Term
from wal import OsFiles

SMALL = SnapshotOptions(chunk_size_bytes=16 * 1024, stall_timeout_s=5)
HASTY = SnapshotOptions(chunk_size_bytes=16 * 1024, stall_timeout_s=0.2, sign_of_life_s=0.01, hangup_timeout_s=0.5)


def ask(from_: int, to: int, index: int = 40) -> Message:
    metadata = SnapshotMetadata(index=Index(index), term=Term(1), conf_state=ConfState(voters=(NodeId(9),)))
    return Message(type=MessageType.SNAP, from_=NodeId(from_), to=NodeId(to), term=Term(3), snapshot=Snapshot(metadata=metadata))


def files_of(member) -> list[str]:
    return sorted(path.name for path in member.directory.iterdir())


async def pair(start_member, connect, start_proxy=None, options=SMALL):
    """A leader and a laggard; the leader reaches the laggard through a proxy if one is wanted."""
    one, two = await start_member(1, snapshots=options), await start_member(2, snapshots=options)
    if start_proxy is None:
        await connect(one, two)
        return one, two, None
    proxy = await start_proxy(two.url)
    two.transport.add_peer(one.id, [one.url])
    one.transport.add_peer(two.id, [proxy.url])
    await one.handler.until(lambda: one.transport.stats(two.id).is_connected)
    return one, two, proxy


async def test_a_snapshot_arrives_and_is_handed_over_with_the_copys_metadata(start_member, connect):
    one, two, _ = await pair(start_member, connect)
    one.content = [os.urandom(1_000_000)]
    assert one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    (message, path) = two.handler.received[0]
    assert path.read_bytes() == one.content[0]
    assert message.type is MessageType.SNAP
    assert (message.from_, message.to, message.term) == (1, 2, 3)
    assert message.snapshot.metadata == one.metadata
    (outcome,) = one.handler.results
    assert (outcome.to, outcome.ok, outcome.reason, outcome.metadata, outcome.sent_bytes) == (2, True, "", one.metadata, 1_000_000)
    assert one.handler.started == [(2, one.metadata)]
    assert files_of(one) == []
    assert files_of(two) == [path.name]


@pytest.mark.parametrize("size", [1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 3 * 16 * 1024])
async def test_sizes_round_the_chunk_arrive_whole(start_member, connect, size):
    one, two, _ = await pair(start_member, connect)
    one.content = [os.urandom(size)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok
    assert two.handler.received[0][1].read_bytes() == one.content[0]


async def test_fifty_megabytes_need_no_memory_for_them(start_member, connect):
    one, two, _ = await pair(start_member, connect, options=SnapshotOptions())
    one.content = [os.urandom(1_000_000)] * 50
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        one.transport.send_snapshot(ask(1, 2))
        await one.handler.until(lambda: bool(one.handler.results), timeout_s=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert one.handler.results[0].ok
    assert two.handler.received[0][1].stat().st_size == 50_000_000
    assert peak - before < 6_000_000, f"peak of {peak - before} bytes"


async def test_messages_pass_while_a_snapshot_is_under_way(start_member, connect):
    one, two, _ = await pair(start_member, connect, options=SnapshotOptions(chunk_size_bytes=16 * 1024, rate_limit_bytes_per_s=2_000_000))
    one.content = [os.urandom(500_000)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.started))
    for commit in range(20):
        one.transport.send([Message(type=MessageType.HEARTBEAT, from_=one.id, to=two.id, commit=Index(commit))])
        await two.handler.until(lambda commit=commit: len(two.handler.messages) == commit + 1)
    assert not one.handler.results
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok
    assert one.handler.results[0].duration_s > 0.2  # 500 kB at 2 MB/s


async def test_progress_is_shown_and_never_moves_back(start_member, connect):
    one, _, _ = await pair(start_member, connect, options=SnapshotOptions(chunk_size_bytes=16 * 1024, rate_limit_bytes_per_s=3_000_000))
    one.content = [os.urandom(320_000)]
    one.transport.send_snapshot(ask(1, 2))
    seen = []
    while not one.handler.results:
        seen += [(each.received_bytes, each.size_bytes, each.to) for each in one.transport.snapshot_progress]
        await asyncio.sleep(0)
    assert {(size, to) for _, size, to in seen} == {(320_000, 2)}
    received = [each for each, _, _ in seen]
    assert received == sorted(received)
    assert len(set(received)) > 5
    assert one.transport.snapshot_progress == []


async def test_two_laggards_share_one_copy(start_member, connect):
    members = [await start_member(i, snapshots=SMALL) for i in (1, 2, 3)]
    await connect(*members)
    one = members[0]
    one.content = [os.urandom(300_000)]
    one.transport.send_snapshot(ask(1, 2))
    one.transport.send_snapshot(ask(1, 3))
    await one.handler.until(lambda: len(one.handler.results) == 2)
    assert all(outcome.ok for outcome in one.handler.results)
    assert one.copies_made == 1
    assert files_of(one) == []


async def test_a_second_request_to_the_same_peer_joins_the_first(start_member, connect):
    one, two, _ = await pair(start_member, connect)
    assert one.transport.send_snapshot(ask(1, 2))
    assert not one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: len(one.handler.results) == 2)
    assert len(two.handler.received) == 2


async def test_a_cut_connection_is_resumed_where_it_was(start_member, connect, start_proxy):
    one, two, proxy = await pair(start_member, connect, start_proxy)
    one.content = [os.urandom(4_000_000)]
    proxy.cut_after_bytes = proxy.relayed_bytes + 3_000_000
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    (outcome,) = one.handler.results
    assert outcome.ok
    assert two.handler.received[0][1].read_bytes() == one.content[0]
    assert 4_000_000 < outcome.sent_bytes < 6_000_000, "it began anew"
    assert two.log.count("snapshot transfer cut off") == 1
    assert one.copies_made == 1


async def test_a_flipped_bit_on_the_way_is_noticed_and_sent_again(start_member, connect, start_proxy):
    one, two, proxy = await pair(start_member, connect, start_proxy)
    one.content = [os.urandom(1_000_000)]
    proxy.flip_at_byte = proxy.relayed_bytes + 500_000
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok
    assert two.handler.received[0][1].read_bytes() == one.content[0]
    assert two.log.count("malformed input") == 1


async def test_a_file_that_changes_under_the_sender_is_refused_as_a_whole(start_member, connect, monkeypatch):
    one, two, _ = await pair(start_member, connect)
    one.content = [os.urandom(100_000)]
    read = OutgoingFile.read
    monkeypatch.setattr(OutgoingFile, "read", lambda file, at, size: bytes(size) if at == 32768 else read(file, at, size))
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    (outcome,) = one.handler.results
    assert not outcome.ok
    assert "SHA-256" in outcome.reason
    assert two.handler.received == []
    assert files_of(two) == []


async def test_a_full_disk_at_the_receiver_is_reported_with_its_words(start_member, connect, monkeypatch):
    one, two, _ = await pair(start_member, connect)
    one.content = [os.urandom(2_000_000)]
    write = IncomingFile.write

    def full(self, offset, chunk):
        if offset > 300_000:
            raise SnapshotStorageError(f"part: {os.strerror(errno.ENOSPC)}")
        write(self, offset, chunk)

    monkeypatch.setattr(IncomingFile, "write", full)
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    (outcome,) = one.handler.results
    assert not outcome.ok
    assert "No space left on device" in outcome.reason
    assert two.handler.received == []
    assert files_of(two) == []
    assert files_of(one) == []


async def test_a_store_that_cant_be_copied_is_a_failure(start_member, connect):
    one, _, _ = await pair(start_member, connect)
    one.content = []
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    (outcome,) = one.handler.results
    assert (outcome.ok, outcome.metadata) == (False, None)
    assert "empty" in outcome.reason


async def test_a_snapshot_that_the_node_doesnt_want_is_removed_and_reported(start_member, connect):
    one, two, _ = await pair(start_member, connect)
    two.handler.refuse_snapshot = KvError("stopping")
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].reason == "stopping"
    assert files_of(two) == []


async def test_a_snapshot_that_is_no_news_is_removed_off_the_loop_and_the_sender_hears_of_success(start_member, connect, monkeypatch):
    one, two, _ = await pair(start_member, connect)
    two.handler.takes_snapshots = False
    removed_by = []
    remove = OsFiles.remove

    def noted(files, path):
        if path.parent == two.directory:
            removed_by.append(threading.current_thread())
        remove(files, path)

    monkeypatch.setattr(OsFiles, "remove", noted)
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok
    assert files_of(two) == []
    assert len(removed_by) == 1
    assert removed_by[0] is not threading.main_thread()


async def test_what_one_sender_brings_in_vain_is_gone_before_another_brings_the_same_with_success(start_member, connect, monkeypatch):
    """Both end at the same name: the removal of the first must not hit the second's file."""
    one, two, three = [await start_member(number, snapshots=SMALL) for number in (1, 2, 3)]
    await connect(one, two, three)
    three.metadata = one.metadata
    begun, go = threading.Event(), threading.Event()
    remove = OsFiles.remove

    def held(files, path):
        if path.parent == two.directory and path.name.startswith("received-"):
            begun.set()
            assert go.wait(20)
        remove(files, path)

    monkeypatch.setattr(OsFiles, "remove", held)
    with ThreadPoolExecutor(4) as many:  # so that the second transfer is not held up by the first one's removal
        monkeypatch.setattr(two.transport._receiver, "_executor", many)
        try:
            two.handler.takes_snapshots = False
            one.transport.send_snapshot(ask(1, 2))
            await asyncio.to_thread(begun.wait, 20)
            two.handler.takes_snapshots = True
            three.transport.send_snapshot(ask(3, 2))
            await asyncio.wait([asyncio.create_task(three.handler.until(lambda: bool(three.handler.results)))], timeout=0.3)
        finally:
            go.set()
        await three.handler.until(lambda: bool(three.handler.results))
        await one.handler.until(lambda: bool(one.handler.results))
    (_, path) = two.handler.received[-1]
    assert (len(two.handler.received), files_of(two)) == (2, [path.name])


async def test_cancelling_ends_the_transfer_and_cleans_up(start_member, connect, start_proxy):
    one, two, proxy = await pair(start_member, connect, start_proxy)
    one.content = [os.urandom(2_000_000)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.started))
    proxy.flow.clear()
    one.transport.cancel_snapshot(two.id)
    await one.handler.until(lambda: bool(one.handler.results))
    (outcome,) = one.handler.results
    assert (outcome.ok, outcome.reason) == (False, "cancelled")
    assert files_of(one) == []
    proxy.flow.set()


async def test_cancelling_before_the_first_step_still_gives_a_result(start_member, connect):
    one, two, _ = await pair(start_member, connect)
    one.transport.send_snapshot(ask(1, 2))
    one.transport.cancel_snapshot(two.id)
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].reason == "cancelled"


async def test_stopping_ends_transfers_with_a_result_and_without_files(start_member, connect):
    one, two, _ = await pair(start_member, connect, options=SnapshotOptions(chunk_size_bytes=16 * 1024, rate_limit_bytes_per_s=100_000))
    one.content = [os.urandom(1_000_000)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.started))
    await one.transport.stop()
    assert [outcome.reason for outcome in one.handler.results] == ["cancelled"]
    assert files_of(one) == []
    await two.transport.stop()
    assert two.handler.received == []


async def test_removing_the_peer_ends_its_transfer(start_member, connect):
    one, two, _ = await pair(start_member, connect, options=SnapshotOptions(chunk_size_bytes=16 * 1024, rate_limit_bytes_per_s=100_000))
    one.content = [os.urandom(1_000_000)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.started))
    one.transport.remove_peer(two.id)
    await one.handler.until(lambda: bool(one.handler.results))
    assert not one.handler.results[0].ok


async def test_a_peer_that_is_gone_fails_the_transfer_after_the_stall_timeout(start_member):
    one = await start_member(1, snapshots=HASTY)
    one.transport.add_peer(NodeId(2), ["http://127.0.0.1:1"])
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].reason.startswith("no progress for 0.2 s")
    assert files_of(one) == []


async def test_a_receiver_that_refuses_the_sender_fails_the_transfer(start_member):
    one, two = await start_member(1, snapshots=SMALL), await start_member(2, members={2})
    one.transport.add_peer(two.id, [two.url])
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].reason.startswith("refused: member 1 is not known")


async def test_a_stalled_network_fails_the_transfer(start_member, connect, start_proxy):
    one, two, proxy = await pair(start_member, connect, start_proxy, options=HASTY)
    one.content = [os.urandom(2_000_000)]
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.started))
    proxy.flow.clear()
    await one.handler.until(lambda: bool(one.handler.results))
    assert "no progress" in one.handler.results[0].reason
    proxy.flow.set()
    await two.transport.stop()
    assert two.handler.received == []


async def test_a_long_sync_at_the_receiver_is_not_a_stall(start_member, connect, monkeypatch):
    one, _, _ = await pair(start_member, connect, options=HASTY)
    release, finish = threading.Event(), IncomingFile.finish

    def slow(self):
        assert release.wait(10)
        return finish(self)

    monkeypatch.setattr(IncomingFile, "finish", slow)
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.transport.snapshot_progress))
    asyncio.get_running_loop().call_later(3 * HASTY.stall_timeout_s, release.set)
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok


async def test_a_new_stream_of_the_same_sender_takes_over_from_a_dead_one(start_member, connect):
    one, two, _ = await pair(start_member, connect)
    dialler = Identity(cluster_id=ClusterId(0xC1), member_id=one.id)
    connection, _ = await dial(
        parse_url(two.url), two.id, StreamKind.SNAPSHOT, identity=dialler, options=TransportOptions(), logger=Logger(one.log)
    )
    connection.owner = FrameStream(connection)
    one.transport.send_snapshot(ask(1, 2))
    await one.handler.until(lambda: bool(one.handler.results))
    assert one.handler.results[0].ok
    await connection.lost
