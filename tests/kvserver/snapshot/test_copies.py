"""Taking copies: shared while it helps, gone when nobody holds them, nothing left behind by a failure."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvserver.errors import KvError
from kvserver.snapshot import OutgoingFile, SnapshotCopies, SnapshotCopyError, SnapshotStorageError, run_to_end
from raft.types import ConfState, Index, NodeId, SnapshotMetadata, Term


@pytest.fixture
def executor():
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


class Store:
    """What `make_copy` copies; may be told to fail or to wait."""

    def __init__(self) -> None:
        self.index = 10
        self.copies = 0
        self.failure: BaseException | None = None
        self.content = b"content"
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def make_copy(self, path):
        self.copies += 1
        path.write_bytes(self.content)
        self.started.set()
        assert self.go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        return SnapshotMetadata(index=Index(self.index), term=Term(1), conf_state=ConfState(voters=(NodeId(1),)))


async def test_a_copy_is_whole_durable_and_described(tmp_path, executor):
    store = Store()
    copies = SnapshotCopies(tmp_path, store.make_copy, executor)
    copy = await copies.acquire(Index(10))
    assert copy.path.read_bytes() == store.content
    assert copy.sha256 == hashlib.sha256(store.content).digest()
    assert copy.size_bytes == len(store.content)
    assert [path.name for path in tmp_path.iterdir()] == [copy.path.name]
    assert copies.newest_metadata == copy.metadata
    await copies.release(copy)
    assert list(tmp_path.iterdir()) == []
    assert copies.newest_metadata is None


async def test_laggards_share_a_copy_while_it_is_held_and_new_enough(tmp_path, executor):
    store = Store()
    copies = SnapshotCopies(tmp_path, store.make_copy, executor)
    first, second = await asyncio.gather(copies.acquire(Index(3)), copies.acquire(Index(10)))
    assert first is second
    assert store.copies == 1
    store.index = 20
    third = await copies.acquire(Index(11))
    assert third.metadata.index == 20
    assert store.copies == 2
    await copies.release(first)
    assert first.path.exists()
    await copies.release(second)
    assert not first.path.exists()
    assert third.path.exists()
    await copies.release(third)
    assert list(tmp_path.iterdir()) == []


async def test_who_has_read_a_copy_does_not_wait_for_the_next_one_to_be_taken(tmp_path, executor):
    """A copy of a large store takes minutes; chunks, and the end of transfers, have a thread of their own."""
    store = Store()
    with ThreadPoolExecutor(max_workers=1) as io:
        copies = SnapshotCopies(tmp_path, store.make_copy, executor, io=io)
        first = await copies.acquire(Index(1))
        store.started.clear()
        store.go_on.clear()
        store.index = 20
        second = asyncio.create_task(copies.acquire(Index(11)))
        try:
            await asyncio.to_thread(store.started.wait)
            async with asyncio.timeout(20):
                await copies.release(first)
            assert not first.path.exists()
            assert not second.done()
        finally:
            store.go_on.set()
        await copies.release(await second)


async def test_releasing_twice_is_a_programmers_error(tmp_path, executor):
    copies = SnapshotCopies(tmp_path, Store().make_copy, executor)
    copy = await copies.acquire(Index(1))
    await copies.release(copy)
    with pytest.raises(AssertionError, match="released twice"):
        await copies.release(copy)


class StoreFailedError(KvError):
    pass


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), StoreFailedError("the store is closed")])
async def test_a_failed_copy_leaves_nothing_and_the_next_one_works(tmp_path, executor, failure):
    store = Store()
    store.failure = failure
    copies = SnapshotCopies(tmp_path, store.make_copy, executor)
    with pytest.raises(SnapshotCopyError, match=r"No space left|store is closed"):
        await copies.acquire(Index(1))
    assert list(tmp_path.iterdir()) == []
    store.failure = None
    await copies.release(await copies.acquire(Index(1)))


async def test_unexpected_errors_pass_through_and_leave_nothing(tmp_path, executor):
    store = Store()
    store.failure = ZeroDivisionError()
    copies = SnapshotCopies(tmp_path, store.make_copy, executor)
    with pytest.raises(ZeroDivisionError):
        await copies.acquire(Index(1))
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_copy_is_an_error(tmp_path, executor):
    store = Store()
    store.content = b""
    with pytest.raises(SnapshotCopyError, match="empty"):
        await SnapshotCopies(tmp_path, store.make_copy, executor).acquire(Index(1))
    assert list(tmp_path.iterdir()) == []


async def test_a_store_behind_the_asked_index_is_an_error(tmp_path, executor):
    with pytest.raises(SnapshotCopyError, match="at index 10, a snapshot at 11"):
        await SnapshotCopies(tmp_path, Store().make_copy, executor).acquire(Index(11))
    assert list(tmp_path.iterdir()) == []


async def test_cancelling_while_a_copy_is_taken_removes_it_when_it_is_done(tmp_path, executor):
    store = Store()
    store.go_on.clear()
    copies = SnapshotCopies(tmp_path, store.make_copy, executor)
    task = asyncio.create_task(copies.acquire(Index(1)))
    await asyncio.get_running_loop().run_in_executor(None, store.started.wait)
    task.cancel()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    store.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
    await copies.release(await copies.acquire(Index(1)))


async def test_close_removes_what_is_held(tmp_path, executor):
    copies = SnapshotCopies(tmp_path, Store().make_copy, executor)
    copy = await copies.acquire(Index(1))
    await copies.close()
    assert list(tmp_path.iterdir()) == []
    await copies.release(copy)


async def test_waiting_shows_life_until_the_work_is_done(executor):
    done, signs = threading.Event(), []

    def live():
        signs.append(1)
        if len(signs) == 3:
            done.set()

    assert await run_to_end(executor, lambda: done.wait(10), meanwhile=live, interval_s=0.001)
    assert len(signs) >= 3


def test_an_outgoing_file_reads_exactly_what_is_asked(tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(b"0123456789")
    file = OutgoingFile(path)
    path.unlink()
    assert file.read(4, 3) == b"456"
    with pytest.raises(SnapshotStorageError, match="2 bytes at offset 8 where 4"):
        file.read(8, 4)
    file.close()
    file.close()
    with pytest.raises(SnapshotStorageError, match="No such file"):
        OutgoingFile(path)
