"""A life of the hub beside a model of what watching promises: random writes, compactions, slow clients, cancellations and reconnects.

The store is real, the model is a dict with its past. Each client checks every message as it reads it: ordered (revisions ascend), unique
and reliable (the events are exactly the model's, from the first to the last), atomic (all of a revision at once), bookmarkable (nothing up
to a header's revision comes later), resumable (a client that connects anew from its last revision + 1 sees no gap and no repetition).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kvserver.api.watch import EncodedResponse, options_of
from kvserver.errors import DeterministicError
from kvserver.pb.kv_pb2 import Event, KeyValue
from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchResponse,
)
from kvserver.watch import CatchUp, Notice, WatchHub, WatchLimits, WatchStream
from tests.kvserver.apply.conftest import Machine

KEYS = [b"a", b"aa", b"ab", b"b", b"ba", b"c" * 490, b"d"]
RANGES = [(key, b"") for key in KEYS] + [(b"a", b"b"), (b"a", b"c"), (b"aa", b"ac"), (b"b", b"\x00"), (b"", b"\x00"), (b"c", b"d")]
LIMITS = WatchLimits(stream_bytes=4000, total_bytes=12_000, max_watchers=60, fragment_bytes=600)
Step = tuple[Any, ...]


@dataclass
class Model:
    """Every revision's events, as they must be told."""

    state: dict[bytes, KeyValue] = field(default_factory=dict)
    events: list[list[Event]] = field(default_factory=lambda: [[], []])
    compacted: int = -1

    @property
    def revision(self) -> int:
        return len(self.events) - 1

    def change(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        """One revision: these deletions, then these puts."""
        revision, events, before = self.revision + 1, [], dict(self.state)
        for key in deletes:
            if key in self.state:
                del self.state[key]
                events.append(Event(type=Event.DELETE, kv=KeyValue(key=key, mod_revision=revision), prev_kv=before[key]))
        for key, value in puts:
            old = self.state.get(key)
            created, version = (revision, 1) if old is None else (old.create_revision, old.version + 1)
            kv = KeyValue(key=key, value=value, create_revision=created, mod_revision=revision, version=version)
            self.state[key] = kv
            events.append(Event(kv=kv, prev_kv=old) if old is not None else Event(kv=kv))
        if events:
            self.events.append(events)


@dataclass
class Client:
    """One watcher as its user sees it, over all streams that it had."""

    request: WatchCreateRequest
    start: int = 0  # 0: not known yet
    seen: list[Event] = field(default_factory=list)
    is_over: bool = False
    pieces: list[Event] = field(default_factory=list)

    @property
    def next_revision(self) -> int:
        return self.seen[-1].kv.mod_revision + 1 if self.seen else self.start

    def expected(self, model: Model, through: int) -> list[Event]:
        """What it must have been told of the revisions up to `through`."""
        lo, end = self.request.key or b"\x00", self.request.range_end
        found = []
        for events in model.events[max(0, self.start) : through + 1]:
            for event in events:
                key = event.kv.key
                inside = key == lo if not end else lo <= key and (end == b"\x00" or key < end)
                kind = WatchCreateRequest.NODELETE if event.type == Event.DELETE else WatchCreateRequest.NOPUT
                if inside and kind not in self.request.filters:
                    found.append(event)
        return found

    def take(self, message: WatchResponse, model: Model) -> None:
        """Check one message of this watcher."""
        assert not self.is_over, "nothing comes after the end"
        if message.created:
            self.start = self.start or message.header.revision + 1
            return
        assert self.start, "created comes first"
        self.pieces += message.events
        if message.fragment:
            assert self.request.fragment
            assert len(message.events) == 1 or message.ByteSize() <= LIMITS.fragment_bytes + 100
            return
        self.seen += self.pieces
        self.pieces = []
        if message.canceled:  # perhaps while it was behind: then it has seen a part, which ends with a whole revision
            self.is_over = True
            self.compare(self.expected(model, self.next_revision - 1), model)
            if message.compact_revision:
                assert self.next_revision <= message.compact_revision <= model.compacted
            return
        self.compare(self.expected(model, message.header.revision), model)

    def compare(self, expected: list[Event], model: Model) -> None:
        assert len(self.seen) == len(expected), f"{len(self.seen)} events instead of {len(expected)}"
        for told, true in zip(self.seen, expected, strict=True):
            wants_previous = self.request.prev_kv and true.HasField("prev_kv")
            assert (told.type, told.kv) == (true.type, true.kv)
            if not wants_previous:
                assert not told.HasField("prev_kv")
            elif told.HasField("prev_kv") or true.kv.mod_revision - 1 >= model.compacted:
                assert told.prev_kv == true.prev_kv


@dataclass
class Connection:
    """A stream and the clients on it, by their ids."""

    stream: WatchStream
    clients: dict[int, Client] = field(default_factory=dict)
    asked: list[Client] = field(default_factory=list)  # whose `created` hasn't come yet
    cancelled: set[int] = field(default_factory=set)


class Life:
    """The hub, its clients and the model."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.model = Model()
        self.hub = WatchHub(machine.store, LIMITS)
        machine.store.on_revision(self.hub.note_revision)
        self.connections: list[Connection] = []

    # --- writes --------------------------------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> None:
        self.machine.apply(PutRequest(key=key, value=value))
        self.model.change([(key, value)], [])

    def delete(self, lo: bytes, end: bytes) -> None:
        self.machine.apply(DeleteRangeRequest(key=lo or b"\x00", range_end=end))
        doomed = [key for key in sorted(self.model.state) if (key == lo if not end else key >= lo and (end == b"\x00" or key < end))]
        self.model.change([], doomed)

    def txn(self, keys: list[bytes], value: bytes) -> None:
        ops = [RequestOp(request_put=PutRequest(key=key, value=value)) for key in keys]
        self.machine.apply(TxnRequest(success=ops))
        self.model.change([(key, value) for key in keys], [])

    def compact(self, back: int) -> None:
        revision = self.model.revision - back
        if not isinstance(self.machine.apply(CompactionRequest(revision=revision)), DeterministicError):
            self.model.compacted = revision

    # --- clients -------------------------------------------------------------------------------------------------------------------------

    def connection(self, number: int) -> Connection:
        """One of the open ones, or a new one."""
        if not self.connections or number >= len(self.connections):
            self.connections.append(Connection(self.hub.open_stream()))
        return self.connections[number % len(self.connections)]

    def create(self, connection: Connection, client: Client) -> None:
        connection.asked.append(client)
        self.hub.create(connection.stream, options_of(client.request))

    def take(self, connection: Connection, notice: Notice) -> None:
        """A client reads one message."""
        head = WatchResponse(
            watch_id=notice.watch_id,
            created=notice.created,
            canceled=notice.canceled,
            compact_revision=notice.compact_revision,
            cancel_reason=notice.cancel_reason,
            fragment=notice.fragment,
        )
        head.header.revision = notice.revision
        message = WatchResponse.FromString(EncodedResponse(head, notice.events).SerializeToString())
        self.hub.sent(connection.stream)
        if message.created:
            client = connection.asked.pop(0)
            if message.canceled:
                assert message.watch_id == -1
                client.is_over = True
                return
            connection.clients[message.watch_id] = client
        if message.watch_id == -1:
            for client in connection.clients.values():
                if not client.is_over:
                    client.compare(client.expected(self.model, message.header.revision), self.model)
            return
        connection.clients[message.watch_id].take(message, self.model)

    async def read(self, connection: Connection, most: int) -> None:
        """Read what is there, up to so many messages."""
        for _ in range(most):
            reading = asyncio.ensure_future(connection.stream.wait_next())
            await asyncio.sleep(0)
            if not reading.done():
                reading.cancel()
                return
            self.take(connection, reading.result())

    def leave(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.hub.close_stream(connection.stream)

    def reconnect(self, connection: Connection) -> None:
        """The connection breaks, and each client goes on from what it has seen."""
        self.leave(connection)
        anew = Connection(self.hub.open_stream())
        self.connections.append(anew)
        for client in connection.clients.values():
            if not client.is_over and client.start:
                client.pieces = []
                client.request.start_revision = client.next_revision
                client.request.watch_id = 0
                self.create(anew, client)

    def check_bounds(self) -> None:
        for connection in self.connections:
            stream = connection.stream
            assert stream.queued_bytes <= LIMITS.stream_bytes + 15_000  # answers to requests beyond it: none is larger
        if not self.connections:
            assert (self.hub.watcher_count, self.hub.slow_count, self.hub.queued_bytes) == (0, 0, 0)

    # --- the whole -----------------------------------------------------------------------------------------------------------------------

    async def step(self, step: Step) -> None:
        match step:
            case ("put", key, size):
                self.put(KEYS[key % len(KEYS)], b"v" * size)
            case ("txn", keys, size):
                self.txn([KEYS[key] for key in sorted({key % len(KEYS) for key in keys})], b"t" * size)
            case ("delete", number):
                self.delete(*RANGES[number % len(RANGES)])
            case ("compact", back):
                self.compact(back)
            case ("create", number, keys, back, flags):
                request = make_request(self.model, keys, back, flags)
                self.create(self.connection(number), Client(request, start=request.start_revision))
            case ("cancel", number, position):
                connection = self.connection(number)
                if connection.clients:
                    watch_id = sorted(connection.clients)[position % len(connection.clients)]
                    self.hub.cancel(connection.stream, watch_id)
            case ("progress", number):
                self.hub.request_progress(self.connection(number).stream)
            case ("read", number, most):
                await self.read(self.connection(number), most)
            case ("turn", turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case ("leave", number):
                self.leave(self.connection(number))
            case ("reconnect", number):
                self.reconnect(self.connection(number))
            case ("behind",):
                self.hub.fall_behind_all()
        self.check_bounds()

    async def finish(self) -> None:
        """Everybody reads on until a progress message says that all is told."""
        for connection in list(self.connections):
            stream = connection.stream
            await self.read(connection, 10_000)  # an answer to an earlier request for progress among them
            self.hub.request_progress(stream)
            async with asyncio.timeout(20):
                while True:
                    notice = await stream.wait_next()
                    self.take(connection, notice)
                    if notice.watch_id == -1 and not notice.created and notice.revision == self.model.revision:
                        break
            assert not connection.asked
            self.leave(connection)
            self.check_bounds()


def make_request(model: Model, keys: int, back: int, flags: int) -> WatchCreateRequest:
    lo, end = RANGES[keys % len(RANGES)]
    request = WatchCreateRequest(key=lo, range_end=end, prev_kv=bool(flags & 1), fragment=bool(flags & 2))
    if flags & 4:
        request.filters.append(WatchCreateRequest.NOPUT if flags & 8 else WatchCreateRequest.NODELETE)
    if back > -4:
        request.start_revision = max(1, model.revision - back)
    return request


async def live(path: Path, steps: list[Step]) -> None:
    """Run the steps, then let everybody see the end. Raises AssertionError."""
    machine = Machine(path)
    life = Life(machine)
    async with asyncio.TaskGroup() as group:
        catching_up = group.create_task(CatchUp(life.hub).run())
        try:
            for step in steps:
                await life.step(step)
            await life.finish()
        finally:
            catching_up.cancel()
            await machine.store.close(commit=False)


def random_steps(seed: int, count: int = 60) -> list[Step]:
    """A life by chance."""
    random = Random(seed)
    some = random.randrange
    kinds = [
        lambda: ("put", some(7), random.choice([3, 3, 200, 1500])),
        lambda: ("put", some(7), 3),
        lambda: ("txn", tuple(some(7) for _ in range(some(1, 7))), random.choice([3, 300])),
        lambda: ("delete", some(13)),
        lambda: ("compact", some(0, 4)),
        lambda: ("create", some(4), some(13), some(-6, 8), some(16)),
        lambda: ("create", some(2), some(13), -5, some(4)),
        lambda: ("cancel", some(4), some(5)),
        lambda: ("progress", some(4)),
        lambda: ("read", some(4), some(1, 12)),
        lambda: ("turn", some(1, 5)),
        lambda: ("turn", some(1, 3)),
        lambda: random.choice([("leave", some(4)), ("reconnect", some(4)), ("behind",)]),
    ]
    return [random.choice(kinds)() for _ in range(count)]
