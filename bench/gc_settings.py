"""What the garbage collector costs under some settings: CPU, the longest pause of the event loop, and memory.

    python bench/gc_settings.py [--rounds 3] [--small 10000] [--large 300] [--json bench/out/gc_settings.json]

One member per run, the settings in turn; first `--small` puts of 256 B by 50 clients, then `--large` puts of 1 MB by 8. Every collection is
timed by gc.callbacks: its CPU time (CLOCK_THREAD_CPUTIME_ID), which the loop stands still for if it is the loop's thread that collects.
Medians over the rounds. What the table is for: docs/performance.md; what is chosen: GC_THRESHOLDS in kvserver/__main__.py.

    python bench/gc_settings.py --serve SETTING <kvserver flags>        a member that writes its figures to ./gc, twice a second
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.members import Cluster, Deadline, Program
from bench.report import megabytes, table
from bench.sampling import Sampler, peak, quantile
from bench.workloads import LoadProcess, Workload
from kvserver.__main__ import GC_THRESHOLDS
from kvserver.testing.ports import PortAllocator

FIGURES: Final = Path("gc")
WRITE_EVERY_S: Final = 0.5
RUN_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a member does with its collector; no thresholds: it never runs by itself."""

    thresholds: tuple[int, int, int] | None
    is_frozen: bool = True


SETTINGS: Final = {
    "python": Setting(thresholds=(700, 10, 10), is_frozen=False),
    "frozen": Setting(thresholds=(700, 10, 10)),
    "chosen": Setting(thresholds=GC_THRESHOLDS),
    "rare": Setting(thresholds=(100_000, 50, 100)),
    "off": Setting(thresholds=None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run of one setting."""

    setting: str
    small_puts_per_s: float
    small_p99_ms: float
    large_puts_per_s: float
    cpu_share: float
    longest_ms: float
    collections: int
    full_collections: int
    peak_anonymous_bytes: int


def serve(name: str, flags: list[str]) -> int:
    """Run a server under a setting, with its collections timed."""
    import kvserver.__main__ as program
    import kvserver.server

    setting, plain = SETTINGS[name], kvserver.server.serve
    began_s, spent_s, longest_s, counts = 0.0, 0.0, 0.0, [0, 0, 0]

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began_s, spent_s, longest_s
        if phase == "start":
            began_s = time.thread_time()
            return
        took_s = time.thread_time() - began_s
        spent_s += took_s
        longest_s = max(longest_s, took_s)
        counts[info["generation"]] += 1

    async def write() -> None:
        while True:
            figures = {"process_s": time.process_time(), "gc_s": spent_s, "longest_s": longest_s, "counts": counts}
            FIGURES.with_suffix(".new").write_text(json.dumps(figures))
            FIGURES.with_suffix(".new").rename(FIGURES)
            await asyncio.sleep(WRITE_EVERY_S)

    async def serve_timed(*arguments: Any, **options: Any) -> int:
        if setting.thresholds is None:
            gc.disable()
        if not setting.is_frozen:
            gc.unfreeze()
        gc.callbacks.append(note)
        task = asyncio.get_running_loop().create_task(write(), name="figures")
        try:
            return await plain(*arguments, **options)
        finally:
            task.cancel()

    program.GC_THRESHOLDS = setting.thresholds or GC_THRESHOLDS
    kvserver.server.serve = serve_timed
    return program.run(flags)


def measure(name: str, loads: Sequence[Workload], ports: PortAllocator) -> Cost:
    """One member, its loads, and what its collector took of them."""
    system = Program(name=name, command=(sys.executable, __file__, "--serve", name), version_command=(), snapshot_mark=b"-")
    deadline = Deadline(RUN_S)
    with (
        tempfile.TemporaryDirectory(prefix="kvserver-bench-") as directory,
        Cluster(system, Path(directory), size=1, ports=ports) as cluster,
    ):
        cluster.start(deadline)
        member, done = cluster.members[0], []
        before = read_figures(member.directory, deadline)
        with Sampler({"m1": lambda: member.pid}) as sampler:
            for number, load in enumerate(loads):
                running = LoadProcess(member.endpoint, load, prefix=f"bench/{number}", puts=load.puts, seconds=deadline.left_s())
                try:
                    done.append(running.result())
                finally:
                    running.kill()
        after = read_figures(member.directory, deadline, since_s=time.time())
    rates = [len(each.done_s) / (each.ended_s - each.began_s) for each in done]
    return Cost(
        setting=name,
        small_puts_per_s=rates[0],
        small_p99_ms=quantile(done[0].latencies_s, 0.99) * 1e3,
        large_puts_per_s=rates[1],
        cpu_share=(after["gc_s"] - before["gc_s"]) / (after["process_s"] - before["process_s"]),
        longest_ms=after["longest_s"] * 1e3,
        collections=sum(after["counts"]) - sum(before["counts"]),
        full_collections=after["counts"][2] - before["counts"][2],
        peak_anonymous_bytes=peak(sampler.series["m1"]).anonymous_bytes,
    )


def read_figures(directory: Path, deadline: Deadline, since_s: float = 0.0) -> dict[str, Any]:
    """The first figures that the member writes after `since_s` (seconds since 1970)."""
    path = directory / FIGURES
    while not path.exists() or path.stat().st_mtime <= since_s:
        deadline.check("the member's figures")
        time.sleep(0.05)
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def row(costs: Sequence[Cost]) -> list[str]:
    """The medians of one setting's rounds."""

    def median(name: str) -> float:
        return statistics.median(getattr(each, name) for each in costs)

    thresholds = SETTINGS[costs[0].setting].thresholds
    return [
        costs[0].setting,
        "-" if thresholds is None else ", ".join(f"{each:,}" for each in thresholds),
        "yes" if SETTINGS[costs[0].setting].is_frozen else "no",
        f"{100 * median('cpu_share'):.2f}%",
        f"{median('longest_ms'):.1f}",
        f"{median('collections'):.0f} ({median('full_collections'):.0f})",
        megabytes(median("peak_anonymous_bytes")),
        f"{median('small_puts_per_s'):,.0f}",
        f"{median('small_p99_ms'):.0f}",
        f"{median('large_puts_per_s'):,.0f}",
    ]


HEADER: Final = (
    *("setting", "thresholds", "frozen", "share of CPU", "longest ms", "collections (full)", "peak anon MB"),
    *("256 B puts/s", "p99 ms", "1 MB puts/s"),
)


def main() -> int:
    """Measure every setting in turn, or serve."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=300)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "out" / "gc_settings.json")
    options = parser.parse_args()
    loads = [Workload(puts=options.small, value_bytes=256, clients=50), Workload(puts=options.large, value_bytes=1_000_000, clients=8)]
    ports, costs = PortAllocator(), {name: list[Cost]() for name in SETTINGS}
    for number in range(options.rounds):
        for name in SETTINGS:
            costs[name].append(measure(name, loads, ports))
            print(f"round {number + 1}: {row(costs[name][-1:])}", file=sys.stderr, flush=True)
    print(table(HEADER, [row(each) for each in costs.values()]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([asdict(each) for all_ in costs.values() for each in all_], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
