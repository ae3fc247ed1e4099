"""A store is checked in a thread: the loop is free, the log says so when it takes long, and it ends when it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver.apply import Store
from kvserver.logs import Logger
from kvserver.mvcc import TABLES
from kvserver.node import opening
from kvserver.node.opening import inspect_received, open_store
from kvserver.server import Server
from kvserver.storage import Checking, CheckStoppedError, EngineConfig, EngineHooks, StoreUnreadableError, check_structure
from kvserver.storage.page_format import WATCH_PAGES
from kvserver.testing.ports import PortAllocator
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Term
from tests.kvserver.node.test_start import config_for
from wal import OsFiles


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write_line(self, line: str) -> None:
        self.events.append(json.loads(line))

    def named(self, text: str) -> list[dict[str, Any]]:
        return [event for event in self.events if text in json.dumps(event)]


async def make_store(path: Path, *, pages: int = 0) -> None:
    """A store at index 1, of at least so many pages."""
    store = Store.open(path)
    one = NodeId(1)
    store.bootstrap(ClusterId(7), {one: Member(id=one)}, ConfState(voters=(one,)), index=Index(1), term=Term(1))
    for number in range(pages):
        store._engine.put(1, b"%08d" % number, bytes(3000))
    await store.commit()
    await store.close()


def opened(path: Path, lines: Lines, **config: Any) -> Any:
    return open_store(
        path, config=EngineConfig(**config), hooks=EngineHooks(), on_corrupt=lambda text: None, files=OsFiles(), log=Logger(lines)
    )


class HeldCheck:
    """A check that takes until it is stopped, or let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, path: Path, tables: Any, *, checking: Checking, **keywords: Any) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        while not self.go.wait(0.005):
            checking.note(512, 1024)
        check_structure(path, tables, checking=checking, **keywords)


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - lets threads run
            await asyncio.sleep(0.001)


async def test_a_store_is_checked_in_a_thread_once_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_store(tmp_path / "db")
    walks: list[tuple[threading.Thread, bool]] = []

    def noted(path: Path, tables: Any, *, every_row: bool = False, **keywords: Any) -> None:
        walks.append((threading.current_thread(), every_row))
        check_structure(path, tables, every_row=every_row, **keywords)

    for module in ("kvserver.node.opening", "kvserver.storage.files"):
        monkeypatch.setattr(f"{module}.check_structure", noted)
    store = await opened(tmp_path / "db", Lines(), verify_on_open=True)
    assert store.applied_index == 1
    await store.close()
    ((thread, every_row),) = walks
    assert thread is not threading.main_thread()
    assert every_row


async def test_a_new_store_and_an_empty_file_need_no_check(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("new", "empty"):
        store = await opened(tmp_path / name, Lines())
        assert store.is_empty
        await store.close()


async def test_a_damaged_store_is_refused_by_the_check(tmp_path: Path) -> None:
    await make_store(tmp_path / "db", pages=20)
    with (tmp_path / "db").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(StoreUnreadableError, match="truncated"):
        await opened(tmp_path / "db", Lines())


async def test_a_check_that_takes_long_says_so_and_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_store(tmp_path / "db")
    held, lines = HeldCheck(), Lines()
    monkeypatch.setattr(opening, "check_structure", held)
    monkeypatch.setattr(opening, "PROGRESS_S", 0.01)
    opening_task = asyncio.create_task(opened(tmp_path / "db", lines))
    await wait_for(lambda: len(lines.named("checking the pages of the store before it is used")) >= 2)
    held.go.set()
    store = await opening_task
    await store.close()
    event = lines.named("checking the pages of the store")[-1]
    assert event["file"] == str(tmp_path / "db")
    assert event["percent"] == 50
    (end,) = lines.named("checked the pages of the store")
    assert end["size_bytes"] > 0


def test_a_walk_that_is_stopped_ends_at_the_next_look(tmp_path: Path) -> None:
    asyncio.run(make_store(tmp_path / "db", pages=WATCH_PAGES + 10))
    checking = Checking()
    check_structure(tmp_path / "db", TABLES, checking=checking)
    assert WATCH_PAGES <= checking.pages <= checking.of_pages
    for every_row in (False, True):
        checking = Checking()
        checking.stop()
        with pytest.raises(CheckStoppedError):
            check_structure(tmp_path / "db", TABLES, every_row=every_row, checking=checking)
        assert checking.pages == WATCH_PAGES


async def test_an_inspection_that_is_cancelled_has_ended_when_the_cancellation_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_store(tmp_path / "db")
    held = HeldCheck()
    monkeypatch.setattr("kvserver.apply.inspection.check_structure", held)
    inspecting = asyncio.create_task(inspect_received(tmp_path / "db", Logger(Lines())))
    await wait_for(held.begun.is_set)
    inspecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(inspecting, 20)
    held.go.set()
    assert (await inspect_received(tmp_path / "db", Logger(Lines()))).index == 1


async def test_a_signal_ends_a_start_that_checks_a_store_and_the_next_start_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = PortAllocator()
    config = config_for(tmp_path, ports.next_port(), ports.next_port())
    (tmp_path / "member" / "snap").mkdir(parents=True)
    await make_store(tmp_path / "member" / "snap" / "db")
    held, lines = HeldCheck(), Lines()
    with monkeypatch.context() as patch:
        patch.setattr(opening, "check_structure", held)
        server = Server(config, log=Logger(lines))
        running = asyncio.create_task(server.run())
        await wait_for(held.begun.is_set)
        server.ask_stop("SIGTERM")
        assert await asyncio.wait_for(running, 20) == 0
    assert held.thread is not None
    assert not lines.named("restarted from the data directory")
    assert lines.named("stopped before the member ran")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("wal", "snapshot", "store"))]
    store = await opened(tmp_path / "member" / "snap" / "db", Lines())
    await store.close()
