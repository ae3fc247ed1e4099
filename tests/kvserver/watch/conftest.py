"""A store and a hub over it whose catch-up runs, and clients that read when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvserver.pb.kv_pb2 import Event
from kvserver.pb.rpc_pb2 import PutRequest, WatchResponse
from kvserver.watch import CatchUp, KeyRange, Notice, WatchHub, WatchLimits, WatchOptions, WatchStream
from tests.kvserver.apply.conftest import Machine


@dataclass
class Watching:
    """What a test needs."""

    machine: Machine
    hub: WatchHub
    catch_up: CatchUp
    streams: list[WatchStream] = field(default_factory=list)

    def put(self, key: bytes, value: bytes = b"v") -> None:
        self.machine.apply(PutRequest(key=key, value=value))

    def open(self) -> WatchStream:
        self.streams.append(self.hub.open_stream())
        return self.streams[-1]

    def watch(self, stream: WatchStream, lo: bytes, hi: bytes | None, start: int = 0, **options: bool) -> None:
        self.hub.create(stream, WatchOptions(keys=KeyRange(lo, hi), start_revision=start, **options))

    async def next(self, stream: WatchStream) -> Notice:
        """The next message, read."""
        async with asyncio.timeout(10):
            notice = await stream.wait_next()
        self.hub.sent(stream)
        return notice

    async def until_told(self, stream: WatchStream) -> list[Notice]:
        """All messages up to the word that everything is told."""
        self.hub.request_progress(stream)
        notices = []
        while (notice := await self.next(stream)).watch_id != -1:
            notices.append(notice)
        return notices


def events_of(notices: list[Notice]) -> list[Event]:
    """What clients decode of them."""
    return [event for notice in notices for event in WatchResponse.FromString(b"".join(notice.events)).events]


def revisions_of(notices: list[Notice]) -> list[int]:
    return [event.kv.mod_revision for event in events_of(notices)]


Make = Callable[..., Awaitable[Watching]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a `Watching` with limits of the test's own."""
    made: list[tuple[Watching, asyncio.Task[None]]] = []

    async def build(**limits: int) -> Watching:
        machine = Machine(tmp_path / f"db{len(made)}")
        hub = WatchHub(machine.store, WatchLimits(**limits))
        machine.store.on_revision(hub.note_revision)
        catch_up = CatchUp(hub)
        task = asyncio.create_task(catch_up.run(), name="catch-up")
        made.append((Watching(machine, hub, catch_up), task))
        return made[-1][0]

    yield build
    for watching, task in made:
        assert not task.done(), task
        task.cancel()
        await watching.machine.store.close(commit=False)


@pytest.fixture
async def watching(make: Make) -> Watching:
    return await make()
