"""`make bench-tuning`: how catch-up time, p99 of writes and memory depend on the window, one factor at a time around the defaults.

    python bench/tuning.py                                     # the whole study: 45 minutes at most, 20 GB of free disk
    python bench/tuning.py --resume                            # what an earlier study did not come to, or cut
    python bench/tuning.py --only way,latency --scale 0.1      # a quick look: a tenth of store, lag, caps, rates
    python bench/tuning.py --plan                              # the runs and the estimate, nothing else

The points: bench/tuning_plan.py; one run: bench/tuning_run.py; how to read the figures: docs/tuning.md. What is done so far is written
after every run (bench/out/tuning: tuning.md, tuning.json, two SVGs per factor). A run that would not end within `--total-seconds` by the
estimate is not begun.

Exit codes: 0 all runs ended by themselves; 1 one was cut or failed, or was not begun; 2 a wrong option.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.members import KVSERVER, version
from bench.report import Settings, table
from bench.tuning_plan import FACTORS, Point, estimate_s, plan
from bench.tuning_report import HEADER, markdown, read, rows, write
from bench.tuning_run import Outcome, carry_out
from kvserver.testing.ports import PortAllocator

HERE = Path(__file__).parent


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_factors, default=[], help=f"comma-separated factors of: {', '.join(FACTORS)}")
    parser.add_argument("--match", action="append", default=[], metavar="TEXT", help="only runs whose name contains it (may be repeated)")
    parser.add_argument("--scale", type=_positive, default=1.0, help="share of store, lag, caps and rates, for a quick look")
    parser.add_argument("--seconds", type=_positive, default=300.0, help="bound on one run")
    parser.add_argument("--total-seconds", type=_positive, default=2700.0, help="bound on the study")
    parser.add_argument("--resume", action="store_true", help="keep the complete runs of the JSON in --out, and do the others")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    parser.add_argument("--directory", type=Path, default=None, help="where the members' data goes (default: the system's temporary one)")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "tuning")
    return parser.parse_args(arguments)


def _factors(text: str) -> list[str]:
    chosen = [each.strip() for each in text.split(",") if each.strip()]
    if unknown := sorted(set(chosen) - set(FACTORS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(FACTORS)}")
    return chosen


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("it has to be above 0")
    return value


def left_over(points: Sequence[Point], outcomes: Sequence[Outcome]) -> list[Point]:
    """The points that have no complete outcome yet."""
    done = [each.point for each in outcomes if each.is_complete]
    return [point for point in points if point not in done]


def shown_plan(points: Sequence[Point]) -> str:
    """The plan as text, with what it is thought to take."""
    lines = [f"{number:3}  {estimate_s(point):4.0f} s  {point.name}" for number, point in enumerate(points, 1)]
    return "\n".join([*lines, f"{len(points)} runs, about {sum(map(estimate_s, points)) / 60:.0f} minutes on a quiet machine"])


class Study:
    """Runs points one after the other within a time, and writes after each. `outcomes` are those before it and its own."""

    def __init__(self, options: argparse.Namespace, settings: Settings, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)
        self._options = options
        self._settings = settings
        self._ends_s = time.monotonic() + options.total_seconds

    def carry_out(
        self, points: Sequence[Point], run: Callable[[Point, Path | None, float, PortAllocator], Outcome] = carry_out
    ) -> list[Point]:
        """Run what time allows; returns the points that were not begun."""
        ports = PortAllocator()
        estimated_s, took_s = 0.0, 0.0
        for number, point in enumerate(points):
            pace = took_s / estimated_s if estimated_s else 1.0
            if time.monotonic() + pace * estimate_s(point) > self._ends_s:
                return list(points[number:])
            rest_s = pace * sum(map(estimate_s, points[number:]))
            print(f"-- {number + 1}/{len(points)} {point.name}; about {rest_s / 60:.0f} minutes to go", file=sys.stderr, flush=True)
            outcome = run(point, self._options.directory, self._options.seconds, ports)
            estimated_s, took_s = estimated_s + estimate_s(point), took_s + outcome.took_s
            self._add(outcome)
        return []

    def _add(self, outcome: Outcome) -> None:
        self.outcomes = [each for each in self.outcomes if each.point != outcome.point] + [outcome]
        print(table(rows([outcome])[0], []).splitlines()[0], flush=True)
        write(self._options.out, self._settings, in_plan_order(self.outcomes))


def in_plan_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """As the plan has them, whatever was resumed when."""
    order = {(each.factor, each.label, each.repeat): number for number, each in enumerate(plan())}
    return sorted(outcomes, key=lambda each: order.get((each.point.factor, each.point.label, each.point.repeat), len(order)))


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # by way of every finally, so that no member is left behind


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the plan; print each row when it is there, and the section at the end."""
    options = parse(arguments)
    points = plan(options.only, options.scale)
    earlier: list[Outcome] = []
    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    settings = Settings.here(began=began, versions={"kvserver": version(KVSERVER) or ""}, scale=options.scale)
    if options.resume:
        try:
            found = read(options.out)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        if found is not None:
            settings, earlier = found
            if settings.scale != options.scale:
                print(f"the study in {options.out} has scale {settings.scale:g}, not {options.scale:g}", file=sys.stderr)
                return 2
    points = [each for each in left_over(points, earlier) if not options.match or any(text in each.name for text in options.match)]
    print(shown_plan(points), flush=True)
    if options.plan:
        return 0
    signal.signal(signal.SIGTERM, _end)
    print("\n" + table(HEADER, []), end="", flush=True)
    study = Study(options, settings, earlier)
    not_begun = study.carry_out(points)
    print(f"\n{markdown(settings, in_plan_order(study.outcomes))}\nwritten to {options.out}")
    if not_begun:
        print(f"no time for {len(not_begun)} runs; --resume does them:\n{shown_plan(not_begun)}", file=sys.stderr)
    return 0 if not not_begun and all(each.is_complete for each in study.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
