"""`make bench-durability`: what durability costs, and that it leaves the event loop free.

1. fdatasyncs per 1,000 puts of 256 B at 100 concurrent on a single node: how many proposals share one.
2. The lateness of event loops (`bench/lag_server.py`, a probe every 5 ms): of a single node and of the leader of three, idle and during
   1 MB puts by each of `--writers`; of the leader while a snapshot of `--snapshot-mb` is made and streamed to a member that was away,
   beside a light load; and of the member that receives and installs it, from the moment it listens until it serves.

Each p99 stands beside that of an idle loop, in a process of its own, over the same seconds: with more processes than cores a timer is late
although its loop has nothing to do. The kernel favours a loop that sleeps, so the last column says what a probe was late less the time that
its thread was ready and had no CPU: what the server itself does to its loop.

    python bench/durability.py [--snapshot-mb 1000] [--seconds 20] [--writers 1,8] [--json bench/out/durability.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kvserver.testing.load import AcknowledgedWriters, KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster

HERE = Path(__file__).parent
MB: Final = 1_000_000
CATCH_UP_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Lag:
    """Lateness of a loop in one phase, in milliseconds; `beside_ms` is the p99 of the idle loop meanwhile, `own_ms` that of this loop less
    the time that it had no CPU (all of it since the probe began: rather too much)."""

    phase: str
    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    beside_ms: float
    own_ms: float


@dataclass(frozen=True, slots=True)
class Span:
    """A phase: whose samples, and its seconds of CLOCK_MONOTONIC."""

    samples: Path
    phase: str
    began_s: float
    ended_s: float


class IdleLoop:
    """A process whose loop does nothing but note how late it is."""

    def __init__(self, samples: Path) -> None:
        self.samples = samples
        self._process = subprocess.Popen([sys.executable, str(HERE / "lag_server.py"), str(samples), "--idle"])

    def __enter__(self) -> IdleLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def judge(self, span: Span) -> Lag:
        """The span's percentiles beside this loop's."""
        (found, own), (beside, _) = lateness_ms(span.samples, span), lateness_ms(self.samples, span)
        return Lag(span.phase, len(found), at(found, 50), at(found, 99), found[-1], at(beside, 99), at(own, 99))


def fsyncs(node: NodeProcess) -> int:
    """How often the WAL was synced, by the server's own metric."""
    return int(node.metrics()["etcd_disk_wal_fsync_duration_seconds_count"])


def measure_fsyncs(directory: Path, ports: PortAllocator) -> dict[str, float]:
    """fdatasyncs per 1,000 puts at 1 and at 100 concurrent."""
    result = {}
    with ProcessCluster(directory, size=1, ports=ports) as cluster:
        cluster.start()
        node = cluster.nodes[0]
        for concurrency, total in ((1, 500), (100, 5_000)):
            before = fsyncs(node)
            command = [sys.executable, str(HERE / "generator.py"), node.endpoint, f"--total={total}"]
            subprocess.run([*command, f"--concurrency={concurrency}", "--value-size=256"], check=True, capture_output=True)
            result[f"fsyncs_per_1000_puts_at_{concurrency}"] = round((fsyncs(node) - before) * 1000 / total, 1)
    return result


def lateness_ms(path: Path, span: Span) -> tuple[list[float], list[float]]:
    """The samples of a file in a span, sorted: as they are, and without the wait for a CPU."""
    found, own = [], []
    for line in path.read_text().splitlines():
        at_s, late_ms, waiting_ms = map(float, line.split())
        if span.began_s <= at_s <= span.ended_s:
            found.append(late_ms)
            own.append(max(0.0, late_ms - waiting_ms))
    if len(found) < 100:
        raise RuntimeError(f"only {len(found)} samples of {span.phase}")
    return sorted(found), sorted(own)


def at(ordered: Sequence[float], percent: int) -> float:
    """A percentile of sorted samples."""
    return ordered[len(ordered) * percent // 100]


def put_all(endpoint: str, first: int, count: int, writers: int, until_s: float | None = None) -> int:
    """Put 1 MB values on unique keys from several threads, all of `count` or until a time; returns how many."""
    numbers = iter(range(first, first + count))
    lock = threading.Lock()
    done = 0
    failures: list[Exception] = []

    def work() -> None:
        nonlocal done
        calls = KvCalls(endpoint)
        try:
            while until_s is None or time.monotonic() < until_s:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                calls.put(b"big/%06d" % number, number.to_bytes(8, "big") * (MB // 8), timeout_s=60)
                with lock:
                    done += 1
        except Exception as failure:  # noqa: BLE001 - handed to the caller
            failures.append(failure)
        finally:
            calls.close()

    threads = [threading.Thread(target=work) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done


def watched(directory: Path, ports: PortAllocator, size: int) -> ProcessCluster:
    """A cluster whose members note how late their loops are, in `<name>.lag`."""
    cluster = ProcessCluster(directory, size=size, ports=ports, flags=["--quota-backend-bytes=8000000000", "--wal-retain-bytes=0"])
    for node in cluster.nodes:
        node.program = (str(HERE / "lag_server.py"), str(directory / f"{node.name}.lag"))
    return cluster


def during_puts(leader: NodeProcess, samples: Path, size: int, writers: Sequence[int], seconds: float) -> list[Span]:
    """Idle, then with 1 MB puts by so many writers at a time."""
    began_s = time.monotonic()
    time.sleep(seconds)  # the phase itself: nothing is asked of the cluster
    name = "one node" if size == 1 else "the leader of three"
    spans = [Span(samples, f"{name}: idle", began_s, time.monotonic())]
    first = 0
    for count in writers:
        began_s = time.monotonic()
        done = put_all(leader.endpoint, first, 1 << 20, writers=count, until_s=began_s + seconds)
        first += 1 << 20
        phase = f"{name}: 1 MB puts, {count} writer{'s' if count > 1 else ''}, {done / seconds:.0f}/s"
        spans.append(Span(samples, phase, began_s, time.monotonic()))
    return spans


def during_snapshot(directory: Path, cluster: ProcessCluster, leader: NodeProcess, snapshot_mb: int) -> list[Span]:
    """A member that was away gets a snapshot, beside light puts."""
    away = next(node for node in cluster.nodes if node is not leader)
    away.stop()
    written = put_all(leader.endpoint, 1 << 30, snapshot_mb, writers=4)
    began_s = time.monotonic()
    with AcknowledgedWriters([leader.endpoint], prefix=b"light/", writers=1):
        away.start(wait_ready=False)
        away.wait_ready(CATCH_UP_TIMEOUT_S)  # it is ready when it has applied its own entry, behind the snapshot
    ended_s = time.monotonic()
    if not away.log_events("applied snapshot"):
        raise RuntimeError("the member caught up without a snapshot")
    if cluster.leader().name != leader.name:
        raise RuntimeError("leadership moved during the run")
    phase = f"snapshot of {written} MB and more in {ended_s - began_s:.0f} s, light puts: the leader"
    return [
        Span(directory / f"{leader.name}.lag", phase, began_s, ended_s),
        Span(directory / f"{away.name}.lag", "the same: the member that installs it", began_s, ended_s),
    ]


def measure_lag(directory: Path, ports: PortAllocator, *, snapshot_mb: int, seconds: float, writers: Sequence[int]) -> list[Lag]:
    """All phases, on one node and on three."""
    directory.mkdir()
    found = []
    with IdleLoop(directory / "idle.lag") as idle:
        for size in (1, 3):
            home = directory / str(size)
            with watched(home, ports, size) as cluster:
                cluster.start()
                leader = cluster.leader()
                spans = during_puts(leader, home / f"{leader.name}.lag", size, writers, seconds)
                if size > 1 and snapshot_mb:
                    spans += during_snapshot(home, cluster, leader, snapshot_mb)
                time.sleep(2)  # the probes write their last samples
                found += [idle.judge(span) for span in spans]
    return found


def main() -> int:
    """Measure, print a Markdown table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot-mb", type=int, default=1000, help="0: without that phase")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--writers", default="1,8", help="of the 1 MB puts, one phase each")
    parser.add_argument("--json", type=Path, default=HERE / "out" / "durability.json")
    options = parser.parse_args()
    ports, writers = PortAllocator(), [int(each) for each in options.writers.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        shared = measure_fsyncs(Path(directory) / "fsyncs", ports)
        lags = measure_lag(Path(directory) / "lag", ports, snapshot_mb=options.snapshot_mb, seconds=options.seconds, writers=writers)
    for name, value in shared.items():
        print(f"{name}: {value}")
    columns = (
        "phase",
        "samples",
        "p50 ms",
        "p99 ms",
        "idle loop beside, p99 ms",
        "difference",
        "max ms",
        "p99 ms less waiting for a CPU",
    )
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for lag in lags:
        figures = (lag.p50_ms, lag.p99_ms, lag.beside_ms, lag.p99_ms - lag.beside_ms, lag.max_ms, lag.own_ms)
        print(f"| {lag.phase} | {lag.samples} | {' | '.join(f'{each:.2f}' for each in figures)} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**shared, "lag": [asdict(lag) for lag in lags]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
