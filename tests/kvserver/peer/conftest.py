"""Fixtures of the peer tests: transports on loopback with a recording handler, and a TCP proxy that can be cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from kvserver.logs import Logger
from kvserver.peer import (
    Identity,
    PeerRequestRefusedError,
    RefusedError,
    SnapshotOptions,
    SnapshotOutcome,
    SnapshotParts,
    Transport,
    TransportOptions,
)
from kvserver.snapshot import SnapshotCopies
from kvserver.types import ClusterId, NodeId
from raft.messages import Message
from raft.types import ConfState, Index, SnapshotMetadata, Term

CLUSTER = ClusterId(0xC1)
METADATA = SnapshotMetadata(index=Index(50), term=Term(2), conf_state=ConfState(voters=(NodeId(1), NodeId(2))))
FAST = TransportOptions(
    dial_timeout_s=1,
    hello_timeout_s=1,
    ping_interval_s=0.05,
    ping_timeout_s=2,
    backoff_min_s=0.005,
    backoff_max_s=0.02,
    stop_timeout_s=0.5,
)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test of the room runs on both loops."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Lines:
    """A log output that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)


class Handler:
    """Records what a transport says, and lets tests wait for it."""

    def __init__(self, members: set[int]) -> None:
        self.members = {NodeId(each) for each in members}
        self.removed: set[NodeId] = set()
        self.messages: list[tuple[Message, Index]] = []
        self.contacts: list[NodeId] = []
        self.unreachable: list[NodeId] = []
        self.refused: list[RefusedError] = []
        self.started: list[tuple[NodeId, SnapshotMetadata]] = []
        self.results: list[SnapshotOutcome] = []
        self.received: list[tuple[Message, Path]] = []
        self.refuse_snapshot: Exception | None = None
        self.takes_snapshots = True
        self.requests: list[tuple[NodeId, int, bytes]] = []
        self.answer: Callable[[int, bytes], Awaitable[bytes]] = self.answer_nothing
        self.pages: dict[str, object] = {"/version": {"etcdserver": "3.5.0", "etcdcluster": "3.5.0"}, "/members": [{"id": 1}]}
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        """Until something that the transport says makes the condition true."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def is_member(self, member_id: NodeId) -> bool:
        return member_id in self.members

    def is_removed(self, member_id: NodeId) -> bool:
        return member_id in self.removed

    def page(self, path: str) -> object | None:
        return self.pages.get(path)

    def on_message(self, message: Message, floor: Index) -> None:
        self.messages.append((message, floor))
        self._changed.set()

    async def answer_nothing(self, kind: int, payload: bytes) -> bytes:
        raise PeerRequestRefusedError.unknown_kind(kind)

    async def on_request(self, sender: NodeId, kind: int, payload: bytes) -> bytes:
        self.requests.append((sender, kind, payload))
        self._changed.set()
        return await self.answer(kind, payload)

    def on_contact(self, member_id: NodeId) -> None:
        self.contacts.append(member_id)
        self._changed.set()

    def on_unreachable(self, member_id: NodeId) -> None:
        self.unreachable.append(member_id)
        self._changed.set()

    def on_refused(self, member_id: NodeId, error: RefusedError) -> None:
        self.refused.append(error)
        self._changed.set()

    def on_snapshot_started(self, to: NodeId, metadata: SnapshotMetadata) -> None:
        self.started.append((to, metadata))
        self._changed.set()

    def on_snapshot_result(self, outcome: SnapshotOutcome) -> None:
        self.results.append(outcome)
        self._changed.set()

    def on_snapshot_received(self, message: Message, path: Path, size_bytes: int) -> bool:
        assert size_bytes == path.stat().st_size
        if self.refuse_snapshot is not None:
            raise self.refuse_snapshot
        self.received.append((message, path))
        self._changed.set()
        return self.takes_snapshots


@dataclass(slots=True, kw_only=True)
class Member:
    """A transport with everything round it."""

    id: NodeId
    transport: Transport
    handler: Handler
    log: Lines
    url: str
    directory: Path
    content: list[bytes] = field(default_factory=lambda: [b"store"])
    metadata: SnapshotMetadata = METADATA
    copies_made: int = 0

    def make_copy(self, path: Path) -> SnapshotMetadata:
        """Write the content as the store would."""
        self.copies_made += 1
        with path.open("xb") as file:
            for piece in self.content:
                file.write(piece)
        return self.metadata


StartMember = Callable[..., Awaitable[Member]]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """The snapshot thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


@pytest.fixture
async def start_member(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[StartMember]:
    """`await start_member(1, members={1, 2})` gives a listening member; all are stopped at the end, and no task may be left."""
    started: list[Member] = []
    before = asyncio.all_tasks()

    async def start(
        member_id: int,
        *,
        members: set[int] = frozenset({1, 2, 3}),  # type: ignore[assignment]
        cluster_id: int = CLUSTER,
        options: TransportOptions = FAST,
        snapshots: SnapshotOptions | None = None,
        listen: str = "http://127.0.0.1:0",
        name: str = "",
    ) -> Member:
        directory = tmp_path / (name or f"member-{member_id}-{len(started)}")
        directory.mkdir(exist_ok=True)
        handler, log = Handler(set(members)), Lines()
        member: Member

        def make_copy(path: Path) -> SnapshotMetadata:
            return member.make_copy(path)

        parts = SnapshotParts(
            directory=directory,
            copies=SnapshotCopies(directory, make_copy, executor),
            executor=executor,
            options=snapshots or SnapshotOptions(),
        )
        identity = Identity(
            cluster_id=ClusterId(cluster_id), member_id=NodeId(member_id), server_version="0.1.0", incarnation=len(started) + 1
        )
        transport = Transport(identity, handler, snapshots=parts, logger=Logger(log), random=random.Random(member_id), options=options)
        (url,) = await transport.start([listen])
        member = Member(id=NodeId(member_id), transport=transport, handler=handler, log=log, url=url, directory=directory)
        started.append(member)
        return member

    yield start
    for each in started:
        await each.transport.stop()
    left = {task for task in asyncio.all_tasks() - before if not task.done()} - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
def connect() -> Callable[..., Awaitable[None]]:
    """`await connect(a, b)` introduces members to each other and waits until both directions are up."""

    async def introduce(*members: Member) -> None:
        for each in members:
            for other in members:
                if other is not each:
                    each.transport.add_peer(other.id, [other.url])
        for each in members:
            for other in members:
                if other is not each:
                    await each.handler.until(lambda each=each, other=other: each.transport.stats(other.id).is_connected)  # type: ignore[misc]

    return introduce


class Proxy:
    """A TCP relay that can be cut, stalled, and told to corrupt a byte."""

    def __init__(self) -> None:
        self.url = ""
        self.cut_after_bytes = -1
        self.flip_at_byte = -1
        self.relayed_bytes = 0
        self.connections = 0
        self.flow = asyncio.Event()
        self.flow.set()
        self._target = ("", 0)
        self._is_stopped = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, target_url: str) -> None:
        host, port = target_url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stopped:  # accepted before the server closed
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            self._writers.add(up_writer)
            back = asyncio.create_task(self._relay(up_reader, writer, counted=False))
            self._tasks.add(back)
            await self._relay(reader, up_writer, counted=True)
            await back
        except (OSError, asyncio.CancelledError):
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self.flow.wait()
                if counted:
                    data = self._meddle(data)
                    if data is None:
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    def _meddle(self, data: bytes) -> bytes | None:
        at, self.relayed_bytes = self.relayed_bytes, self.relayed_bytes + len(data)
        if 0 <= self.cut_after_bytes <= self.relayed_bytes:
            self.cut_after_bytes = -1
            return None
        if at <= self.flip_at_byte < self.relayed_bytes:
            changed = bytearray(data)
            changed[self.flip_at_byte - at] ^= 0x10
            self.flip_at_byte = -1
            return bytes(changed)
        return data

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        self._is_stopped = True
        if self._server is not None:
            self._server.close()
        self.cut()
        self.flow.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@pytest.fixture
async def start_proxy() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """`await start_proxy(url)` relays to `url`."""
    proxies: list[Proxy] = []

    async def start(target_url: str) -> Proxy:
        proxy = Proxy()
        await proxy.start(target_url)
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        await proxy.stop()
