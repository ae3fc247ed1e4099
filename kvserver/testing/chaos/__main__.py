"""Chaos on the command line (`make chaos`).

    python -m kvserver.testing.chaos [--kills 200] [--rate 250] [--seed N] [--members 3] [--json FILE]    run, judge, summarize
    python -m kvserver.testing.chaos check HISTORY [--json FILE]                                           judge a recorded run again

Exit code: 0 if every promise was kept, 1 if one was broken (or a process was left over), 2 for wrong arguments, an unreadable history or a
cluster that does not even start, 130 after SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from random import SystemRandom
from typing import Final

from kvserver.errors import KvError
from kvserver.testing.chaos.checker import check
from kvserver.testing.chaos.clients import Load
from kvserver.testing.chaos.files import load
from kvserver.testing.chaos.run import InterruptedRunError, Plan, leftovers, run
from kvserver.testing.chaos.summary import summarize
from kvserver.testing.processes import NodeStartError

_PROG: Final = "python -m kvserver.testing.chaos"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["check"]:
            return _check(arguments[1:])
        return _run(arguments)
    except InterruptedRunError as error:
        sys.stderr.write(f"chaos: {error}\n")
        return 130
    except (KvError, OSError, NodeStartError) as error:
        sys.stderr.write(f"chaos: {error}\n")
        return 2


def _run(arguments: list[str]) -> int:
    parser = _run_parser()
    options = parser.parse_args(arguments)
    seed = SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    directory = (options.directory / f"seed-{seed}").resolve()
    try:
        plan = Plan(
            directory=directory,
            seed=seed,
            kills=options.kills,
            members=options.members,
            load=Load(rate_per_s=options.rate, clients=options.clients, value_size_bytes=options.size),
        )
    except ValueError as error:
        parser.error(str(error))
    if options.kills < 1 or options.members < 1:
        parser.error("--kills and --members must be positive")
    if directory.exists():
        parser.error(f"{directory} exists; remove it, or choose another --seed or --directory")
    history = run(plan, _say)
    code = _judge(history, options.json)
    left = leftovers(directory)
    if left:
        _say(f"processes were left over: {', '.join(map(str, left))}")
        return 1
    if code == 0 and not options.keep_data:
        for member in directory.iterdir():
            if member != history:
                shutil.rmtree(member)
    return code


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG, description="SIGKILLs and stopped leaders under load, and a judgement of everything heard."
    )
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at least (default 200)")
    parser.add_argument("--rate", type=float, default=250.0, help="acknowledged writes per second to aim at (default 250)")
    parser.add_argument("--seed", type=int, help="of faults and requests (default: a new one, which is printed)")
    parser.add_argument("--members", type=int, default=3, help="members of the cluster (default 3)")
    parser.add_argument("--clients", type=int, default=24, help="concurrent clients (default 24)")
    parser.add_argument("--size", type=int, default=128, help="bytes per value (default 128)")
    parser.add_argument("--directory", type=Path, default=Path(".run/chaos"), help="for data and history (default .run/chaos)")
    parser.add_argument("--keep-data", action="store_true", help="keep the members' data after a run without violations, too")
    parser.add_argument("--json", type=Path, help="write summary and violations to this file")
    return parser


def _check(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{_PROG} check", description="Judge a recorded run again.")
    parser.add_argument("history", type=Path, help="the directory that a run has written")
    parser.add_argument("--json", type=Path, help="write summary and violations to this file")
    options = parser.parse_args(arguments)
    return _judge(options.history, options.json)


def _judge(directory: Path, json_file: Path | None) -> int:
    """Check a history, show the figures and the violations; returns the exit code."""
    began_s = time.monotonic()
    history = load(directory)
    findings = check(history)
    summary = summarize(history)
    took_s = time.monotonic() - began_s
    facts = ", ".join(f"{name} {value}" for name, value in history.facts.items())
    _say("\n".join(["", f"history: {directory} ({facts})", "", *summary.lines(), ""]))
    for line in findings.lines():
        _say(f"VIOLATION  {line}")
    _say(f"{findings.total} violations in {len(history.operations)} operations (judged in {took_s:.1f} s)")
    if json_file is not None:
        violations = [{"kind": each.kind.value, "revision": each.revision, "text": each.text} for each in findings.kept]
        counts = {kind.value: count for kind, count in findings.counts.items()}
        report = {"facts": dict(history.facts), "summary": summary.as_json(), "violation_counts": counts, "violations": violations}
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if findings.total else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
