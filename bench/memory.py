"""`make bench-memory`: the memory of kvserver beside that of etcd, under the same load, in one run.

    python bench/memory.py                                         # the whole matrix: about an hour, and 15 GB of disk at a time
    python bench/memory.py --scale 0.05 --only one-unique          # a quick look
    python bench/memory.py --systems kvserver --only three-killed --clients 10

Every member of both systems is sampled each 100 ms (RSS, anonymous, file); scenarios and phases: bench/scenarios.py; the load:
bench/workloads.py. The systems take turns, scenario by scenario. What is done so far is written after every run (bench/out/memory:
memory.md, memory.json and an SVG per scenario). A system that is not installed is left out, and the output says so.

Exit codes: 0 all runs ended by themselves; 1 one was cut by its time or failed; 2 a wrong option.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.members import SYSTEMS, Deadline, version
from bench.report import MEMORY_HEADER, Settings, markdown, memory_rows, table, write
from bench.sampling import INTERVAL_S
from bench.scenarios import SCENARIOS, SLOW_BYTES_PER_S, Job, RunResult, run
from kvserver.testing.ports import PortAllocator

HERE = Path(__file__).parent
COPIES_PER_NODE = 3  # the log, the store, and a snapshot on its way


def plan(options: argparse.Namespace, systems: Sequence[str]) -> list[Job]:
    """The runs, in order: the systems take turns within a scenario, so that a noisy hour hits both."""
    chosen = [each for each in SCENARIOS if not options.only or each.name in options.only]
    return [
        Job(
            scenario=scenario,
            clients=clients,
            system=SYSTEMS[name],
            scale=options.scale,
            slow_bytes_per_s=options.slow_bytes_per_s,
        )
        for scenario in chosen
        for clients in (options.clients or scenario.clients)
        for name in systems
    ]


def needed_bytes(job: Job) -> int:
    """Disk space that a run takes, roughly and rather too much."""
    return job.workload.puts * job.workload.value_bytes * job.scenario.nodes * COPIES_PER_NODE


def carry_out(job: Job, base: Path | None, seconds: float, ports: PortAllocator) -> RunResult:
    """One run in a directory of its own; what went wrong stands in the result's note."""
    with tempfile.TemporaryDirectory(prefix="kvserver-bench-", dir=base) as directory:
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < needed_bytes(job):
            return RunResult(job=job, note=f"not run: needs {needed_bytes(job) >> 30} GiB of disk, {free_bytes >> 30} are free")
        return run(job, Path(directory), ports, Deadline(seconds))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names(names), default=[], help=f"comma-separated scenarios of: {', '.join(names)}")
    parser.add_argument("--systems", type=_names(list(SYSTEMS)), default=list(SYSTEMS), help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--clients", type=_counts, default=[], help="comma-separated numbers of clients, instead of each scenario's own")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the puts, for a quick look")
    parser.add_argument("--seconds", type=float, default=300.0, help="bound on one run")
    parser.add_argument("--slow-bytes-per-s", type=float, default=SLOW_BYTES_PER_S, help="rate of the slow follower's connections")
    parser.add_argument("--directory", type=Path, default=None, help="where the members' data goes (default: the system's temporary one)")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "memory")
    return parser.parse_args(arguments)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of a comma-separated choice."""

    def choice(text: str) -> list[str]:
        chosen = [each.strip() for each in text.split(",") if each.strip()]
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return choice


def _counts(text: str) -> list[int]:
    try:
        counts = [int(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("clients are 1 or more")
    return counts


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # by way of every finally, so that no member is left behind


def main() -> int:
    """Carry out the plan; print each row when it is there."""
    options = parse()
    signal.signal(signal.SIGTERM, _end)
    versions = {name: shown for name in options.systems if (shown := version(SYSTEMS[name]))}
    for name in options.systems:
        if name not in versions:
            print(f"{name} is not installed: left out", file=sys.stderr)
    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    settings = Settings.here(began=began, versions=versions, scale=options.scale)
    ports = PortAllocator()
    results: list[RunResult] = []
    jobs = plan(options, list(versions))
    print(f"{len(jobs)} runs, sampled every {INTERVAL_S * 1000:.0f} ms, at most {options.seconds:.0f} s each\n")
    print(table(MEMORY_HEADER, []), end="", flush=True)
    for job in jobs:
        results.append(carry_out(job, options.directory, options.seconds, ports))
        print(table(memory_rows(results[-1:])[0], []).splitlines()[0], flush=True)
        write(options.out, settings, results)
    print(f"\n{markdown(settings, results)}\nwritten to {options.out}")
    return 0 if all(result.is_complete for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
