"""`make bench-durability`: what durability costs, and that it leaves the event loop free.

1. fdatasyncs per 1,000 puts of 256 B at 100 concurrent on a single node: how many proposals share one.
2. The lateness of event loops (`bench/lag_server.py`, a probe every 5 ms): the leader's idle, during 1 MB puts by `--writers`, and while a
   snapshot of `--snapshot-mb` is made and streamed to a member that was away, beside a light load; and that of the member that receives
   and installs it, from the moment it listens until it serves. What counts is each p99 less that of the leader's idle loop in the same run.

    python bench/durability.py [--snapshot-mb 1000] [--seconds 20] [--writers 8] [--json bench/out/durability.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
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
    """Lateness of one phase in milliseconds."""

    phase: str
    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float


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


def lag_of(path: Path, phase: str, began_s: float, ended_s: float) -> Lag:
    """The percentiles of the samples in a span of CLOCK_MONOTONIC."""
    found = []
    for line in path.read_text().splitlines():
        at_s, late_ms = map(float, line.split())
        if began_s <= at_s <= ended_s:
            found.append(late_ms)
    found.sort()
    if len(found) < 100:
        raise RuntimeError(f"only {len(found)} samples of {phase}")
    return Lag(phase, len(found), found[len(found) // 2], found[len(found) * 99 // 100], found[-1])


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


def measure_lag(directory: Path, ports: PortAllocator, *, snapshot_mb: int, seconds: float, writers: int) -> list[Lag]:
    """The phases on a cluster of three; the last one on two members."""
    with ProcessCluster(directory, size=3, ports=ports, flags=["--quota-backend-bytes=8000000000"]) as cluster:
        for node in cluster.nodes:
            node.program = (str(HERE / "lag_server.py"), str(directory / f"{node.name}.lag"))
        cluster.start()
        leader = cluster.leader()
        samples = directory / f"{leader.name}.lag"
        spans: list[tuple[Path, str, float, float]] = []

        began_s = time.monotonic()
        time.sleep(seconds)  # the phase itself: nothing is asked of the cluster
        spans.append((samples, "idle", began_s, time.monotonic()))

        began_s = time.monotonic()
        put_all(leader.endpoint, 0, 1 << 20, writers=writers, until_s=began_s + seconds)
        spans.append((samples, f"1 MB puts, {writers} writers", began_s, time.monotonic()))

        away = next(node for node in cluster.nodes if node is not leader)
        away.stop()
        written = put_all(leader.endpoint, 1 << 20, snapshot_mb, writers=4)
        began_s = time.monotonic()
        with AcknowledgedWriters([leader.endpoint], prefix=b"light/", writers=1):
            away.start(wait_ready=False)
            away.wait_ready(CATCH_UP_TIMEOUT_S)  # it is ready when it has applied its own entry, behind the snapshot
        ended_s = time.monotonic()
        spans.append((samples, f"snapshot of {written} MB and more, light puts: the leader", began_s, ended_s))
        spans.append((directory / f"{away.name}.lag", "the same: the member that installs it", began_s, ended_s))
        if not away.log_events("applied snapshot"):
            raise RuntimeError("the member caught up without a snapshot")
        if cluster.leader().name != leader.name:
            raise RuntimeError("leadership moved during the run")
        time.sleep(2)  # the probe writes its last samples
        return [lag_of(*span) for span in spans]


def main() -> int:
    """Measure, print a Markdown table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot-mb", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--writers", type=int, default=8, help="of the 1 MB puts")
    parser.add_argument("--json", type=Path, default=HERE / "out" / "durability.json")
    options = parser.parse_args()
    ports = PortAllocator()
    with tempfile.TemporaryDirectory() as directory:
        shared = measure_fsyncs(Path(directory) / "fsyncs", ports)
        lags = measure_lag(
            Path(directory) / "lag", ports, snapshot_mb=options.snapshot_mb, seconds=options.seconds, writers=options.writers
        )
    for name, value in shared.items():
        print(f"{name}: {value}")
    print("\n| phase | samples | p50 ms | p99 ms | p99 less idle | max ms |\n|---|---|---|---|---|---|")
    for lag in lags:
        print(
            f"| {lag.phase} | {lag.samples} | {lag.p50_ms:.2f} | {lag.p99_ms:.2f} | {lag.p99_ms - lags[0].p99_ms:.2f} | {lag.max_ms:.1f} |"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"phase": lag.phase, "p50_ms": lag.p50_ms, "p99_ms": lag.p99_ms, "max_ms": lag.max_ms} for lag in lags]
    options.json.write_text(json.dumps({**shared, "lag": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
