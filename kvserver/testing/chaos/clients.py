"""The clients of a chaos run: asyncio tasks that keep asking, whatever happens to the members.

Purpose: `Clients.run` keeps `clients` concurrent callers busy until `stop` is set, so that about `rate_per_s` writes are acknowledged each
second over the whole run, and records every invocation and completion.

Rules
- Every operation is sent once, to one member; a client that had no answer turns to the next member.
- Pacing is by acknowledgements: what was missed while there was no leader is made up for afterwards, up to `BACKLOG_S` seconds' worth.
- *Hunters* send linearizable reads to every member at a steady pace whether or not it answers, with a long deadline. The requests that lie
  in the socket of a stopped member are answered when it goes on, possibly by a leader that isn't one any more: those must not be stale.
- Bounded: one operation per client, `MAX_HUNTING` reads per hunter; over that a hunter skips.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from kvserver.client import Client, ClientConfig, parse_endpoint
from kvserver.testing.chaos.files import Recorder
from kvserver.testing.chaos.model import Answer, Request
from kvserver.testing.chaos.wire import call
from kvserver.testing.chaos.workload import Workload

CALL_TIMEOUT_S: Final = 2.0
HUNT_TIMEOUT_S: Final = 8.0
HUNT_EVERY_S: Final = 0.2
MAX_HUNTING: Final = 32
DIAL_TIMEOUT_S: Final = 0.3
BACKLOG_S: Final = 10.0
FLUSH_EVERY_S: Final = 0.5
_PAUSE_S: Final = 0.02
_PAUSE_AFTER_FAILURE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked for. Raises ValueError for what can't be."""

    rate_per_s: float
    clients: int
    value_size_bytes: int

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0 or self.clients < 1 or self.value_size_bytes < 1:
            raise ValueError("rate, clients and size must be positive")


class _Pace:
    """How many acknowledged writes are due; forgives what is more than `BACKLOG_S` behind."""

    def __init__(self, rate_per_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._since_s = time.monotonic()

    def is_due(self, acknowledged: int) -> bool:
        """Whether another operation should begin now."""
        behind_s = self.behind_s(acknowledged)
        if behind_s > BACKLOG_S:
            self._since_s += behind_s - BACKLOG_S
        return behind_s > 0

    def behind_s(self, acknowledged: int) -> float:
        """How many seconds' worth of writes are missing; negative: ahead."""
        return time.monotonic() - self._since_s - acknowledged / self._rate_per_s


class Clients:
    """All clients of a run. `endpoints` maps a member's name to its host:port."""

    def __init__(self, endpoints: dict[str, str], recorder: Recorder, workload: Workload, load: Load, random: Random) -> None:
        self._names = list(endpoints)
        self._endpoints = endpoints
        self._recorder = recorder
        self._workload = workload
        self._load = load
        self._random = random
        self._ids = itertools.count(1)
        self._pace = _Pace(load.rate_per_s)
        self._stopping = asyncio.Event()

    def is_behind(self) -> bool:
        """Whether more than a second's worth of writes is to be made up for. May be asked by any thread."""
        return self._pace.behind_s(self._recorder.counters.writes_ok) > 1.0

    async def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set (by any thread); what is under way then is awaited.

        Raises:
            MalformedAnswerError: a member answered nonsense.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(self._load.clients):
                group.create_task(self._work(f"c{number}", number), name=f"client-{number}")
            for name in self._names:
                group.create_task(self._hunt(name), name=f"hunter-{name}")
            while not stop.is_set():
                await asyncio.sleep(FLUSH_EVERY_S)
                self._recorder.flush()
            self._stopping.set()

    async def _work(self, client: str, number: int) -> None:
        async with self._connect(self._names) as connection:
            chosen = number % len(self._names)
            while not self._stopping.is_set():
                if not self._pace.is_due(self._recorder.counters.writes_ok):
                    await self._pause(_PAUSE_S * (0.5 + self._random.random()))
                    continue
                operation_id = next(self._ids)
                request = self._workload.next_request(operation_id, client)
                answered = await self._call(connection, operation_id, client, self._names[chosen], request, CALL_TIMEOUT_S)
                if not answered:
                    chosen = (chosen + 1) % len(self._names)
                    await self._pause(_PAUSE_AFTER_FAILURE_S * self._random.random())
                elif self._random.random() < 0.02:
                    chosen = self._random.randrange(len(self._names))

    async def _hunt(self, name: str) -> None:
        hunting: set[asyncio.Task[bool]] = set()
        async with self._connect([name]) as connection, asyncio.TaskGroup() as group:
            while not self._stopping.is_set():
                await self._pause(HUNT_EVERY_S)
                if len(hunting) >= MAX_HUNTING:
                    continue
                read = self._call(connection, next(self._ids), f"hunter-{name}", name, self._workload.read(), HUNT_TIMEOUT_S)
                task = group.create_task(read, name=f"hunt-{name}")
                hunting.add(task)
                task.add_done_callback(hunting.discard)

    async def _call(self, connection: Client, operation_id: int, client: str, member: str, request: Request, timeout_s: float) -> bool:
        recorder = self._recorder
        recorder.invoked(operation_id, client, member, time.monotonic_ns(), request)
        result = await call(connection, self._endpoints[member], request, timeout_s)
        now_ns = time.monotonic_ns()
        if isinstance(result, Answer):
            recorder.answered(operation_id, now_ns, request, result)
            self._workload.note(client, request, result)
            return True
        recorder.not_answered(operation_id, now_ns, request, result.outcome, result.error)
        return False

    def _connect(self, names: Sequence[str]) -> Client:
        endpoints = tuple(parse_endpoint(self._endpoints[name]) for name in names)
        return Client(ClientConfig(endpoints=endpoints, dial_timeout_s=DIAL_TIMEOUT_S))

    async def _pause(self, seconds: float) -> None:
        """Let time pass, or the run end."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
