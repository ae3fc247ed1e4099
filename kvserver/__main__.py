"""`kvserver`: reads the command line and the environment, starts one member, and turns every expected error into one line and an exit code.

Exit codes, as etcd's: 0 after an orderly stop, `--help` and `--version`; 1 for a configuration or a directory that can't be used and for a
failure at run time; 2 for a command line that can't be read. Cut short: 130 by an interrupt, 141 when the reader of the output has left.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from kvserver import streams

if TYPE_CHECKING:
    from kvserver.config import Run
    from wal import Files

INSPECTORS = ("wal", "check")
"""Commands that look into a data directory and start nothing."""
COMMANDS = (*INSPECTORS, "docs", "help")
_COMMANDS_HELP = """usage: kvserver [flags]
       kvserver wal|check DATA-DIR
       kvserver docs [PAGE]
kvserver --help says more"""
SWITCH_INTERVAL_S = 0.001
GC_THRESHOLDS = (20_000, 20, 50)
"""Fewer collections: what lives long is frozen, and little of what is made per request has cycles (docs/performance.md)."""


def main() -> None:
    """The console script. What it needs is imported within, so that an interrupt meets somebody who answers it."""
    streams.open_closed()
    arguments = sys.argv[1:]
    name = f"kvserver {arguments[0]}" if arguments and arguments[0] in COMMANDS else "kvserver"
    sys.exit(streams.ended(name, lambda: run(arguments)))


def run(arguments: list[str], *, files: Files | None = None) -> int:
    """Do what the command line says; returns the exit code. A server uses `files` under its WAL and snapshots (None: the system's)."""
    if arguments and arguments[0] in INSPECTORS:
        from kvserver.inspect import main as look

        return look(arguments)
    if arguments and arguments[0] == "docs":
        from kvserver.manual import main as show

        return show(arguments)
    if arguments and arguments[0] and not arguments[0].startswith("-"):
        if arguments[0] != "help":
            print(f"kvserver: unknown command {arguments[0]!r}\n{_COMMANDS_HELP}", file=sys.stderr)
            return 2
        arguments = ["--help"]
    from kvserver.config import ConfigError, HelpRequested, Run, VersionRequested, help_text, parse, version_text

    try:
        invocation = parse(arguments, os.environ)
    except ConfigError as error:
        print(f"kvserver: {error}", file=sys.stderr)
        if error.exit_code == 2:
            print("kvserver --help lists the flags", file=sys.stderr)
        return error.exit_code
    match invocation:
        case HelpRequested():
            print(help_text(), end="")
            return 0
        case VersionRequested():
            print(version_text(), end="")
            return 0
        case Run():
            return _serve(invocation, files)


def _serve(invocation: Run, files: Files | None) -> int:
    # What a server needs is imported only now: --help and --version answer at once.
    import uvloop

    from kvserver.errors import KvError
    from kvserver.logs import Level, Logger, StdlibBridge, open_outputs
    from kvserver.memory import tune_allocator
    from kvserver.server import serve
    from wal import WalError

    config = invocation.config
    try:
        log = Logger(open_outputs(config.log_outputs), level=Level.named(config.log_level))
    except OSError as error:
        print(f"kvserver: --log-outputs: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    for warning in invocation.warnings:
        log.warning(warning)
    tune_allocator()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    # The WAL thread must get the interpreter back as soon as its fsync returns, however busy the loop is (docs/performance.md).
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with StdlibBridge(log).installed():
        try:
            return uvloop.run(serve(config, log=log, files=files))
        except (KvError, WalError, OSError) as error:
            log.fatal("kvserver can't start", reason=str(error))
            return 1


if __name__ == "__main__":
    main()
