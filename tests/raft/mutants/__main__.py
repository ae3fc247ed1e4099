"""Plants known raft mistakes into copies of the core, one at a time, and shows which tests notice.

    python -m tests.raft.mutants                         all mistakes, all rings
    python -m tests.raft.mutants --only NAME             one of them (may be repeated)
    python -m tests.raft.mutants --rings data,suite      without the simulator
    python -m tests.raft.mutants --write FILE            the report as a Markdown document, too

Exit code: 0 if every mistake was caught, 1 if one survived, 2 if a ring can't be trusted (it fails on the unchanged core) or a mistake does
not fit the source.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.raft.mutants.catalogue import MUTANTS
from tests.raft.mutants.mutant import Mutant, PlantError
from tests.raft.mutants.report import Cost, Row, document, summary, table
from tests.raft.mutants.rings import RINGS, Outcome, Ring, RingError, prove
from tests.raft.mutants.sandbox import Sandbox


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; the process's exit code."""
    options = _parse(arguments)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raft-mutants-") as folder:
        try:
            rows, absent = _run(Path(folder), options.mutants, options.rings, options.jobs)
        except (PlantError, RingError) as error:
            print(f"mutants: {error}", file=sys.stderr)
            return 2
    rings = [ring for ring in options.rings if ring.name not in absent]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = Cost(took_s=time.monotonic() - began_s, cpu_s=used.ru_utime + used.ru_stime, jobs=options.jobs)
    print(table(rows, rings))
    print(summary(rows, rings, absent, cost))
    if options.write is not None:
        options.write.write_text(document(rows, rings, absent, cost), encoding="utf-8")
    return 0 if all(row.caught for row in rows) else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.raft.mutants", description="Plant known raft mistakes; show which tests notice.")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this mistake only; may be repeated")
    parser.add_argument(
        "--rings", default=",".join(ring.name for ring in RINGS), help="which rings, comma separated (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mistakes tried at a time (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report as a Markdown document")
    parser.add_argument("--list", action="store_true", help="name the mistakes and stop")
    options = parser.parse_args(arguments)
    if options.list:
        parser.exit(0, "".join(f"{mutant.name:40} {mutant.mistake}\n" for mutant in MUTANTS))
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mistake: {', '.join(sorted(unknown))} (see --list)")
    chosen = options.rings.split(",")
    if not set(chosen) <= {ring.name for ring in RINGS}:
        parser.error(f"--rings takes {', '.join(ring.name for ring in RINGS)}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    options.mutants = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    options.rings = [ring for ring in RINGS if ring.name in chosen]
    return options


def _run(folder: Path, mutants: Sequence[Mutant], rings: Sequence[Ring], jobs: int) -> tuple[list[Row], dict[str, str]]:
    """One row per mistake, in the order given, and why a ring was left out."""
    unchanged = Sandbox.create(folder / "unchanged")
    absent = {ring.name: reason for ring in rings if (reason := ring.why_absent(unchanged))}
    for name, reason in absent.items():
        _say(f"ring {name} is left out: {reason}")
    present = [ring for ring in rings if ring.name not in absent]
    if not present:
        raise RingError("no ring is left to run")
    for ring in present:
        prove(ring, unchanged)
        _say(f"ring {ring.name} passes on the unchanged core")
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(jobs) as executor:
        try:
            futures = [executor.submit(_try, mutant, present, unchanged, folder / mutant.name) for mutant in mutants]
            for number, future in enumerate(as_completed(futures), start=1):
                row = future.result()
                rows[row.mutant.name] = row
                _say(f"[{number}/{len(mutants)}] {row.mutant.name}: {row.describe(present)} ({row.took_s:.0f} s)")
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return [rows[mutant.name] for mutant in mutants], absent


def _try(mutant: Mutant, rings: Sequence[Ring], unchanged: Sandbox, path: Path) -> Row:
    began_s = time.monotonic()
    sandbox = unchanged.with_mutant(mutant, path)
    outcomes: dict[str, Outcome] = {ring.name: ring.run(sandbox) for ring in rings}
    return Row(mutant=mutant, outcomes=outcomes, took_s=time.monotonic() - began_s)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
