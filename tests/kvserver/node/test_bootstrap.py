"""How a member starts: founding, restarting, finishing a crashed install, refusing what is not its own. Real store, WAL and files."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvserver import commands
from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import ServerConfig, parse
from kvserver.logs import Logger
from kvserver.node import bootstrap
from kvserver.node.bootstrap import BootstrapError, Origin
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import DataDirectory, DataDirectoryError, open_data_directory
from kvserver.node.joining import JoinError
from kvserver.pb import rpc_pb2
from kvserver.snapshot.files import received_path
from kvserver.types import NodeId
from raft.types import Entry, HardState, Index, Term
from wal import Marker


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


LOG = Logger(SilentOutput())


class Member:
    """One life of a member's directory: store, WAL and window, without raft."""

    def __init__(self, root: Path, *flags: str, limits: WindowLimits | None = None) -> None:
        invocation = parse(
            [
                "--name=a",
                f"--data-dir={root}",
                "--initial-advertise-peer-urls=http://127.0.0.1:7001",
                *(flags or ("--initial-cluster=a=http://127.0.0.1:7001,b=http://127.0.0.1:7002",)),
            ],
            {},
        )
        self.config: ServerConfig = invocation.config  # type: ignore[union-attr]
        self.limits = limits or WindowLimits()
        self.directory: DataDirectory
        self.store: Store
        self.origin: Origin

    async def open(self) -> Member:
        self.directory = open_data_directory(self.config.data_dir, self.config.wal_dir)
        self.store = Store.open(self.directory.store)
        try:
            self.origin = await bootstrap.begin(self.config, self.directory, self.store, self.limits, LOG)
        except BaseException:
            await self.store.close(commit=False)
            self.directory.close()
            raise
        return self

    async def close(self, *, commit: bool = True) -> None:
        await self.store.close(commit=commit)
        self.origin.wal.close()
        self.directory.close()

    def log(self, lo: int, hi: int, *, commit: int, term: int = 1) -> None:
        """Write puts into the WAL, as raft's append would."""
        held = [Entry(index=Index(i), term=Term(term), data=put_command(i)) for i in range(lo, hi)]
        self.origin.wal.save(held, HardState(term=Term(term), commit=Index(commit)), sync=True)

    def apply(self, lo: int, hi: int, term: int = 1) -> None:
        applier = Applier(self.store)
        for index in range(lo, hi):
            applier.apply_entry(Index(index), Term(term), put_command(index))


def put_command(index: int) -> bytes:
    request = rpc_pb2.PutRequest(key=b"k%d" % index, value=b"v" * 100)
    return commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), request.SerializeToString())


def held(member: Member) -> tuple[int, int]:
    return member.origin.window.first_index(), member.origin.window.last_index()


async def test_all_members_found_the_same_cluster_from_the_same_flags(tmp_path: Path) -> None:
    first = await Member(tmp_path / "a").open()
    other = Member(tmp_path / "b")
    other.config = replace(other.config, name="b", initial_advertise_peer_urls=other.config.initial_cluster[1].peer_urls)
    second = await other.open()
    assert first.origin.cluster_id == second.origin.cluster_id
    assert first.origin.member_id != second.origin.member_id
    assert first.store.conf_state == second.store.conf_state
    assert sorted(first.store.members) == sorted([first.origin.member_id, second.origin.member_id])
    await first.close()
    await second.close()


async def test_a_restart_keeps_identity_and_what_was_applied(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    identity = (member.origin.cluster_id, member.origin.member_id)
    member.log(2, 11, commit=8)
    member.apply(2, 6)
    await member.close()
    again = await Member(tmp_path).open()
    assert (again.origin.cluster_id, again.origin.member_id) == identity
    assert again.store.applied_index == 5
    assert again.origin.hard_state == HardState(term=Term(1), commit=Index(8))
    assert held(again) == (2, 10)
    await again.close()


async def test_the_window_of_a_restart_holds_the_newest_within_its_limits_and_everything_unapplied(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.log(2, 1001, commit=1000)
    member.apply(2, 901)
    await member.close()
    narrow = await Member(tmp_path, limits=WindowLimits(max_entries=50)).open()
    assert held(narrow) == (901, 1000)
    await narrow.close()
    wide = await Member(tmp_path, limits=WindowLimits(max_entries=300)).open()
    assert held(wide) == (701, 1000)
    assert wide.origin.window.term(Index(700)) == 1
    await wide.close()


async def test_a_crash_between_marker_and_swap_is_finished_at_the_next_start(tmp_path: Path) -> None:
    donor = await Member(tmp_path / "donor").open()
    donor.log(2, 101, commit=100)
    donor.apply(2, 101)
    donor.store.request_commit()
    await donor.store.wait_durable(Index(100))
    member = await Member(tmp_path / "a").open()
    member.log(2, 4, commit=3)
    member.apply(2, 4)
    received = received_path(member.directory.snap, Index(100), Term(1))
    donor.store.copy_to(received)
    member.origin.wal.save_marker(Marker(Index(100), Term(1)), HardState(term=Term(1), commit=Index(100)))
    await member.close()
    again = await Member(tmp_path / "a").open()
    assert again.store.applied_index == 100
    assert held(again) == (101, 100)
    assert again.store.range(rpc_pb2.RangeRequest(key=b"k77")).count == 1
    assert not received.exists()
    await again.close()
    await donor.close()


class Neighbour:
    """The peer port of member b, which answers whoever asks who is in the cluster."""

    def __init__(self) -> None:
        self.asked = 0
        self.page: dict[str, object] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps(self.page).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    def say(self, cluster_id: int, member_id: int, *, has_run: bool, removed: tuple[int, ...] = ()) -> None:
        urls = ["http://127.0.0.1:2379"] if has_run else []
        row = {"id": member_id, "name": "a", "peerURLs": ["http://127.0.0.1:7001"], "clientURLs": urls, "isLearner": False}
        self.page = {"cluster_id": cluster_id, "members": [] if removed else [row], "removed": removed}


async def test_a_second_restore_of_a_member_that_has_taken_part_is_refused_and_every_other_restart_is_not(tmp_path: Path) -> None:
    neighbour = Neighbour()
    server = await asyncio.start_server(neighbour.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    flag = f"--initial-cluster=a=http://127.0.0.1:7001,b=http://127.0.0.1:{port}"

    async def start() -> Member:
        return await Member(tmp_path / "a", flag).open()

    try:
        member = await start()  # what it makes is what a restore makes, too: the founding position
        cluster, own = member.origin.cluster_id, member.origin.member_id
        await member.close()
        neighbour.say(cluster, own, has_run=False)
        await (await start()).close()
        neighbour.say(cluster + 1, own, has_run=True)  # of another cluster: it knows another life
        await (await start()).close()
        neighbour.say(cluster, own, has_run=True)
        with pytest.raises(BootstrapError, match=r"already been bootstrapped, and its data directory .* holds nothing of it"):
            await start()
        neighbour.say(cluster, own, has_run=True, removed=(own,))
        with pytest.raises(BootstrapError, match="member remove"):
            await start()
        neighbour.say(cluster, own, has_run=False)
        member = await start()
        member.origin.wal.save([], HardState(term=Term(2), vote=NodeId(7), commit=Index(1)), sync=True)
        await member.close()
        neighbour.say(cluster, own, has_run=True)
        asked = neighbour.asked
        await (await start()).close()
        assert neighbour.asked == asked, "it remembers its vote: nobody has to be asked"
    finally:
        server.close()
        await server.wait_closed()


async def test_a_received_snapshot_without_a_marker_is_dropped(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.log(2, 4, commit=3)
    member.apply(2, 4)
    await member.close()
    stray = received_path(member.directory.snap, Index(100), Term(1))
    stray.write_bytes(b"whatever")
    again = await Member(tmp_path).open()
    assert again.store.applied_index == 3
    assert not stray.exists()
    await again.close()


async def test_a_marker_whose_snapshot_is_gone_is_refused(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.origin.wal.save_marker(Marker(Index(100), Term(1)), HardState(term=Term(1), commit=Index(100)))
    await member.close()
    with pytest.raises(BootstrapError, match="snapshot at index 100"):
        await Member(tmp_path).open()


async def test_a_missing_wal_beside_a_used_store_is_refused(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.log(2, 4, commit=3)
    member.apply(2, 4)
    await member.close()
    shutil.rmtree(member.directory.wal)
    with pytest.raises(BootstrapError, match=r"WAL directory .* is missing"):
        await Member(tmp_path).open()


async def test_a_lost_store_is_built_again_from_a_wal_that_reaches_back_to_the_first_entry(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.log(2, 21, commit=20)
    member.apply(2, 21)
    members = dict(member.store.members)
    await member.close()
    member.directory.store.unlink()
    again = await Member(tmp_path).open()
    assert again.store.applied_index == 1
    assert dict(again.store.members) == members
    assert held(again) == (2, 20)
    await again.close()


async def test_a_lost_store_is_refused_when_the_wal_begins_later(tmp_path: Path) -> None:
    member = await Member(tmp_path).open()
    member.origin.wal.save_marker(Marker(Index(100), Term(1)), HardState(term=Term(1), commit=Index(100)))
    await member.close()
    member.directory.store.unlink()
    with pytest.raises(BootstrapError, match="begins at index 101"):
        await Member(tmp_path).open()


FoundingFlags = tuple[str, ...]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--initial-cluster=a=http://127.0.0.1:7001,b=http://127.0.0.1:7002", "--initial-cluster-token=other"), "another cluster"),
        (
            (
                "--initial-advertise-peer-urls=http://127.0.0.1:8001",
                "--initial-cluster=a=http://127.0.0.1:8001,b=http://127.0.0.1:8002",
            ),
            "another cluster",
        ),
        (
            (
                "--name=b",
                "--initial-advertise-peer-urls=http://127.0.0.1:7002",
                "--initial-cluster=a=http://127.0.0.1:7001,b=http://127.0.0.1:7002",
            ),
            "another member",
        ),
    ],
)
async def test_a_directory_of_another_cluster_or_member_is_refused(tmp_path: Path, flags: FoundingFlags, words: str) -> None:
    member = await Member(tmp_path).open()
    await member.close()
    with pytest.raises(BootstrapError, match=words):
        await Member(tmp_path, *flags).open()
    again = await Member(tmp_path).open()
    await again.close()


async def test_joining_needs_somebody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="must name"):
        await Member(tmp_path, "--initial-cluster-state=existing").open()


def test_a_directory_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    first = open_data_directory(tmp_path, tmp_path / "member" / "wal")
    with pytest.raises(DataDirectoryError, match="in use"):
        open_data_directory(tmp_path, tmp_path / "member" / "wal")
    first.close()
    open_data_directory(tmp_path, tmp_path / "member" / "wal").close()


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataDirectoryError, match="can't be used"):
        open_data_directory(tmp_path / "file", tmp_path / "file" / "member" / "wal")
