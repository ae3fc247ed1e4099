"""Runs a load: clients that send, one request at a time each, until all are sent or the run is stopped.

Rules
- Clients take the numbers of requests from one counter; nothing is queued, and nothing is kept of a request but its place in the tally.
- Closed loop (no schedule): a client's next request follows its last answer. While the server can't be reached (UNAVAILABLE) the client
  pauses after each failure, 25 ms and doubling up to 500 ms, so that a restart doesn't use up the total, and gives up after `GIVE_UP_S`.
- Open loop: a request starts when it is due, or as soon as a client is free; its latency counts from when it was due (schedule.py).
- An interrupt stops the clients where they are; what they have sent is unanswered then, neither success nor error.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvserver.cli.bench.loads import Kind, Load
from kvserver.cli.bench.schedule import Schedule
from kvserver.cli.bench.tally import Lateness, Tally
from kvserver.client.policy import backoff_s

GIVE_UP_S: Final = 30.0
"""A client of a closed loop for which the server was unavailable for so long sends nothing any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request failed."""

    text: str
    is_unavailable: bool = False


class Sender(Protocol):
    """What a client needs of its connection."""

    async def send(self, kind: Kind, body: bytes) -> Failure | None:
        """Send one request; None when it was answered, else what went wrong."""


Helper = Callable[["Run"], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run, while it goes on and afterwards. `clients` and `total` are positive."""

    load: Load
    total: int
    clients: int
    schedule: Schedule | None = None
    tallies: dict[Kind, Tally] = field(init=False)
    lateness: Lateness | None = field(init=False)
    is_interrupted: bool = False
    began_ns: int = 0
    elapsed_ns: int = 0
    cpu_ns: int = 0
    _numbers: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tallies = {kind: Tally(kind) for kind in self.load.kinds}
        self.lateness = None if self.schedule is None else Lateness()
        self._numbers = iter(range(self.total))

    @property
    def ended(self) -> int:
        """Requests that were answered or failed."""
        return sum(tally.succeeded + tally.failed for tally in self.tallies.values())

    async def execute(self, senders: Sequence[Sender], helpers: Sequence[Helper] = ()) -> None:
        """Send everything; the helpers run beside it and are stopped at its end. Ends early, without an error, on SIGINT."""
        cpu_ns = time.process_time_ns()
        self.began_ns = time.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            clients = [
                group.create_task(self._client(senders[number % len(senders)]), name=f"bench client {number}")
                for number in range(self.clients)
            ]
            async with _beside(group, [helper(self) for helper in helpers]):
                with _on_interrupt(lambda: self._stop(clients)):
                    await asyncio.wait(clients)
                self.elapsed_ns = time.monotonic_ns() - self.began_ns
                self.cpu_ns = time.process_time_ns() - cpu_ns

    def _stop(self, clients: Sequence[asyncio.Task[None]]) -> None:
        self.is_interrupted = True
        for client in clients:
            client.cancel()

    async def _client(self, sender: Sender) -> None:
        outage = _Outage()
        for number in self._numbers:
            start_ns = await self._wait_due(number)
            kind, body = self.load.request(number)
            tally = self.tallies[kind]
            if self.schedule is None:
                start_ns = time.monotonic_ns()
            tally.unanswered += 1
            failure = await sender.send(kind, body)
            took_ns = time.monotonic_ns() - start_ns
            tally.unanswered -= 1
            if failure is None:
                tally.latency.add(took_ns)
            else:
                tally.fail(failure.text)
            if self.schedule is None and not await outage.wait_over(failure):
                return

    async def _wait_due(self, number: int) -> int:
        """Wait until the request may start; returns when it was due, on the monotonic clock."""
        if self.schedule is None or self.lateness is None:
            return 0
        due_ns = self.began_ns + self.schedule.due_ns(number)
        left_ns = due_ns - time.monotonic_ns()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)
        self.lateness.add(time.monotonic_ns() - due_ns)
        return due_ns


class _Outage:
    """How long, and how often in a row, one client has found the server unavailable."""

    def __init__(self) -> None:
        self._failures = 0
        self._since_s = 0.0

    async def wait_over(self, failure: Failure | None) -> bool:
        """Pause if the server was unavailable; False when it has been for too long."""
        if failure is None or not failure.is_unavailable:
            self._failures = 0
            return True
        now_s = time.monotonic()
        if not self._failures:
            self._since_s = now_s
        if now_s - self._since_s > GIVE_UP_S:
            return False
        self._failures += 1
        await asyncio.sleep(backoff_s(self._failures))
        return True


@asynccontextmanager
async def _beside(group: asyncio.TaskGroup, helpers: Sequence[Awaitable[None]]) -> AsyncIterator[None]:
    """Tasks that run while the body does."""

    async def run(helper: Awaitable[None]) -> None:
        await helper

    tasks = [group.create_task(run(helper), name=f"bench helper {number}") for number, helper in enumerate(helpers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT calls `stop` instead of raising KeyboardInterrupt; not where it is ignored (nohup), nor outside the main thread."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
