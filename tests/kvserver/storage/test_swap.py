"""A store's file replaced under a running engine: readers, writers, crashes, cancellations, and the races between them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvserver.errors import FatalError
from kvserver.storage import (
    DamagedRowError,
    Engine,
    StorageNoSpaceError,
    SwapFailedError,
    ViewExpiredError,
    batch,
    files,
    swap,
)
from tests.kvserver.storage.held import HeldCall
from wal import OsFiles

OpenEngine = Callable[..., Engine]


def write(engine: Engine, mark: int, value: bytes = b"v") -> None:
    engine.put(0, b"k%d" % mark, value)
    engine.end_entry(mark)


def keys(engine: Engine) -> list[bytes]:
    return [key for key, _ in engine.reader.iterate(0)]


def is_there(path: Path) -> bool:
    return path.exists()


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    place = content.rindex(old)
    path.write_bytes(content[:place] + new + content[place + len(old) :])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - lets threads and timers run
            await asyncio.sleep(0.001)


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    """What must not hang."""
    async with asyncio.timeout(20):
        yield


@pytest.fixture
async def other(open_engine: OpenEngine, tmp_path: Path) -> Path:
    """Another store's file, at mark 50."""
    engine = open_engine("other", interval_s=60)
    write(engine, 50, b"new")
    await engine.close()
    files.lock_path(tmp_path / "other").unlink()  # a received file has none
    return tmp_path / "other"


@pytest.fixture
async def engine(open_engine: OpenEngine) -> Engine:
    """A store with one committed entry, and one in the buffer."""
    made = open_engine(interval_s=60, retry_s=0.01)
    write(made, 1)
    await made.commit()
    write(made, 2)
    return made


async def test_replacement_drops_the_buffer_and_serves_the_copy(engine: Engine, other: Path, open_engine: OpenEngine) -> None:
    await engine.replace_with(other, mark=50)
    assert engine.durable_mark == 50
    assert keys(engine) == [b"k50"]
    assert sorted(path.name for path in other.parent.iterdir()) == ["db", "db-lock"]
    write(engine, 51)
    await engine.close()
    assert keys(open_engine()) == [b"k50", b"k51"]


async def test_the_new_store_is_told_of_in_the_turn_in_which_it_is_in_force(engine: Engine, other: Path) -> None:
    seen: list[list[bytes]] = []
    await engine.replace_with(other, mark=50, on_swapped=lambda: seen.append(keys(engine)))
    assert seen == [[b"k50"]]


@pytest.mark.parametrize("step", ["fsync", "lock", "rename", "directory"])
async def test_crash_at_any_step_of_a_replacement_leaves_one_whole_store(
    engine: Engine, other: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.EIO, "crash")

    target: tuple[Any, str] = {
        "fsync": (os, "fsync"),
        "lock": (Path, "replace"),
        "rename": (OsFiles, "rename"),
        "directory": (OsFiles, "fsync_dir"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(*target, crash)
        with pytest.raises(SwapFailedError, match=r"crash.*start again, which finishes it"):
            await engine.replace_with(other, mark=50)
    await engine.close(commit=False)
    replaced = step == "directory"
    found = keys(open_engine())
    assert (b"k50" in found, b"k1" in found) == (replaced, not replaced)
    assert is_there(other) is not replaced


async def test_nothing_is_committed_after_an_exchange_that_failed(
    engine: Engine, other: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is open which file has the name: a commit into one that has none would be lost, and its WAL released."""
    fatal: list[FatalError] = []
    engine.hooks.on_fatal = fatal.append

    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, "no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(OsFiles, "fsync_dir", fail)
        with pytest.raises(SwapFailedError):
            await engine.replace_with(other, mark=50)
    assert [type(error) for error in fatal] == [SwapFailedError]
    with pytest.raises(SwapFailedError):
        await engine.commit()
    await engine.close()
    assert engine.durable_mark == 1
    assert keys(open_engine()) == [b"k50"]


async def test_a_failure_before_the_exchange_leaves_the_old_store_and_what_was_buffered(
    engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.EIO, "no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(files, "prepare_replace", fail)
        with pytest.raises(SwapFailedError):
            await engine.replace_with(other, mark=50)
    await engine.commit()
    assert (engine.durable_mark, keys(engine)) == (2, [b"k1", b"k2"])


# --- readers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [(swap, "prepare"), (files, "replace")])
async def test_the_loop_reads_the_old_store_while_a_thread_works_on_the_files(
    engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    held = HeldCall(getattr(*step))
    monkeypatch.setattr(*step, held)
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(held.begun.is_set)
    for _ in range(3):  # the loop turns, and every turn sees one whole store
        await asyncio.sleep(0)
        assert keys(engine) == [b"k1", b"k2"]
        assert engine.size_in_use_bytes > 0
    held.go.set()
    async with bounded():
        await swapping
    assert keys(engine) == [b"k50"]


async def test_views_end_before_the_exchange_and_none_begins_until_it_is_over(
    engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCall(files.replace)
    monkeypatch.setattr(files, "replace", held)
    old = engine.read_view()
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(lambda: old.expired)
    assert not held.begun.is_set(), "the file is not exchanged under a view"
    with pytest.raises(ViewExpiredError):
        old.get(0, b"k1")
    with pytest.raises(ViewExpiredError):
        engine.read_view()
    old.close()
    await until(held.begun.is_set)
    with pytest.raises(ViewExpiredError):
        engine.read_view()
    held.go.set()
    async with bounded():
        await swapping
    with engine.read_view() as view:
        assert view.get(0, b"k50") == b"new"


async def test_damage_in_the_new_store_is_reported_with_the_stores_name(engine: Engine, other: Path) -> None:
    overwrite(other, b"new", b"old")
    await engine.replace_with(other, mark=50)
    with pytest.raises(DamagedRowError) as damage:
        engine.reader.get(0, b"k50")
    assert damage.value.text.startswith(f"{engine.path}: ")


# --- writers ---------------------------------------------------------------------------------------------------------------------------


async def test_no_commit_begins_while_the_file_is_being_replaced(engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of what is going to be dropped would hold the file open, or write into one that has no name any more."""
    commits: list[int] = []
    fatal: list[FatalError] = []
    real = batch.commit
    monkeypatch.setattr(batch, "commit", lambda *arguments: (commits.append(1), real(*arguments))[1])
    engine.hooks.on_fatal = fatal.append
    view = engine.read_view()
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(lambda: view.expired)
    for number in range(30):
        engine.put(0, b"x%d" % number, bytes(200_000))  # more than a batch
    engine.end_entry(3)
    engine.request_commit()
    waiting = asyncio.create_task(engine.commit())
    await asyncio.sleep(0.05)
    view.close()
    async with bounded():
        await swapping
        await waiting
    assert (commits, fatal) == ([], [])
    assert keys(engine) == [b"k50"]
    write(engine, 51)
    await engine.commit()
    assert (commits, engine.durable_mark) == ([1], 51)


async def test_the_retry_of_a_kept_batch_does_not_outlive_the_swap(engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    told: list[object] = []
    real = batch.commit

    def full(*arguments: Any) -> float:
        attempts.append(1)
        raise StorageNoSpaceError(engine.path, "full")

    engine.hooks.on_no_space = told.append
    monkeypatch.setattr(batch, "commit", full)
    engine.request_commit()
    await until(lambda: len(attempts) >= 2)
    view = engine.read_view()
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(lambda: view.expired)
    begun = len(attempts)
    await asyncio.sleep(0.1)  # ten times the pause between two attempts
    assert len(attempts) == begun
    view.close()
    async with bounded():
        await swapping
    assert keys(engine) == [b"k50"]
    assert [type(each) for each in told] == [StorageNoSpaceError, type(None)]
    monkeypatch.setattr(batch, "commit", real)
    write(engine, 51)
    async with bounded():
        await engine.commit()
    assert len(attempts) == begun


# --- cancelled, and closed -------------------------------------------------------------------------------------------------------------


async def test_cancelled_while_it_waits_for_space_the_old_store_goes_on(
    engine: Engine, other: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    engine.hooks.on_no_space = told.append

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "prepare_replace", full)
        swapping = asyncio.create_task(engine.replace_with(other, mark=50))
        await until(lambda: bool(told))
        swapping.cancel()
        async with bounded():
            with pytest.raises(asyncio.CancelledError):
                await swapping
    async with bounded():
        await engine.commit()
        assert engine.durable_mark == 2
        await engine.close()
    assert keys(open_engine()) == [b"k1", b"k2"]
    assert is_there(other)


async def test_a_close_ends_a_swap_that_waits_for_space(engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    engine.hooks.on_no_space = told.append

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "prepare_replace", full)
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(lambda: bool(told))
    async with bounded():
        await engine.close()
        with pytest.raises(FatalError, match="closed"):
            await swapping


async def test_cancelled_while_a_copy_runs_it_leaves_the_lock_of_copies_free(
    engine: Engine, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCall(files.copy_env)
    monkeypatch.setattr(files, "copy_env", held)
    copying = asyncio.create_task(asyncio.to_thread(engine.copy_to, tmp_path / "copy"))
    await until(held.begun.is_set)
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(lambda: files.lock_path(other).exists())  # prepared: it waits for the copy
    await asyncio.sleep(0.02)
    swapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swapping
    held.go.set()
    async with bounded():
        await copying
        await asyncio.to_thread(engine.copy_to, tmp_path / "second")
        await engine.close()


async def test_a_close_that_is_cancelled_while_a_copy_runs_leaves_the_lock_of_copies_free(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCall(files.copy_env)
    monkeypatch.setattr(files, "copy_env", held)
    copying = asyncio.create_task(asyncio.to_thread(engine.copy_to, tmp_path / "copy"))
    await until(held.begun.is_set)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.02)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    held.go.set()
    async with bounded():
        await copying
        await asyncio.to_thread(engine._copying.acquire)
    engine._copying.release()
    engine._closed = False  # for the fixture


async def test_a_cancellation_during_the_exchange_is_raised_when_the_new_store_is_in_force(
    engine: Engine, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCall(files.replace)
    monkeypatch.setattr(files, "replace", held)
    swapped: list[int] = []
    swapping = asyncio.create_task(engine.replace_with(other, mark=50, on_swapped=lambda: swapped.append(engine.durable_mark)))
    await until(held.begun.is_set)
    swapping.cancel()
    await asyncio.sleep(0.02)
    assert not swapping.done()
    held.go.set()
    async with bounded():
        with pytest.raises(asyncio.CancelledError):
            await swapping
    assert (swapped, keys(engine)) == ([50], [b"k50"])


async def test_a_cancellation_while_the_new_file_is_opened_closes_it_again(
    engine: Engine, other: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCall(swap.prepare)
    monkeypatch.setattr(swap, "prepare", held)
    swapping = asyncio.create_task(engine.replace_with(other, mark=50))
    await until(held.begun.is_set)
    swapping.cancel()
    held.go.set()
    async with bounded():
        with pytest.raises(asyncio.CancelledError):
            await swapping
    assert keys(engine) == [b"k1", b"k2"]
    await engine.commit()  # behind the closing, on the commit thread
    assert keys(open_engine("other")) == [b"k50"], "LMDB refuses a file that is open in the process"


async def test_a_store_that_failed_is_not_replaced(engine: Engine, other: Path) -> None:
    engine.poison(ValueError("bug"))
    with pytest.raises(FatalError, match="bug"):
        await engine.replace_with(other, mark=50)
    assert is_there(other)
