"""Copies for clients that save: what is in them, how many there are, and that they go. Real store and files."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import Applier, ApplyMetDamageError, Store, inspect
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import CorruptError, RequestTimeoutError, SnapshotFailedError, SnapshotNoRoomError, TooManyRequestsError
from kvserver.logs import Logger
from kvserver.node.backups import MAX_STREAMS, RESERVE_BYTES, Backups
from kvserver.pb import rpc_pb2
from kvserver.snapshot import SnapshotCopies
from kvserver.storage import EngineConfig, batch
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Term
from wal import OsFiles

FOREVER_S = 60.0


class Silent:
    def write_line(self, line: str) -> None:
        del line


class Room(OsFiles):
    """A disk with as much room as the test says."""

    free: int | OSError = 1 << 40

    def free_bytes(self, directory: Path) -> int:
        if isinstance(self.free, OSError):
            raise self.free
        return self.free


class Copied:
    """A store, and the backups of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store.open(root / "db", config=EngineConfig(interval_s=3600.0))
        one = NodeId(1)
        self.store.bootstrap(ClusterId(7), {one: Member(id=one)}, ConfState(voters=(one,)), index=Index(1), term=Term(1))
        self.applier = Applier(self.store)
        self.executor = ThreadPoolExecutor(1)
        self.files = Room()
        self.copying: Any = self.store.copy_to
        self.copies = SnapshotCopies(root, self.copy, self.executor)
        self.backups = Backups(
            store=self.store, copies=self.copies, executor=self.executor, directory=root, files=self.files, log=Logger(Silent())
        )

    def copy(self, path: Path) -> Any:
        return self.copying(path)

    def put(self, key: bytes) -> None:
        index = Index(self.store.applied_index + 1)
        data = rpc_pb2.PutRequest(key=key, value=b"v" * 100).SerializeToString()
        self.applier.apply_entry(index, Term(1), commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), data))

    def open(self, wait_s: float = FOREVER_S) -> Any:
        return self.backups.open(deadline_s=asyncio.get_running_loop().time() + wait_s)

    def copies_on_disk(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("outgoing-*"))


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Copied]:
    made = Copied(tmp_path)
    yield made
    await made.copies.close()
    await made.store.close()
    made.executor.shutdown()


async def test_a_copy_holds_everything_applied_before_the_call_though_nothing_was_committed(member: Copied, tmp_path: Path) -> None:
    member.put(b"only in the buffer")
    async with member.open() as copy:
        content = b"".join([await copy.read(at, min(4096, copy.size_bytes - at)) for at in range(0, copy.size_bytes, 4096)])
        assert hashlib.sha256(content).digest() == copy.sha256
        assert len(content) % 512 == 0
    path = tmp_path / "saved"
    path.write_bytes(content)
    assert (inspect(path).index, inspect(path).revision) == (2, 2)


async def test_two_clients_share_a_copy_of_the_same_state_and_the_file_goes_with_the_last(member: Copied) -> None:
    async with member.open() as first:
        async with member.open() as second:
            assert first.copy is second.copy
            assert len(member.copies_on_disk()) == 1
        assert len(member.copies_on_disk()) == 1
        member.put(b"newer")
        async with member.open() as third:
            assert third.copy is not first.copy
            assert len(member.copies_on_disk()) == 2
    assert member.copies_on_disk() == []


async def test_more_streams_than_allowed_are_refused_until_one_ends(member: Copied) -> None:
    opened = [member.open() for _ in range(MAX_STREAMS)]
    for each in opened:
        await each.__aenter__()
    with pytest.raises(TooManyRequestsError):
        async with member.open():
            pytest.fail("one too many")
    await opened.pop().__aexit__(None, None, None)
    async with member.open():
        pass
    for each in opened:
        await each.__aexit__(None, None, None)
    assert member.backups.open_count == 0


async def test_a_client_that_leaves_frees_copy_and_slot_at_once(member: Copied) -> None:
    opened = asyncio.Event()

    async def read() -> None:
        async with member.open():
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await opened.wait()
    assert len(member.copies_on_disk()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert member.copies_on_disk() == []
    assert member.backups.open_count == 0


async def test_a_client_that_leaves_while_the_copy_is_being_made_leaves_nothing(member: Copied) -> None:
    started, loop = asyncio.Event(), asyncio.get_running_loop()
    copy = member.store.copy_to

    def slowly(path: Path) -> Any:
        loop.call_soon_threadsafe(started.set)
        return copy(path)

    member.copying = slowly
    task = asyncio.create_task(member.open().__aenter__())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert member.copies_on_disk() == []
    assert member.backups.open_count == 0


async def test_a_copy_that_would_fill_the_disk_is_refused_before_it_is_made(member: Copied) -> None:
    await member.store.commit()
    needed = member.store.size_in_use_bytes + RESERVE_BYTES
    member.files.free = needed - 1
    member.copying = lambda path: pytest.fail("copied")
    with pytest.raises(SnapshotNoRoomError):
        await member.open().__aenter__()
    member.copying = member.store.copy_to
    member.files.free = needed
    async with member.open():
        pass
    assert member.backups.open_count == 0


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, SnapshotNoRoomError), (errno.EDQUOT, SnapshotNoRoomError), (errno.EIO, SnapshotFailedError)]
)
async def test_what_the_disk_says_while_copying_is_told_apart(member: Copied, code: int, error: type[Exception]) -> None:
    def fail(path: Path) -> Any:
        path.write_bytes(b"half")
        raise OSError(code, "no")

    member.copying = fail
    with pytest.raises(error):
        await member.open().__aenter__()
    assert member.copies_on_disk() == []
    member.files.free = OSError(code, "no")
    with pytest.raises(SnapshotFailedError):
        await member.open().__aenter__()


async def test_a_copy_whose_file_is_cut_short_is_a_failure_not_a_short_snapshot(member: Copied) -> None:
    async with member.open() as copy:
        (path,) = member.root.glob("outgoing-*")
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(SnapshotFailedError):
            await copy.read(0, copy.size_bytes)


async def test_a_store_that_can_not_commit_in_time_is_a_timeout(member: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), batch.write

    def slowly(*arguments: Any) -> float:
        assert go.wait(20)
        return write(*arguments)

    member.put(b"k")
    monkeypatch.setattr(batch, "write", slowly)
    try:
        with pytest.raises(RequestTimeoutError):
            await member.open(wait_s=0.05).__aenter__()
    finally:
        go.set()
    assert member.backups.open_count == 0
    async with member.open():
        pass


@pytest.mark.parametrize(
    ("cause", "answer"),
    [
        (ApplyMetDamageError(Path("db"), "the row 'k' of table key", "fails its checksum", Index(3)), CorruptError),
        (ValueError("a defect"), SnapshotFailedError),
    ],
)
async def test_a_store_that_takes_no_more_is_not_saved(member: Copied, cause: Exception, answer: type[Exception]) -> None:
    member.put(b"applied and not committed")
    member.store.poison(cause)
    with pytest.raises(answer):
        async with member.open():
            pytest.fail("it was opened")
    assert member.backups.open_count == 0
    assert member.copies_on_disk() == []
