"""The store on a really full disk: nothing is lost, nothing kills the process, and space brings it back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvserver.errors import FatalError
from kvserver.storage import Engine, EngineConfig, EngineHooks, StorageNoSpaceError, batch, files
from kvserver.storage.engine import DOUBTFUL_TRIES
from kvserver.storage.layer import Layer
from kvserver.testing.small_disk import SmallDiskError, fill, free_bytes, small_disk

CONFIG = EngineConfig(quota_bytes=1 << 28, interval_s=60, retry_s=0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk", size_mib=16) as mounted:
            yield mounted
    except SmallDiskError as error:
        pytest.skip(f"no small disk can be mounted: {error}")


def write(engine: Engine, index: int, size_bytes: int = 20_000) -> None:
    engine.put(0, b"k%06d" % index, bytes([index % 256]) * size_bytes)
    engine.end_entry(index)


def count_attempts(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """The batches that are written, each time they are."""
    attempts: list[Layer] = []
    real = batch.write

    def write_counted(env: lmdb.Environment, dbs: Sequence[Any], layer: Layer) -> float:
        attempts.append(layer)
        return real(env, dbs, layer)

    monkeypatch.setattr(batch, "write", write_counted)
    return attempts


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - lets the commit thread run
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("leave_bytes", [0, 100_000, 1_500_000])
async def test_a_batch_that_finds_the_disk_full_is_kept_and_committed_when_there_is_space(
    disk: Path, leave_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = count_attempts(monkeypatch)
    told: list[object] = []
    fatal: list[FatalError] = []
    hooks = EngineHooks(on_no_space=told.append, on_fatal=fatal.append)
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG, hooks=hooks)
    write(engine, 1)
    await engine.commit()
    filler = fill(disk, leave_bytes=leave_bytes)
    for index in range(2, 150):
        write(engine, index)
    engine.request_commit()
    await until(lambda: bool(told))
    assert isinstance(told[0], StorageNoSpaceError)
    assert engine.durable_mark == 1
    assert engine.reader.get(0, b"k%06d" % 149) == bytes([149]) * 20_000, "reads go on"
    before = len(attempts)
    await until(lambda: len(attempts) >= before + 4)
    assert (len(told), fatal) == (1, [])
    filler.unlink()
    await asyncio.wait_for(engine.wait_durable(149), 10)
    assert told[1:] == [None]
    await engine.close()
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG)
    assert [key for key, _ in engine.reader.iterate(0)] == [b"k%06d" % index for index in range(1, 150)]
    await engine.close()


async def test_a_crash_on_the_full_disk_leaves_the_last_commit(disk: Path) -> None:
    told: list[object] = []
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG, hooks=EngineHooks(on_no_space=told.append))
    write(engine, 1)
    await engine.commit()
    fill(disk, leave_bytes=200_000)
    for index in range(2, 100):
        write(engine, index)
    engine.request_commit()
    await until(lambda: bool(told))
    await engine.close()
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG)
    assert [key for key, _ in engine.reader.iterate(0)] == [b"k000001"]
    await engine.close()


async def test_the_lock_file_has_all_its_blocks_and_every_reader_slot_works_on_a_full_disk(disk: Path) -> None:
    """LMDB writes it through a map: a hole would be a SIGBUS at the first reader that needs it."""
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG)
    write(engine, 1)
    await engine.commit()
    lock = files.lock_path(disk / "db").stat()
    assert lock.st_blocks * 512 >= lock.st_size >= files.LOCK_BYTES
    fill(disk)
    assert free_bytes(disk) == 0
    views = [engine.read_view() for _ in range(files.MAX_READERS // 2 - 4)]
    assert all(view.get(0, b"k000001") for view in views)
    for view in views:
        view.close()
    await engine.close()


async def test_a_swap_needs_no_space_once_it_has_begun_and_waits_for_what_it_needs_before(disk: Path) -> None:
    told: list[object] = []
    other = Engine.open(disk / "other", tables=(b"one",), config=CONFIG)
    write(other, 50)
    await other.close()
    engine = Engine.open(disk / "db", tables=(b"one",), config=CONFIG, hooks=EngineHooks(on_no_space=told.append))
    write(engine, 1)
    await engine.commit()
    files.lock_path(disk / "other").unlink()  # a received file has none
    filler = fill(disk)
    swap = asyncio.create_task(engine.replace_with(disk / "other", mark=50))
    await until(lambda: bool(told))
    assert engine.reader.get(0, b"k000001") is not None, "the old store is there until the swap"
    filler.unlink()
    await asyncio.wait_for(swap, 10)
    assert told[1:] == [None]
    assert [key for key, _ in engine.reader.iterate(0)] == [b"k000050"]
    await engine.close()


def cut_short(*_: object) -> float:
    """What LMDB says of a write that was cut short, and of a disk that fails."""
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    error.code = errno.EIO
    raise error


def test_an_io_error_means_want_of_space_only_where_space_was_tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB says EIO for a write that was cut short, and somebody may have freed space by the time one looks."""
    layer = Layer(1)
    layer.set(0, b"k", bytes(1000))
    monkeypatch.setattr(batch, "write", cut_short)
    monkeypatch.setattr(files, "is_disk_full", lambda directory: False)
    monkeypatch.setattr(files, "free_bytes", lambda directory: 100)
    with pytest.raises(StorageNoSpaceError) as tight:
        batch.commit(None, [], layer, tmp_path / "db")  # type: ignore[arg-type]
    assert tight.value.is_doubtful
    monkeypatch.setattr(files, "free_bytes", lambda directory: 1 << 30)
    with pytest.raises(lmdb.Error):
        batch.commit(None, [], layer, tmp_path / "db")  # type: ignore[arg-type]
    monkeypatch.setattr(files, "is_disk_full", lambda directory: True)
    with pytest.raises(StorageNoSpaceError) as full:
        batch.commit(None, [], layer, tmp_path / "db")  # type: ignore[arg-type]
    assert not full.value.is_doubtful


async def test_an_io_error_that_may_have_been_want_of_space_is_believed_twice_and_then_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails while it is nearly full must not be written to for ever."""
    attempts: list[object] = []
    fatal: list[FatalError] = []
    told: list[object] = []

    def fail(*_: object) -> float:
        attempts.append(None)
        return cut_short()

    hooks = EngineHooks(on_no_space=told.append, on_fatal=fatal.append)
    engine = Engine.open(tmp_path / "db", tables=(b"one",), config=CONFIG, hooks=hooks)
    monkeypatch.setattr(batch, "write", fail)
    monkeypatch.setattr(files, "is_disk_full", lambda directory: False)
    monkeypatch.setattr(files, "free_bytes", lambda directory: 100)
    write(engine, 1)
    engine.request_commit()
    await until(lambda: bool(fatal))
    assert len(attempts) == DOUBTFUL_TRIES == 3
    assert len(told) == 1
    assert str(fatal[0]) == (
        f"the store {tmp_path / 'db'} failed: mdb_txn_commit: Input/output error, 3 times in a row, though the disk has space; "
        "nothing after the last commit is durable; check the disk, then start again"
    )
    await engine.close()
    assert len(attempts) == 3


async def test_io_errors_on_a_disk_that_is_full_are_never_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubtful ones count in a row only, and those with a full disk beside them are no doubt."""
    attempts: list[object] = []
    fatal: list[FatalError] = []
    real = batch.write

    def fail(*_: object) -> float:
        attempts.append(None)
        return cut_short()

    engine = Engine.open(tmp_path / "db", tables=(b"one",), config=CONFIG, hooks=EngineHooks(on_fatal=fatal.append))
    monkeypatch.setattr(batch, "write", fail)
    monkeypatch.setattr(files, "is_disk_full", lambda directory: len(attempts) % 3 != 0)
    monkeypatch.setattr(files, "free_bytes", lambda directory: 100)
    write(engine, 1)
    engine.request_commit()
    await until(lambda: len(attempts) >= 7)
    assert fatal == []
    monkeypatch.setattr(batch, "write", real)
    await asyncio.wait_for(engine.wait_durable(1), 10)
    await engine.close()
