"""Runs data-driven raft tests: `python -m tests.raft.datadriven [--rewrite] FILE...`.

Prints a diff for each failing stanza, and `N passed, N failed` (files) last. Exit code 1 if any failed. `--rewrite` writes what came out
into the files: for our own scenarios, after reading the diff.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.raft.datadriven.runner import difference, run_file
from tests.raft.datadriven.script import ScriptError, rewrite


def main(arguments: list[str]) -> int:
    """Run the files named; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.raft.datadriven", description="Run data-driven raft tests.")
    parser.add_argument("--rewrite", action="store_true", help="write the actual outputs into the files")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a data file, or a folder of them")
    options = parser.parse_args(arguments)
    files = [found for path in options.files for found in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    failed = 0
    for path in files:
        try:
            outcomes = run_file(path)
        except (ScriptError, OSError, UnicodeDecodeError) as error:
            print(f"{path}: {error}")
            failed += 1
            continue
        if options.rewrite:
            rewrite(path, outcomes)
            continue
        differences = [difference(path, outcome) for outcome in outcomes if not outcome.passed]
        print("".join(differences), end="")
        failed += bool(differences)
    print(f"{len(files) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
