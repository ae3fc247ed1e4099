"""Batches, durability, bounds, failures and replacement of the engine."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.errors import FatalError
from kvserver.storage import (
    Engine,
    EngineConfig,
    EngineHooks,
    StorageNoSpaceError,
    StoreFailedError,
    StoreUnreadableError,
    ViewExpiredError,
    batch,
    files,
)
from kvserver.storage import engine as engine_module
from tests.kvserver.storage.held import HeldCommits

OpenEngine = Callable[..., Engine]


def write(engine: Engine, mark: int, value: bytes = b"v") -> None:
    engine.put(0, b"k%d" % mark, value)
    engine.end_entry(mark)


async def test_batch_is_committed_after_the_interval_and_its_mark_is_told(open_engine: OpenEngine) -> None:
    told: asyncio.Queue[int] = asyncio.Queue()
    engine = open_engine(hooks=EngineHooks(on_durable=told.put_nowait), interval_s=0.01)
    write(engine, 7)
    assert engine.durable_mark == 0
    assert await told.get() == 7
    assert engine.durable_mark == 7
    assert engine.buffered_bytes == 0


@pytest.mark.parametrize("config", [{"commit_count": 3}, {"commit_bytes": 690}])
async def test_batch_is_committed_at_once_by_count_or_bytes(open_engine: OpenEngine, config: dict[str, int]) -> None:
    engine = open_engine(interval_s=60, **config)
    for mark in (1, 2, 3):
        write(engine, mark)
    await asyncio.wait_for(engine.wait_durable(3), 5)


async def test_writes_during_a_commit_go_to_the_next_batch(open_engine: OpenEngine) -> None:
    told: list[int] = []
    engine = open_engine(hooks=EngineHooks(on_durable=told.append), interval_s=60)
    write(engine, 1)
    engine.request_commit()
    write(engine, 2)
    engine.request_commit()
    assert engine.reader.get(0, b"k1") == engine.reader.get(0, b"k2") == b"v"
    await engine.wait_durable(2)
    assert told == [1, 2]


async def test_buffer_over_its_bound_makes_the_applier_wait(open_engine: OpenEngine, held: HeldCommits) -> None:
    engine = open_engine(interval_s=60, commit_bytes=5000, max_buffer_bytes=10_000)
    write(engine, 1, b"x" * 6000)
    assert engine.has_room
    write(engine, 2, b"x" * 6000)
    assert not engine.has_room
    waiting = asyncio.create_task(engine.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    held.allow()
    await waiting
    assert engine.has_room
    assert engine.durable_mark == 1


class PromptExecutor(ThreadPoolExecutor):
    """What is submitted is done when `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        wait([future])
        return future


async def test_close_commits_what_is_buffered_unless_told_not_to(open_engine: OpenEngine) -> None:
    engine = open_engine(interval_s=60)
    write(engine, 1)
    await engine.close()
    engine = open_engine(interval_s=60)
    assert engine.reader.get(0, b"k1") == b"v"
    write(engine, 2)
    await engine.close(commit=False)
    engine = open_engine(interval_s=60)
    assert engine.reader.get(0, b"k2") is None


async def test_full_map_keeps_the_batch_and_recovers_by_itself(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: asyncio.Queue[StorageNoSpaceError | None] = asyncio.Queue()
    engine = open_engine(hooks=EngineHooks(on_no_space=told.put_nowait), interval_s=60, retry_s=0.01)
    real = batch.write
    monkeypatch.setattr(batch, "write", _failing(lmdb.MapFullError("mdb_put")))
    write(engine, 1)
    engine.request_commit()
    error = await told.get()
    assert error is not None
    assert "resume by themselves" in str(error)
    assert engine.reader.get(0, b"k1") == b"v"
    assert engine.durable_mark == 0
    monkeypatch.setattr(batch, "write", real)
    assert await told.get() is None
    await engine.wait_durable(1)


async def test_really_full_map_is_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAP_HEADROOM_BYTES", 1 << 20)
    told: asyncio.Queue[StorageNoSpaceError | None] = asyncio.Queue()
    config = EngineConfig(quota_bytes=1000, interval_s=60, retry_s=60)
    engine = Engine.open(tmp_path / "db", tables=(b"one",), config=config, hooks=EngineHooks(on_no_space=told.put_nowait))
    write(engine, 1, b"x" * (2 << 20))
    engine.request_commit()
    assert isinstance(await asyncio.wait_for(told.get(), 5), StorageNoSpaceError)
    await engine.close()


def _failing(error: Exception) -> Callable[..., float]:
    def fail(*arguments: Any) -> float:
        raise error

    return fail


def lmdb_error(kind: type[lmdb.Error], code: int) -> lmdb.Error:
    error = kind("mdb_txn_commit")
    error.code = code  # type: ignore[misc]
    return error


@pytest.mark.parametrize(
    ("error", "disk_full", "no_space"),
    [
        (lmdb.MapFullError("mdb_put"), False, True),
        (lmdb_error(lmdb.Error, errno.ENOSPC), False, True),
        (lmdb_error(lmdb.Error, errno.EDQUOT), False, True),
        (OSError(errno.ENOSPC, "full"), False, True),
        (lmdb_error(lmdb.Error, errno.EIO), True, True),
        (lmdb_error(lmdb.Error, errno.EIO), False, False),
        (lmdb_error(lmdb.PanicError, -30795), True, False),
        (ValueError("a bug"), True, False),
    ],
)
def test_only_full_disks_and_maps_are_no_space(
    error: Exception, disk_full: bool, no_space: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "is_disk_full", lambda directory: disk_full)
    assert batch.is_no_space(error, tmp_path / "db") is no_space


async def test_commit_waits_for_everything_written_so_far(open_engine: OpenEngine) -> None:
    told: list[int] = []
    engine = open_engine(hooks=EngineHooks(on_durable=told.append), interval_s=60)
    await engine.commit()
    write(engine, 1)
    engine.request_commit()
    write(engine, 2)
    await engine.commit()
    assert told == [1, 2]
    assert engine.buffered_bytes == 0


async def test_count_bounds_the_batch_that_fills_while_another_waits(open_engine: OpenEngine, held: HeldCommits) -> None:
    engine = open_engine(interval_s=60, commit_count=10)
    for mark in range(1, 20):
        write(engine, mark)
        assert engine.has_room
    write(engine, 20)
    assert not engine.has_room
    held.open()
    await engine.wait_room()


def test_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert files.is_disk_full(tmp_path) is False
    assert list(tmp_path.iterdir()) == []


async def test_failed_commit_is_fatal_for_everybody_who_waits(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fatal: list[FatalError] = []
    engine = open_engine(hooks=EngineHooks(on_fatal=fatal.append), interval_s=60)
    monkeypatch.setattr(batch, "write", _failing(lmdb_error(lmdb.Error, errno.EIO)))
    write(engine, 1)
    waiting = asyncio.create_task(engine.wait_durable(1))
    await asyncio.sleep(0)
    engine.request_commit()
    with pytest.raises(StoreFailedError, match="nothing after the last commit is durable"):
        await waiting
    assert len(fatal) == 1
    with pytest.raises(StoreFailedError):
        await engine.wait_room()
    with pytest.raises(StoreFailedError):
        write(engine, 2)


async def test_poisoned_engine_never_commits_half_an_entry(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "ThreadPoolExecutor", PromptExecutor)
    engine = open_engine(interval_s=0.001)
    write(engine, 1)
    await engine.wait_durable(1)
    write(engine, 2)
    engine.put(0, b"half", b"")
    engine.poison(ValueError("bug"))
    loop = asyncio.get_running_loop()
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + 60)
    for _ in range(3):  # the interval's timer fires, what it has written would be known
        await asyncio.sleep(0)
    await engine.close()
    engine = open_engine()
    assert engine.reader.get(0, b"half") is None


async def test_view_shows_the_past_until_it_expires(open_engine: OpenEngine) -> None:
    engine = open_engine(interval_s=60)
    write(engine, 1)
    view = engine.read_view()
    write(engine, 2)
    engine.request_commit()
    await engine.wait_durable(2)
    assert view.get(0, b"k1") == b"v"
    assert view.get(0, b"k2") is None
    view.expired = True
    with pytest.raises(ViewExpiredError):
        view.get(0, b"k1")
    view.close()
    view.close()


async def test_close_ends_views_that_threads_are_reading(open_engine: OpenEngine) -> None:
    engine = open_engine(interval_s=60, commit_count=100_000, commit_bytes=10 << 20)
    for mark in range(1, 2001):
        write(engine, mark)
    view = engine.read_view()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read_for_ever() -> None:
        with view:
            while True:
                for _ in view.iterate(0):
                    loop.call_soon_threadsafe(begun.set)

    reading = asyncio.create_task(asyncio.to_thread(read_for_ever))
    await begun.wait()
    await engine.close()
    with pytest.raises(ViewExpiredError):
        await reading


async def test_copy_holds_what_is_committed_and_is_private(open_engine: OpenEngine, tmp_path: Path) -> None:
    engine = open_engine(interval_s=60)
    write(engine, 1)
    engine.request_commit()
    await engine.wait_durable(1)
    write(engine, 2)
    await asyncio.to_thread(engine.copy_to, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    copy = open_engine("copy")
    assert copy.reader.get(0, b"k1") == b"v"
    assert copy.reader.get(0, b"k2") is None
    with pytest.raises(FileExistsError):
        engine.copy_to(tmp_path / "copy")


async def test_truncated_file_is_refused_not_read(open_engine: OpenEngine, tmp_path: Path) -> None:
    engine = open_engine(interval_s=60)
    write(engine, 1, b"x" * 100_000)
    await engine.close()
    os.truncate(tmp_path / "db", 40_000)
    with pytest.raises(StoreUnreadableError, match="truncated"):
        open_engine()


@pytest.mark.parametrize("content", [b"no store at all" * 1000, b"short"])
async def test_foreign_file_is_refused(open_engine: OpenEngine, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(StoreUnreadableError, match=r"is damaged: at offset .*docs/operations/corruption.md"):
        open_engine()


async def test_file_is_private_and_sparse_map_leaves_it_small(open_engine: OpenEngine, tmp_path: Path) -> None:
    engine = open_engine(quota_bytes=2 << 30)
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600
    assert engine.size_bytes < 100_000
    assert 0 < engine.size_in_use_bytes <= engine.size_bytes


async def test_buffered_payload_is_keys_and_values_of_both_layers(open_engine: OpenEngine, held: HeldCommits) -> None:
    engine = open_engine(interval_s=60)
    engine.put(0, b"key", b"value")
    engine.end_entry(1)
    engine.request_commit()
    engine.put(0, b"key2", b"value2")
    engine.delete(0, b"gone")
    engine.end_entry(2)
    assert engine.buffered_payload_bytes == 8 + 10 + 4
    held.open()
    await engine.commit()
    assert engine.buffered_payload_bytes == 0


async def test_freed_pages_are_not_in_use_but_stay_in_the_file(open_engine: OpenEngine) -> None:
    engine = open_engine(interval_s=60)
    write(engine, 1, b"x" * 1_000_000)
    engine.request_commit()
    await engine.wait_durable(1)
    used = engine.size_in_use_bytes
    assert used > 1_000_000
    engine.delete(0, b"k1")
    engine.end_entry(2)
    engine.request_commit()
    await engine.wait_durable(2)
    assert engine.size_in_use_bytes < 100_000
    assert engine.size_bytes >= used


def test_configuration_is_validated() -> None:
    with pytest.raises(ValueError, match="commit_bytes"):
        EngineConfig(commit_bytes=100, max_buffer_bytes=50)
    with pytest.raises(ValueError, match="positive"):
        EngineConfig(quota_bytes=0)
