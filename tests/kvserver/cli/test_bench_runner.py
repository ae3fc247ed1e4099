"""How the clients of bench send: closed and open loop, failures, outages, an interrupt. The server is scripted."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from kvserver.cli.bench import runner
from kvserver.cli.bench.helpers import Compactor, ProgressBar
from kvserver.cli.bench.loads import Kind, RangeLoad
from kvserver.cli.bench.runner import Failure, Run
from kvserver.cli.bench.schedule import Schedule
from kvserver.client import ServerError
from kvserver.client.errors import UNAVAILABLE
from kvserver.pb import rpc_pb2 as pb

DOWN = Failure(text="down", is_unavailable=True)
REFUSED = Failure(text="refused")


class Server:
    """Answers after `pause_s` with the next scripted failure, or success; knows how many requests were under way at once."""

    def __init__(self, *, pause_s: float = 0.0, failures: Callable[[int], Failure | None] = lambda number: None) -> None:
        self.pause_s, self.failures = pause_s, failures
        self.received = self.under_way = self.most_under_way = 0
        self.reached = asyncio.Event()
        self.reached_at = 10**9

    async def send(self, kind: Kind, body: bytes) -> Failure | None:
        number = self.received
        self.received += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.received >= self.reached_at:
            self.reached.set()
        try:
            await asyncio.sleep(self.pause_s)
        finally:
            self.under_way -= 1
        return self.failures(number)


def run_of(total: int, clients: int, rate: int = 0) -> Run:
    load = RangeLoad(pb.RangeRequest(key=b"k"))
    return Run(load=load, total=total, clients=clients, schedule=Schedule(rate_per_s=rate) if rate else None)


@pytest.mark.parametrize(("total", "clients"), [(1, 1), (100, 7), (3, 10)])
async def test_a_closed_loop_sends_the_total_with_one_request_a_client(total: int, clients: int) -> None:
    server, run = Server(), run_of(total, clients)
    await run.execute([server])
    tally = run.tallies[Kind.READ]
    assert (server.received, tally.succeeded, tally.failed, tally.unanswered, run.ended) == (total, total, 0, 0, total)
    assert server.most_under_way == min(total, clients)
    assert run.lateness is None
    assert run.elapsed_ns > 0
    assert not run.is_interrupted


async def test_clients_are_dealt_out_over_the_connections() -> None:
    servers = [Server(), Server(), Server()]
    await run_of(9, 5).execute(servers)
    assert [server.most_under_way for server in servers] == [2, 2, 1]


async def test_failures_are_counted_by_text_and_not_among_the_latencies() -> None:
    run = run_of(10, 2)
    await run.execute([Server(failures=lambda number: REFUSED if number % 5 == 0 else None)])
    tally = run.tallies[Kind.READ]
    assert (tally.latency.count, tally.errors) == (8, {"refused": 2})


async def test_an_open_loop_keeps_its_rate_and_not_more() -> None:
    server, run = Server(), run_of(30, 5, rate=100)
    await run.execute([server])
    assert run.tallies[Kind.READ].succeeded == 30
    assert run.elapsed_ns >= 290_000_000


async def test_an_open_loop_counts_the_wait_for_a_client_as_latency() -> None:
    """One client, 20 ms a request, one due each millisecond: request n is answered 20 ms * (n + 1) - n ms after it was due."""
    run = run_of(10, 1, rate=1000)
    await run.execute([Server(pause_s=0.02)])
    latency = run.tallies[Kind.READ].latency
    assert latency.max_ns >= 10 * 20_000_000 - 9_000_000
    assert run.lateness is not None
    assert run.lateness.max_ns >= 9 * 19_000_000
    assert run.lateness.late >= 9


async def test_a_closed_loop_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's: each look at it is 1 ms later, so a request takes 1 ms."""
    ticks = iter(range(0, 10**15, 10**6))
    monkeypatch.setattr(runner.time, "monotonic_ns", lambda: next(ticks))
    run = run_of(10, 1)
    await run.execute([Server()])
    latency = run.tallies[Kind.READ].latency
    assert (latency.min_ns, latency.max_ns) == (1_000_000, 1_000_000)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are recorded and pass at once: the clock jumps."""
    seen: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(duration_s: float) -> None:
        if duration_s:
            seen.append(duration_s)
        await real_sleep(0)

    monkeypatch.setattr(runner.asyncio, "sleep", sleep)
    monkeypatch.setattr(runner.time, "monotonic", lambda: sum(seen))
    return seen


async def test_a_client_pauses_while_the_server_is_unavailable(pauses: list[float]) -> None:
    run = run_of(10, 1)
    await run.execute([Server(failures=lambda number: DOWN if number in (2, 3, 4, 7) else None)])
    assert pauses == [0.025, 0.05, 0.1, 0.025]
    assert (run.tallies[Kind.READ].succeeded, run.tallies[Kind.READ].errors) == (6, {"down": 4})


async def test_a_client_does_not_pause_for_a_refusal_nor_in_an_open_loop(pauses: list[float]) -> None:
    await run_of(5, 1).execute([Server(failures=lambda number: REFUSED)])
    run = run_of(5, 1, rate=10**9)
    await run.execute([Server(failures=lambda number: DOWN)])
    assert pauses == []
    assert run.tallies[Kind.READ].failed == 5


async def test_clients_give_up_when_the_server_stays_away(pauses: list[float]) -> None:
    server, run = Server(failures=lambda number: DOWN), run_of(10**6, 1)
    await run.execute([server])
    assert runner.GIVE_UP_S < sum(pauses) < runner.GIVE_UP_S + 1
    assert run.tallies[Kind.READ].failed == server.received < 100
    assert not run.is_interrupted


async def test_an_interrupt_stops_at_once_and_counts_what_is_unanswered() -> None:
    server, run = Server(pause_s=3600), run_of(1000, 3)
    server.reached_at = 3
    handler = signal.getsignal(signal.SIGINT)

    async def interrupt(run: Run) -> None:
        await server.reached.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    await run.execute([server], [interrupt])
    assert run.is_interrupted
    assert (run.tallies[Kind.READ].unanswered, run.ended) == (3, 0)
    assert signal.getsignal(signal.SIGINT) is handler


async def test_an_ignored_interrupt_stays_ignored() -> None:
    server, run = Server(), run_of(20, 1)

    async def interrupt(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        await run.execute([server], [interrupt])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (run.is_interrupted, run.ended) == (False, 20)


async def test_a_defect_ends_the_run_instead_of_hanging_it() -> None:
    class Broken:
        async def send(self, kind: Kind, body: bytes) -> Failure | None:
            raise KeyError(kind)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run_of(10, 2).execute([Broken()])
    assert caught.group_contains(KeyError)


# --- helpers ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_the_bar_is_drawn_on_a_terminal_and_cleared() -> None:
    terminal = Terminal()
    await run_of(5, 1).execute([Server()], [ProgressBar(terminal).show])
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn[0] == drawn[-1] == ""
    assert drawn[1].startswith("0 / 5 [")


async def test_elsewhere_there_is_no_bar() -> None:
    stream = io.StringIO()
    await run_of(5, 1).execute([Server()], [ProgressBar(stream).show])
    assert stream.getvalue() == ""


class Compacting:
    """A client of a store at revision 10, 10, 30, ..."""

    def __init__(self) -> None:
        self.revisions = [10, 10, 30, 30]
        self.compacted: list[int] = []
        self.done = asyncio.Event()

    async def get(self, key: bytes) -> pb.RangeResponse:
        if not self.revisions:
            self.done.set()
            raise ServerError(UNAVAILABLE, "etcdserver: no leader")
        return pb.RangeResponse(header=pb.ResponseHeader(revision=self.revisions.pop(0)))

    async def compact(self, revision: int) -> pb.CompactionResponse:
        self.compacted.append(revision)
        return pb.CompactionResponse()


async def test_compaction_follows_the_revision_at_its_distance_and_its_failure_is_counted() -> None:
    client: Any = Compacting()
    run = Run(load=RangeLoad(pb.RangeRequest()), total=1, clients=1)
    run.tallies[Kind.WRITE] = run.tallies.pop(Kind.READ)
    task = asyncio.ensure_future(Compactor(client, interval_s=0.001, distance=4).keep_compacting(run))
    await client.done.wait()
    task.cancel()
    await asyncio.wait([task])
    assert client.compacted == [6, 26]
    assert list(run.tallies[Kind.WRITE].errors) == ["compaction: etcdserver: no leader"]
