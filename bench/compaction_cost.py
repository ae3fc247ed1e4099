"""What compacting the log window costs: its share of a member's CPU time, deciding included.

    python bench/compaction_cost.py [--members 1,3] [--small 20000] [--large 1000] [--json bench/out/compaction_cost.json]

Each load is one `kvctl bench put` with 50 clients: `--small` puts of 256 B, `--large` puts of 1 MB. With three members each is measured,
and the line shown is that of the largest share. Every call of the driver's compaction is timed, by CLOCK_THREAD_CPUTIME_ID: the cheap look
whether anything is worth dropping, the rule, and the dropping itself with what it frees. What reading the clock costs is measured beside
each call, and not counted.

    python bench/compaction_cost.py --serve <kvserver flags>        a member that writes its figures to ./compaction_cost, twice a second
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from bench.members import Cluster, Deadline, Member, Program
from kvserver.testing.ports import PortAllocator

FIGURES: Final = Path("compaction_cost")
WRITE_EVERY_S: Final = 0.5
CLIENTS: Final = 50
TIMEOUT_S: Final = 900.0
LOADS: Final = {"small": 256, "large": 1_000_000}
"""Bytes of a value."""


class Figures(NamedTuple):
    """Of one member, since it began: CPU seconds of the process and of compaction, how often that was asked and how often it dropped."""

    process_s: float
    compaction_s: float
    turns: int
    compactions: int

    def since(self, before: Figures) -> Figures:
        """What came on top of `before`."""
        return Figures(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The outcome of one load at the member where compaction took the largest share."""

    members: int
    load: str
    member: str
    process_s: float
    compaction_s: float
    turns: int
    compactions: int

    @property
    def share(self) -> float:
        """Of the process's CPU time."""
        return self.compaction_s / self.process_s


# --- the member -------------------------------------------------------------------------------------------------------------------------


def serve(flags: list[str]) -> int:
    """Run a server whose compaction is timed."""
    import kvserver.server
    from kvserver.__main__ import run
    from kvserver.node.driver import Driver
    from kvserver.node.log_window import LogWindow

    spent_ns, turns, compactions = 0, 0, 0
    compact, drop, plain = Driver._compact, LogWindow.compact, kvserver.server.serve

    def timed(self: Driver) -> None:
        nonlocal spent_ns, turns
        before_ns = time.thread_time_ns()
        began_ns = time.thread_time_ns()
        try:
            compact(self)
        finally:
            spent_ns += (time.thread_time_ns() - began_ns) - (began_ns - before_ns)
            turns += 1

    def counted(self: LogWindow, index: Any) -> int:
        nonlocal compactions
        compactions += 1
        return drop(self, index)

    async def write(file: TextIO) -> None:
        while True:
            file.write(json.dumps(Figures(time.process_time(), spent_ns / 1e9, turns, compactions)) + "\n")
            file.flush()
            await asyncio.sleep(WRITE_EVERY_S)

    async def serve_and_write(*arguments: Any, **options: Any) -> int:
        task = asyncio.get_running_loop().create_task(write(file), name="figures")
        try:
            return await plain(*arguments, **options)
        finally:
            task.cancel()

    Driver._compact = timed  # type: ignore[method-assign]
    LogWindow.compact = counted  # type: ignore[method-assign]
    kvserver.server.serve = serve_and_write
    with FIGURES.open("a") as file:
        return run(flags)


# --- the measurement --------------------------------------------------------------------------------------------------------------------


def newest(member: Member) -> Figures:
    """What the member wrote last, at least one writing after now."""
    path = member.directory / FIGURES
    count = path.read_text().count("\n")
    until_s = time.monotonic() + 30.0
    while time.monotonic() < until_s:
        lines = path.read_text().split("\n")[:-1]
        if len(lines) > count + 1:
            return Figures(*json.loads(lines[-1]))
        time.sleep(WRITE_EVERY_S / 2)
    raise RuntimeError(f"{member.name} writes no figures any more")


def put(cluster: Cluster, total: int, size_bytes: int) -> None:
    """One `kvctl bench put`; a busy machine may answer some too late, which is reported. Raises subprocess.CalledProcessError."""
    endpoints = ",".join(member.endpoint for member in cluster.members)
    command = [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={endpoints}", "bench", "put"]
    arguments = [f"--total={total}", f"--val-size={size_bytes}", f"--clients={CLIENTS}"]
    done = subprocess.run(
        [*command, *arguments], check=False, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode and "requests failed" not in done.stderr:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    print(done.stderr, end="", file=sys.stderr)


def measure(members: int, counts: dict[str, int], directory: Path) -> list[Cost]:
    """All loads, one after the other, on one cluster."""
    program = Program(
        name="kvserver",
        command=(sys.executable, str(Path(__file__).resolve()), "--serve"),
        version_command=(sys.executable, "-m", "kvserver", "--version"),
        snapshot_mark=b'"msg":"applied snapshot"',
    )
    found = []
    with Cluster(program, directory, size=members, ports=PortAllocator()) as cluster:
        cluster.start(Deadline(60.0))
        for load, total in counts.items():
            before = {member.name: newest(member) for member in cluster.members}
            put(cluster, total, LOADS[load])
            costs = [
                Cost(members=members, load=load, member=member.name, **newest(member).since(before[member.name])._asdict())
                for member in cluster.members
            ]
            found.append(max(costs, key=lambda cost: cost.share))
    return found


def show(costs: Sequence[Cost]) -> None:
    """A table for docs/performance.md."""
    print("| members | load | CPU s | of it compaction s | share | turns | us per turn | compactions |\n|---|---|---|---|---|---|---|---|")
    for cost in costs:
        per_turn_us = cost.compaction_s / max(1, cost.turns) * 1e6
        seconds = f"{cost.process_s:.1f} | {cost.compaction_s:.3f} | {cost.share:.2%}"
        print(f"| {cost.members} | {cost.load} | {seconds} | {cost.turns} | {per_turn_us:.1f} | {cost.compactions} |")


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2:])
    parser = argparse.ArgumentParser(description="The share of a member's CPU time that compacting the log window takes.")
    parser.add_argument("--members", default="1,3", help="sizes of the clusters, default 1,3")
    parser.add_argument("--small", type=int, default=20_000, help="puts of 256 B, default 20000")
    parser.add_argument("--large", type=int, default=1_000, help="puts of 1 MB, default 1000")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    costs: list[Cost] = []
    for members in map(int, options.members.split(",")):
        with tempfile.TemporaryDirectory(prefix="compaction-cost-") as directory:
            costs += measure(members, {"small": options.small, "large": options.large}, Path(directory))
    show(costs)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
