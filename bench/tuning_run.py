"""One run of the tuning study: a cluster, a laggard, and how it catches up.

Purpose: `carry_out` makes one `Outcome` from one `Point`. Phases: *preload* (values of 1 MB until the store has its size), *before* (puts
at a rate), *away* (a follower is killed; puts in a closed loop until the lag is made), *catch-up* (it is started again, and the puts go on
at the rate until it has applied what the leader had at that moment).

Rules: the load goes to the leader. Seconds of the catch-up count from the start of the process; `up_s` is when its HTTP port answers
(Python has started, log and store are open), `caught_up_s` when it has applied the goal (/debug/raft), `ready_s` when its log says that it
serves clients. The phase *catch-up* is also given in its two parts, *starting* and *applying*. Memory counts from the begin of *away*,
`leader_base_bytes` is what the leader had then: preloading is not part of it. A latency belongs to the phase in which its put was
answered. A run that did not end by itself has a note that says why.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.members import KVSERVER, Cluster, Deadline, Member, OutOfTimeError
from bench.pages import WindowWatch, largest, metrics, page
from bench.sampling import Sample, Sampler, peak, quantile
from bench.tuning_plan import BEFORE_S, MB, Point, Way
from bench.workloads import UNBOUNDED, LoadProcess, LoadResult, Workload
from kvserver.testing.ports import PortAllocator

NODES: Final = 3
PRELOAD_CLIENTS: Final = 8
CLIENTS: Final = 32
QUIET_S: Final = 3.0  # after the preload: the heap gives back what that took
TAIL_S: Final = 1.0  # after the catch-up: its last bytes are in the samples
POLL_S: Final = 0.02
MOSTLY: Final = 0.9
_COUNTERS: Final = ("kvserver_wal_reads_total", "kvserver_wal_read_bytes_total", "kvserver_snapshots_sent_total")
_SENT_BYTES: Final = "kvserver_snapshot_sent_bytes_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFigures:
    """What the load did in one phase."""

    seconds: float
    puts: int
    writes_per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    failures: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run gave; `leader_series` are (seconds since *away* began, anonymous bytes)."""

    point: Point
    is_complete: bool = False
    note: str = ""
    took_s: float = 0.0
    preload_s: float = 0.0
    phases: dict[str, PhaseFigures] = field(default_factory=dict)
    up_s: float | None = None
    caught_up_s: float | None = None
    ready_s: float | None = None
    lag_entries: int = 0
    way: str = ""
    wal_reads: int = 0
    wal_read_bytes: int = 0
    snapshots_sent: int = 0
    snapshots_received: int = 0
    snapshot_bytes: int = 0
    leader_base_bytes: int = 0
    leader_peak_bytes: int = 0
    follower_peak_bytes: int = 0
    window_peak_bytes: int = 0
    window_peak_entries: int = 0
    leader_series: list[tuple[float, int]] = field(default_factory=list)

    @property
    def applying_s(self) -> float | None:
        """Seconds from the answering process to the applied goal: the catch-up without Python's start and the opening of the files."""
        return None if self.caught_up_s is None or self.up_s is None else max(0.0, self.caught_up_s - self.up_s)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """The outcome that `dataclasses.asdict` and JSON made these values from."""
        point = {**values["point"], "way": Way(values["point"]["way"])}
        phases = {name: PhaseFigures(**figures) for name, figures in values["phases"].items()}
        series = [(at_s, size_bytes) for at_s, size_bytes in values["leader_series"]]
        return cls(**{**values, "point": Point(**point), "phases": phases, "leader_series": series})


def way_taken(*, wal_read_bytes: int, snapshots: int, lag_bytes: int) -> str:
    """How a laggard was helped: one of the values of `Way`, or several, joined by "and"; WAL alone if it gave nine tenths of the lag."""
    ways = [Way.SNAPSHOT.value] if snapshots else []
    ways += [Way.WAL.value] if wal_read_bytes else []
    if not snapshots and wal_read_bytes < MOSTLY * lag_bytes:
        ways.append(Way.MEMORY.value)
    return " and ".join(ways)


def figures(done: LoadResult, from_s: float, to_s: float) -> PhaseFigures:
    """What the load did in the half-open [from_s, to_s)."""
    latencies = [each for at_s, each in zip(done.done_s, done.latencies_s, strict=True) if from_s <= at_s < to_s]
    seconds = to_s - from_s
    return PhaseFigures(
        seconds=seconds,
        puts=len(latencies),
        writes_per_s=len(latencies) / seconds if seconds > 0 else 0.0,
        p50_ms=quantile(latencies, 0.5) * 1e3,
        p99_ms=quantile(latencies, 0.99) * 1e3,
        longest_ms=max(latencies, default=0.0) * 1e3,
        failures=sum(done.failures.values()),
    )


def thinned(samples: Sequence[Sample], from_s: float, step_s: float = 0.5) -> list[tuple[float, int]]:
    """The highest anonymous memory of each step since `from_s`, as (seconds, bytes)."""
    steps: dict[int, int] = {}
    for each in samples:
        if each.at_s >= from_s:
            number = int((each.at_s - from_s) / step_s)
            steps[number] = max(steps.get(number, 0), each.anonymous_bytes)
    return [(number * step_s, size_bytes) for number, size_bytes in sorted(steps.items())]


def note_of(error: Exception) -> str:
    """What happened, and the last line of the log that the error quotes, if any."""
    first, *others = str(error).splitlines()
    return " ".join([first, *others[-1:]])


def carry_out(point: Point, base: Path | None, seconds: float, ports: PortAllocator) -> Outcome:
    """One run in a directory of its own; what went wrong stands in the outcome's note."""
    began_s = time.monotonic()
    outcome = Outcome(point=point)
    with tempfile.TemporaryDirectory(prefix="kvserver-tuning-", dir=base) as directory:
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < point.needed_bytes:
            outcome.note = f"not run: needs {point.needed_bytes / 1e9:.1f} GB of disk, {free_bytes / 1e9:.1f} are free"
            return outcome
        deadline = Deadline(seconds)
        flags, is_proxied = point.flags, point.is_relayed or point.delay_s > 0
        with Cluster(KVSERVER, Path(directory), size=NODES, ports=ports, is_proxied=is_proxied, flags=flags, has_http=True) as cluster:
            try:
                cluster.start(deadline)
                leader = cluster.leader(deadline)
                with Sampler({each.name: _pid_of(each) for each in cluster.members}) as sampler, WindowWatch(_port(leader)) as watch:
                    _Run(point, cluster, leader, sampler, watch, outcome, deadline).carry_out()
            except (OutOfTimeError, RuntimeError) as error:
                outcome.note = note_of(error)
            else:
                outcome.is_complete = True
    outcome.took_s = time.monotonic() - began_s
    return outcome


def _pid_of(member: Member) -> Callable[[], int | None]:
    return lambda: member.pid


def _port(member: Member) -> int:
    assert member.http_port is not None
    return member.http_port


def _applied(member: Member) -> int | None:
    """The index that it has applied; None while it does not answer."""
    shown = page(_port(member))
    return None if shown is None else int(shown["raft"]["applied_index"])


class _Run:
    """The steps of one run."""

    def __init__(
        self, point: Point, cluster: Cluster, leader: Member, sampler: Sampler, watch: WindowWatch, outcome: Outcome, deadline: Deadline
    ) -> None:
        self._point = point
        self._cluster = cluster
        self._leader = leader
        self._follower = next(each for each in cluster.members if each is not leader)
        self._sampler = sampler
        self._watch = watch
        self._outcome = outcome
        self._deadline = deadline

    def carry_out(self) -> None:
        point, outcome = self._point, self._outcome
        self._preload()
        self._wait_level()
        os.sync()  # what filling the store left to write does not disturb what is measured
        if self._cluster.proxy is not None:
            self._cluster.proxy.delay(point.delay_s)
        time.sleep(min(QUIET_S, self._deadline.left_s()))
        rated = Workload(puts=UNBOUNDED, value_bytes=point.entry_bytes, clients=CLIENTS, rate_per_s=point.rate_per_s)
        self._put("before", dataclasses.replace(rated, puts=max(1, round(point.rate_per_s * BEFORE_S))))
        before_index = self._wait_applied(self._leader)
        away_s = time.monotonic()
        outcome.leader_base_bytes = self._sampler.series[self._leader.name][-1].anonymous_bytes
        self._follower.kill()
        self._put("away", Workload(puts=point.away_puts, value_bytes=point.entry_bytes, clients=CLIENTS))
        goal = self._wait_applied(self._leader)
        outcome.lag_entries = goal - before_index
        start_s = self._catch_up(rated, goal)
        time.sleep(min(TAIL_S, self._deadline.left_s()))
        self._measure_memory(away_s, start_s)
        if outcome.caught_up_s is None or outcome.ready_s is None:
            waited_s = outcome.phases["catch-up"].seconds
            raise OutOfTimeError(f"not caught up and serving after {waited_s:.0f} s; {outcome.snapshots_received} snapshots arrived")
        self._check_leader()

    # --- phases --------------------------------------------------------------------------------------------------------------------------

    def _preload(self) -> None:
        began_s = time.monotonic()
        values, rest_bytes = divmod(self._point.store_bytes, MB)
        if values:
            self._load("preload", Workload(puts=values, value_bytes=MB, clients=PRELOAD_CLIENTS))
        if rest_bytes:
            self._load("preload-rest", Workload(puts=1, value_bytes=rest_bytes))
        self._outcome.preload_s = time.monotonic() - began_s

    def _put(self, phase: str, workload: Workload) -> None:
        done = self._load(phase, workload)
        self._outcome.phases[phase] = figures(done, done.began_s, done.ended_s)

    def _load(self, phase: str, workload: Workload) -> LoadResult:
        load = self._start_load(phase, workload)
        try:
            done = load.result()
        finally:
            load.kill()
        if len(done.done_s) < workload.puts:
            raise OutOfTimeError(f"out of time after {len(done.done_s)} of {workload.puts} puts of the phase {phase}")
        return done

    def _start_load(self, phase: str, workload: Workload) -> LoadProcess:
        self._deadline.check(f"the phase {phase}")
        puts, seconds = workload.puts, self._deadline.left_s()
        return LoadProcess(self._leader.endpoint, workload, prefix=f"tuning/{phase}", puts=puts, seconds=seconds)

    def _catch_up(self, workload: Workload, goal: int) -> float:
        """Start the laggard and wait until it has applied `goal`, or the time is over; returns the moment of its start."""
        outcome, follower = self._outcome, self._follower
        counted = metrics(_port(self._leader))
        snapshots = follower.snapshots_received()
        lives = follower.ready_count()
        load = self._start_load("catch-up", workload)
        try:
            began_s = time.monotonic()
            follower.start()
            self._follow(began_s, goal, lives)
            ended_s = time.monotonic()
            done = load.end()
        finally:
            load.kill()
        spans = {"catch-up": (began_s, ended_s)}
        if outcome.up_s is not None:
            spans |= {"starting": (began_s, began_s + outcome.up_s), "applying": (began_s + outcome.up_s, ended_s)}
        outcome.phases |= {name: figures(done, *span) for name, span in spans.items()}
        outcome.snapshots_received = follower.snapshots_received() - snapshots
        self._count(counted, metrics(_port(self._leader)))
        return began_s

    def _follow(self, began_s: float, goal: int, lives: int) -> None:
        """Note when the laggard answers, has applied `goal`, and serves once more; until all are there or the time is over."""
        outcome, follower = self._outcome, self._follower
        while (outcome.caught_up_s is None or outcome.ready_s is None) and self._deadline.left_s():
            if follower.pid is None:
                raise RuntimeError(f"{follower.name} ended while it caught up")
            if outcome.caught_up_s is None and (applied := _applied(follower)) is not None:
                now_s = time.monotonic() - began_s
                outcome.up_s = now_s if outcome.up_s is None else outcome.up_s
                outcome.caught_up_s = now_s if applied >= goal else None
            if outcome.ready_s is None and follower.ready_count() > lives:
                outcome.ready_s = time.monotonic() - began_s
            time.sleep(POLL_S)

    def _wait_level(self) -> None:
        """Every member has applied what the leader has: a follower that was slow while the store was filled is no part of the lag."""
        goal = self._wait_applied(self._leader)
        for member in self._cluster.members:
            while (_applied(member) or 0) < goal:
                self._deadline.check(f"{member.name} to apply index {goal}")
                time.sleep(POLL_S)

    def _wait_applied(self, member: Member) -> int:
        while (index := _applied(member)) is None:
            self._deadline.check(f"{member.name} to answer")
            time.sleep(POLL_S)
        return index

    # --- figures -------------------------------------------------------------------------------------------------------------------------

    def _count(self, before: dict[str, float], after: dict[str, float]) -> None:
        """What the leader did for the laggard, by its counters (one that was never counted is not shown)."""
        outcome = self._outcome
        grown = {name: int(after.get(name, 0.0) - before.get(name, 0.0)) for name in (*_COUNTERS, _SENT_BYTES)}
        outcome.wal_reads, outcome.wal_read_bytes, outcome.snapshots_sent = (grown[name] for name in _COUNTERS)
        outcome.snapshot_bytes = grown[_SENT_BYTES]
        lag_bytes = self._point.away_puts * self._point.entry_bytes
        outcome.way = way_taken(wal_read_bytes=outcome.wal_read_bytes, snapshots=outcome.snapshots_sent, lag_bytes=lag_bytes)

    def _measure_memory(self, away_s: float, start_s: float) -> None:
        outcome, now_s = self._outcome, time.monotonic()
        samples = self._sampler.series[self._leader.name]
        outcome.leader_peak_bytes = peak(samples, away_s, now_s).anonymous_bytes
        outcome.follower_peak_bytes = peak(self._sampler.series[self._follower.name], start_s, now_s).anonymous_bytes
        outcome.leader_series = thinned(samples, away_s)
        if look := largest(self._watch.looks, away_s, now_s):
            outcome.window_peak_bytes, outcome.window_peak_entries = look.size_bytes, look.entries

    def _check_leader(self) -> None:
        outcome = self._outcome
        if self._cluster.leader(self._deadline) is not self._leader:
            outcome.note = f"{outcome.note}; leadership moved".removeprefix("; ")
        if outcome.snapshots_received != outcome.snapshots_sent:
            shown = f"{outcome.snapshots_sent} snapshots sent, {outcome.snapshots_received} received"
            outcome.note = f"{outcome.note}; {shown}".removeprefix("; ")
