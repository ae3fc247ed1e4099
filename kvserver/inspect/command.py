"""The command lines of `kvserver wal` and `kvserver check`.

Exit codes: 0 sound, 1 damaged, 2 nothing could be said (usage, no such directory, not readable, in use, a restore that was not finished).
An interrupt (130) and a reader that went away (141) are `kvserver.streams`'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from kvserver.inspect.check_report import report_check
from kvserver.inspect.output import Output, Progress
from kvserver.inspect.place import UnusablePlaceError, find_place
from kvserver.inspect.wal_report import Selection, report_wal

COMMANDS: Final = ("wal", "check")
USAGE_EXIT: Final = 2


class _UsageError(Exception):
    """The command line can't be read."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"kvserver {self.prog.split()[-1]}: {message}\n{self.format_usage().rstrip()}")


def main(arguments: Sequence[str]) -> int:
    """Run `kvserver wal ...` or `kvserver check ...`; returns the exit code. Raises KeyboardInterrupt, BrokenPipeError."""
    command, rest = arguments[0], arguments[1:]
    progress = Progress(sys.stderr)
    parser = _wal_parser() if command == "wal" else _check_parser()
    try:
        parsed = parser.parse_args(rest)
        run: Callable[[argparse.Namespace, Progress], int] = _run_wal if command == "wal" else _run_check
        code = run(parsed, progress)
        sys.stdout.flush()
        return code
    except _UsageError as error:
        sys.stderr.write(f"{error}\n")
    except UnusablePlaceError as error:
        sys.stderr.write(f"kvserver {command}: {error}\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"kvserver {command}: {error.filename or parsed.directory}: {error.strerror or error}\n")
    except SystemExit as end:  # argparse's --help
        return end.code if isinstance(end.code, int) else USAGE_EXIT
    finally:
        progress.clear()
    return USAGE_EXIT


def _run_wal(parsed: argparse.Namespace, progress: Progress) -> int:
    del progress
    selection = _selection(parsed)
    return report_wal(find_place(parsed.directory, parsed.wal_dir), selection, Output(sys.stdout, as_json=parsed.json))


def _selection(parsed: argparse.Namespace) -> Selection:
    """Which records were asked for. Raises _UsageError."""
    lowest, highest = parsed.lowest, parsed.highest
    for name, bound in (("--from", lowest), ("--to", highest)):
        if bound is None:
            continue
        if not parsed.records:
            raise _UsageError(f"kvserver wal: {name} chooses among the records that --records shows: give --records, too")
        if bound < 0:
            raise _UsageError(f"kvserver wal: {name} {bound}: an index is not negative")
    if lowest is not None and highest is not None and lowest > highest:
        raise _UsageError(f"kvserver wal: --from {lowest} is above --to {highest}")
    return Selection(records=parsed.records, lowest=lowest, highest=highest)


def _run_check(parsed: argparse.Namespace, progress: Progress) -> int:
    return report_check(find_place(parsed.directory, parsed.wal_dir), Output(sys.stdout, as_json=parsed.json), progress)


def _wal_parser() -> argparse.ArgumentParser:
    parser = _parser("wal", "Show the write-ahead log of a data directory, and what a server would make of it. Changes nothing.")
    parser.add_argument("--records", action="store_true", help="show every record, and not only segments, damage and the verdict")
    parser.add_argument("--from", dest="lowest", type=int, metavar="INDEX", help="with --records: only those from this index on")
    parser.add_argument("--to", dest="highest", type=int, metavar="INDEX", help="with --records: only those up to this index")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    return _parser("check", "Check store, log and snapshot files of a data directory that no server uses. Changes nothing.")


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"kvserver {name}",
        description=description,
        epilog="Exit code: 0 sound, 1 damaged, 2 nothing could be said.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DATA-DIR", type=Path, help="the member's --data-dir")
    parser.add_argument("--wal-dir", type=Path, help="the member's --wal-dir, if it has one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser
