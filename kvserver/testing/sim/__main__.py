"""The simulator on the command line.

    python -m kvserver.testing.sim --seed 7              replay one seed with its trace
    python -m kvserver.testing.sim --seeds 0..1999       explore many, on two processes; failing ones are named with their replay

Exit code: 0 if every promise was kept, 1 if one was broken (the text says which, and how to replay it), 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvserver.testing.sim.world import Outcome, simulate

_CHUNK_SEEDS: Final = 4


@dataclass(frozen=True, slots=True)
class _Summary:
    """What a worker process sends back."""

    seed: int
    violation: str
    events: int
    counts: Counter[str]


class _CoreLines:
    """Shows the core's own lines between those of the simulator; they are not part of the trace's hash."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def debug(self, message: str) -> None:
        """Show it."""
        self._show(f"            raft: {message}")

    info = warning = error = debug


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kvserver.testing.sim", description="Seeded simulation of whole clusters.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="replay this seed with a readable trace")
    which.add_argument("--seeds", type=_seed_range, metavar="A..B", help="explore the seeds from A through B")
    parser.add_argument("--steps", type=int, default=2000, help="events before healing (default 2000)")
    parser.add_argument("--nodes", type=int, default=5, help="members at the start (default 5)")
    parser.add_argument("--jobs", type=int, default=2, help="processes for --seeds (default 2)")
    parser.add_argument("--core", action="store_true", help="with --seed: show raft's own log lines, too")
    parser.add_argument("--quiet", action="store_true", help="with --seed: only the result")
    options = parser.parse_args(arguments)
    if options.steps < 0 or options.nodes < 1 or options.jobs < 1:
        parser.error("--steps must be at least 0, --nodes and --jobs at least 1")
    if options.seed is not None:
        return _replay(options.seed, options.steps, options.nodes, show=not options.quiet, core=options.core)
    return _explore(options.seeds, options.steps, options.nodes, options.jobs)


def _seed_range(text: str) -> range:
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seeds like 0..199")
    return range(int(found[1]), int(found[2]) + 1)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _replay(seed: int, steps: int, nodes: int, *, show: bool, core: bool) -> int:
    outcome = simulate(seed, steps=steps, nodes=nodes, show=_say if show else None, sink=_CoreLines(_say) if core else None)
    if outcome.error is not None and show:
        _say("".join(traceback.format_exception(outcome.error)))
    _say(f"{outcome.events} events, {outcome.virtual_s:.0f} virtual seconds, trace {outcome.trace_hash}")
    _say(_describe_counts(outcome.counts))
    _say(f"seed {seed}: {outcome.violation or 'all promises kept'}")
    return 1 if outcome.violation else 0


def _explore(seeds: range, steps: int, nodes: int, jobs: int) -> int:
    began_s = time.monotonic()
    failed, events, done = 0, 0, 0
    counts: Counter[str] = Counter()
    with multiprocessing.Pool(jobs) as pool:
        for summary in pool.imap_unordered(partial(_summarize, steps=steps, nodes=nodes), seeds, chunksize=_CHUNK_SEEDS):
            done += 1
            events += summary.events
            counts.update(summary.counts)
            if summary.violation:
                failed += 1
                _say(f"seed {summary.seed}: {summary.violation}")
                _say(f"  replay: python -m kvserver.testing.sim --seed {summary.seed} --steps {steps} --nodes {nodes}")
    took_s = time.monotonic() - began_s
    _say(_describe_counts(counts))
    rate = done * 60 / took_s
    _say(f"{done} seeds, {failed} failed, {events} events in {took_s:.1f} s ({rate:.0f} seeds a minute, {jobs} processes)")
    return 1 if failed else 0


def _summarize(seed: int, *, steps: int, nodes: int) -> _Summary:
    outcome: Outcome = simulate(seed, steps=steps, nodes=nodes)
    return _Summary(seed, outcome.violation, outcome.events, outcome.counts)


def _describe_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
