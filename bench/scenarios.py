"""What is compared, and one run of it: a cluster, its load, what befalls a follower meanwhile, and the samples of every member.

Purpose: `SCENARIOS` names the matrix; `run` carries out one cell for one system.

A run has phases. Without a fault: *load* (all puts). With one: *before* (a fifth of the puts, everybody healthy), *away* (all puts, while a
follower is stopped, killed or throttled), *catch-up* (it is let go; puts go on without a bound until it has applied what the leader had at
that moment). During a snapshot: *load*, then *snapshot* (a client saves a snapshot from the leader, and puts go on). Every run ends with
*settled*: no load, for `SETTLE_S`.

Rules: the load goes to the leader; catching up counts from the moment of letting go (of starting the process, where it was killed) to a
serializable read on the follower that shows the revision; when the run's time is over, it ends with what there is, and its note says so.
"""

from __future__ import annotations

import enum
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from bench.members import POLL_S, Cluster, Deadline, Member, OutOfTimeError, System
from bench.sampling import Peak, Sample, Sampler, largest, peak, quantile
from bench.workloads import UNBOUNDED, LoadProcess, LoadResult, Workload
from kvserver.pb import rpc_pb2
from kvserver.testing.ports import PortAllocator

SETTLE_S: Final = 3.0
BEFORE_SHARE: Final = 0.2
SLOW_BYTES_PER_S: Final = 2_000_000.0
MB: Final = 1_000_000


class Fault(enum.Enum):
    """What befalls a follower (or, for SNAPSHOT, what the leader has to do) during the load."""

    NONE = "none"
    STOPPED = "stopped"
    KILLED = "killed"
    SLOW = "slow"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row of the matrix; run with each number of `clients`."""

    name: str
    nodes: int
    workload: Workload
    clients: tuple[int, ...] = (1, 50)
    fault: Fault = Fault.NONE


def _matrix() -> tuple[Scenario, ...]:
    unique, one_key = Workload(puts=1_000, value_bytes=MB), Workload(puts=1_000, value_bytes=MB, is_one_key=True)
    many_large, many = Workload(puts=5_000, value_bytes=MB, is_one_key=True), Workload(puts=15_000, value_bytes=100_000)
    medium = Workload(puts=5_000, value_bytes=10_000)
    return (
        Scenario(name="one-unique", nodes=1, workload=unique),
        Scenario(name="one-key", nodes=1, workload=one_key),
        Scenario(name="one-5000", nodes=1, workload=many_large),
        Scenario(name="one-100k", nodes=1, workload=many),
        Scenario(name="one-snapshot", nodes=1, workload=unique, clients=(10,), fault=Fault.SNAPSHOT),
        Scenario(name="three-unique", nodes=3, workload=unique),
        Scenario(name="three-key", nodes=3, workload=one_key),
        Scenario(name="three-100k", nodes=3, workload=many),
        Scenario(name="three-stopped", nodes=3, workload=unique, clients=(10,), fault=Fault.STOPPED),
        Scenario(name="three-killed", nodes=3, workload=unique, clients=(10,), fault=Fault.KILLED),
        Scenario(name="three-killed-10k", nodes=3, workload=medium, clients=(10,), fault=Fault.KILLED),
        Scenario(name="three-slow", nodes=3, workload=unique, clients=(10,), fault=Fault.SLOW),
        Scenario(name="three-snapshot", nodes=3, workload=unique, clients=(10,), fault=Fault.SNAPSHOT),
    )


SCENARIOS: Final = _matrix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: a scenario at one number of clients, for one system, at a scale."""

    scenario: Scenario
    clients: int
    system: System
    scale: float = 1.0
    slow_bytes_per_s: float = SLOW_BYTES_PER_S

    @property
    def workload(self) -> Workload:
        """The scenario's workload, scaled, with this run's clients."""
        planned = self.scenario.workload
        return Workload(
            puts=planned.scaled(self.scale), value_bytes=planned.value_bytes, is_one_key=planned.is_one_key, clients=self.clients
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a run; `peaks` by member."""

    name: str
    seconds: float
    puts: int
    writes_per_s: float
    p50_ms: float
    p99_ms: float
    failures: dict[str, int]
    peaks: dict[str, Peak]


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What one run gave. `series` by member; `affected` is the follower that the fault befell; `event_s` is the catch-up or the snapshot.

    A run that is not `is_complete` has a note that says why, and the phases until then.
    """

    job: Job
    phases: list[Phase] = field(default_factory=list)
    series: Mapping[str, list[Sample]] = field(default_factory=dict)
    began_s: float = 0.0
    leader: str = ""
    affected: str = ""
    event_s: float | None = None
    snapshots_received: int = 0
    note: str = ""
    is_complete: bool = False

    def peak(self, name: str | None = None) -> Peak:
        """The peak of one member over the whole run; of the largest member without a name."""
        return largest(peak(samples) for member, samples in self.series.items() if name in (None, member))

    def phase(self, name: str) -> Phase | None:
        """The phase with that name, or None if the run did not get there."""
        return next((each for each in self.phases if each.name == name), None)


def run(job: Job, directory: Path, ports: PortAllocator, deadline: Deadline) -> RunResult:
    """Carry out one run. Everything it started is ended when it returns.

    A run that fails (a member ended, the load failed, the store's revision contradicts the acknowledged puts) or is cut by the deadline
    gives what there is, with a note.
    """
    result = RunResult(job=job)
    is_proxied = job.scenario.fault is Fault.SLOW
    with Cluster(job.system, directory, size=job.scenario.nodes, ports=ports, is_proxied=is_proxied) as cluster:
        try:
            cluster.start(deadline)
            with Sampler({member.name: _pid_of(member) for member in cluster.members}) as sampler:
                result.series = sampler.series
                _Run(job, cluster, sampler, result, deadline).carry_out()
        except (OutOfTimeError, RuntimeError) as error:
            result.note = str(error).splitlines()[0]
        else:
            result.is_complete = True
    return result


def _pid_of(member: Member) -> Callable[[], int | None]:
    return lambda: member.pid


class _Run:
    """The steps of one run."""

    def __init__(self, job: Job, cluster: Cluster, sampler: Sampler, result: RunResult, deadline: Deadline) -> None:
        self._job = job
        self._cluster = cluster
        self._sampler = sampler
        self._result = result
        self._deadline = deadline
        self._leader = cluster.leader(deadline)

    def carry_out(self) -> None:
        result, leader = self._result, self._leader
        result.leader, result.began_s = leader.name, time.monotonic()
        first_revision = self._revision()
        workload, fault = self._job.workload, self._job.scenario.fault
        if fault is Fault.NONE:
            self._put("load", workload.puts)
        elif fault is Fault.SNAPSHOT:
            self._put("load", workload.puts)
            with self._unbounded("snapshot"):
                result.event_s = self._save_snapshot()
        else:
            self._befall_follower(fault, workload)
        settled_from_s = time.monotonic()
        time.sleep(min(SETTLE_S, self._deadline.left_s()))
        self._record("settled", _nothing(settled_from_s, time.monotonic()))
        self._check(self._revision() - first_revision)

    def _befall_follower(self, fault: Fault, workload: Workload) -> None:
        result = self._result
        follower = next(member for member in self._cluster.members if member is not self._leader)
        result.affected = follower.name
        self._put("before", max(1, round(workload.puts * BEFORE_SHARE)))
        self._take_away(fault, follower)
        self._put("away", workload.puts)
        goal = self._revision()
        try:
            with self._unbounded("catch-up"):
                result.event_s = self._let_go(fault, follower, goal)
        finally:
            result.snapshots_received = follower.snapshots_received()

    def _take_away(self, fault: Fault, follower: Member) -> None:
        if fault is Fault.KILLED:
            follower.kill()
        elif fault is Fault.STOPPED:
            follower.send_signal(signal.SIGSTOP)
        else:
            assert self._cluster.proxy is not None
            assert follower.pid is not None
            self._cluster.proxy.throttle(follower.pid, follower.peer_port, self._job.slow_bytes_per_s)

    def _let_go(self, fault: Fault, follower: Member, goal: int) -> float:
        """Let the follower go; returns the seconds until it has applied `goal`."""
        began_s = time.monotonic()
        if fault is Fault.KILLED:
            follower.start()
        elif fault is Fault.STOPPED:
            follower.send_signal(signal.SIGCONT)
        else:
            assert self._cluster.proxy is not None
            self._cluster.proxy.release()
        while (follower.revision() or 0) < goal:
            self._deadline.check(f"{follower.name} to reach revision {goal}")
            time.sleep(POLL_S)
        return time.monotonic() - began_s

    def _save_snapshot(self) -> float:
        """Receive a snapshot from the leader and drop it; returns the seconds."""
        began_s = time.monotonic()
        with grpc.insecure_channel(self._leader.endpoint, options=[("grpc.max_receive_message_length", 64 << 20)]) as channel:
            save = channel.unary_stream(
                "/etcdserverpb.Maintenance/Snapshot", rpc_pb2.SnapshotRequest.SerializeToString, rpc_pb2.SnapshotResponse.FromString
            )
            try:
                received = sum(len(piece.blob) for piece in save(rpc_pb2.SnapshotRequest(), timeout=max(1.0, self._deadline.left_s())))
            except grpc.RpcError as error:
                raise RuntimeError(f"the snapshot failed: {error}") from error
        self._result.note = f"snapshot of {received / MB:.0f} MB"
        return time.monotonic() - began_s

    # --- load ----------------------------------------------------------------------------------------------------------------------------

    def _start_load(self, phase: str, puts: int) -> LoadProcess:
        self._deadline.check(f"the phase {phase}")
        prefix = "bench/key" if self._job.workload.is_one_key else f"bench/{phase}"
        return LoadProcess(self._leader.endpoint, self._job.workload, prefix=prefix, puts=puts, seconds=self._deadline.left_s())

    def _put(self, phase: str, puts: int) -> None:
        load = self._start_load(phase, puts)
        try:
            done = load.result()
        finally:
            load.kill()
        self._record(phase, done)
        if len(done.done_s) < puts:
            raise OutOfTimeError(f"out of time after {len(done.done_s)} of {puts} puts of the phase {phase}")

    @contextmanager
    def _unbounded(self, phase: str) -> Iterator[None]:
        """Puts without a bound while the block runs; the phase is the block, without the load's own beginning and end."""
        load = self._start_load(phase, UNBOUNDED)
        began_s = time.monotonic()
        try:
            try:
                yield
            finally:
                ended_s = time.monotonic()
                done = load.end()
                self._record(phase, done, began_s, ended_s)
        finally:
            load.kill()

    def _record(self, name: str, done: LoadResult, began_s: float | None = None, ended_s: float | None = None) -> None:
        """Append the phase; what counts as its time is [began_s, ended_s], by default the load's own."""
        from_s, to_s = done.began_s if began_s is None else began_s, done.ended_s if ended_s is None else ended_s
        seconds, puts = to_s - from_s, len(done.done_s) if began_s is None else done.puts_between(from_s, to_s)
        phase = Phase(
            name=name,
            seconds=seconds,
            puts=len(done.done_s),
            writes_per_s=puts / seconds if seconds > 0 else 0.0,
            p50_ms=quantile(done.latencies_s, 0.5) * 1e3,
            p99_ms=quantile(done.latencies_s, 0.99) * 1e3,
            failures=done.failures,
            peaks={member: peak(samples, from_s, to_s) for member, samples in self._sampler.series.items()},
        )
        self._result.phases.append(phase)

    # --- checks --------------------------------------------------------------------------------------------------------------------------

    def _revision(self) -> int:
        while (revision := self._leader.revision()) is None:
            self._deadline.check(f"{self._leader.name} to answer")
            time.sleep(POLL_S)
        return revision

    def _check(self, grown: int) -> None:
        """A figure counts only if the puts happened, and on the member that was loaded."""
        puts = sum(phase.puts for phase in self._result.phases)
        unknown = sum(sum(phase.failures.values()) for phase in self._result.phases)
        if not puts <= grown <= puts + unknown:
            raise RuntimeError(f"{puts} puts were acknowledged and {unknown} failed, but the revision grew by {grown}")
        if self._cluster.leader(self._deadline) is not self._leader:
            self._result.note = f"{self._result.note}; leadership moved".removeprefix("; ")


def _nothing(from_s: float, to_s: float) -> LoadResult:
    return LoadResult(began_s=from_s, ended_s=to_s, done_s=(), latencies_s=(), failures={})
