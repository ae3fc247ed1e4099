"""The periodic check: finds what nobody reads, tells it once, lets the store be written meanwhile, and ends when it is asked to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvserver.apply import OnlineCheck, online_check
from kvserver.mvcc.layout import KEY
from kvserver.pb.rpc_pb2 import PutRequest
from kvserver.storage import StoreDamagedError


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_check, "REST_FACTOR", 0)
    monkeypatch.setattr(online_check, "MIN_REST_S", 0)
    monkeypatch.setattr(online_check, "SLICE_ROWS", 7)
    monkeypatch.setattr(online_check, "COMPARED_ROWS", 7)


async def filled(machine: Any) -> None:
    for number in range(60):
        machine.apply(PutRequest(key=b"key%02d" % number, value=b"value" * 20 + b"%d" % number))
    await machine.flush()


def flip_in_file(path: Path, text: bytes) -> None:
    content = path.read_bytes()
    assert text in content
    place = content.rindex(text)
    with path.open("r+b") as file:  # what LMDB maps is the same page cache: a running store sees it
        file.seek(place)
        file.write(bytes((content[place] ^ 1,)))


async def test_sound_store_is_sound_and_counted(machine: Any) -> None:
    await filled(machine)
    check = OnlineCheck(machine.store, interval_s=1, wall_clock=lambda: 1234.5)
    assert await check.check_once() == 0
    assert (check.progress.runs, check.progress.damaged, check.progress.last_finished_s) == (1, 0, 1234.5)
    assert check.progress.rows >= 2 * 120  # every row by itself, changes and entries against each other
    assert machine.corrupt == []


async def test_flipped_bit_that_nobody_reads_is_reported_once_a_run(machine: Any) -> None:
    await filled(machine)
    flip_in_file(machine.path, b"value" * 20 + b"33")
    check = OnlineCheck(machine.store, interval_s=1)
    assert await check.check_once() == 1
    assert len(machine.corrupt) == 1
    assert "the record of revision 35.0 fails its checksum" in machine.corrupt[0]
    assert "at offset" in machine.corrupt[0]
    assert await check.check_once() == 1
    assert check.progress.damaged == 2


async def test_row_that_is_missing_is_found_by_comparing(machine: Any) -> None:
    await filled(machine)
    machine.store._engine.delete(KEY, b"key07")
    machine.store._engine.end_entry(machine.store.applied_index)
    await machine.store.commit()
    assert await OnlineCheck(machine.store, interval_s=1).check_once() == 1
    assert "b'key07'" in machine.corrupt[0]


async def test_writes_go_on_during_a_check_and_disturb_nothing(machine: Any) -> None:
    await filled(machine)
    check = OnlineCheck(machine.store, interval_s=1)
    running = asyncio.create_task(check.check_once())
    for number in range(200):
        machine.apply(PutRequest(key=b"key%02d" % (number % 90), value=b"new%d" % number))
        if number % 10 == 0:
            await machine.flush()
        await asyncio.sleep(0)
    assert await running == 0
    assert machine.corrupt == []


async def test_check_can_be_cancelled_anywhere_and_leaves_no_view(machine: Any) -> None:
    await filled(machine)
    for turns in range(0, 40, 3):
        task = asyncio.create_task(OnlineCheck(machine.store, interval_s=0).run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(machine.store.close(), 20)  # waits for open views


async def test_damaged_copy_is_not_handed_out(machine: Any, tmp_path: Path) -> None:
    await filled(machine)
    intact = b"value" * 20 + b"33"
    damaged = bytes((intact[0] ^ 1,)) + intact[1:]
    flip_in_file(machine.path, intact)
    with pytest.raises(StoreDamagedError, match=r"the record of revision 35.0 fails its checksum") as raised:
        await asyncio.to_thread(machine.store.copy_to, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    place = machine.path.read_bytes().rindex(damaged)
    assert raised.value.offset_bytes is not None
    assert place - 200 < raised.value.offset_bytes < place, "the place in the store's own file, not in the copy"
    assert machine.corrupt == [raised.value.place]
