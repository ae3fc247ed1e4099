"""kvctl's entry point: the table of commands, and how the process ends.

Rules: no traceback reaches the user for anything the world can do; every ending has a documented exit code. An interrupt (130), SIGTERM
(143) and a reader that went away (141) end quietly, and leave no half-written file. A closed or broken stderr stops nothing: what would be
said there is lost. grpcio's own log lines and fork warnings are switched
off before it is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

import click

from kvserver import streams
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import FlagOption
from kvserver.cli.group import LazyCommand, LazyGroup
from kvserver.cli.settings import GLOBAL_FLAGS

COMMANDS: Final = {
    "alarm": LazyCommand(module="kvserver.cli.alarm", attribute="alarm", summary="Alarm related commands"),
    "bench": LazyCommand(module="kvserver.cli.bench", attribute="bench", summary="Measures a server under load"),
    "compaction": LazyCommand(module="kvserver.cli.kv", attribute="compaction", summary="Compacts the event history"),
    "del": LazyCommand(module="kvserver.cli.kv", attribute="delete", summary="Removes the specified key or range of keys [key, range_end)"),
    "endpoint": LazyCommand(module="kvserver.cli.endpoint", attribute="endpoint", summary="Endpoint related commands"),
    "get": LazyCommand(module="kvserver.cli.kv", attribute="get", summary="Gets the key or a range of keys"),
    "lease": LazyCommand(module="kvserver.cli.lease", attribute="lease", summary="Lease related commands"),
    "member": LazyCommand(module="kvserver.cli.member", attribute="member", summary="Membership related commands"),
    "memory": LazyCommand(
        module="kvserver.cli.memory", attribute="memory", summary="Shows what the members' memory consists of, and who holds it"
    ),
    "move-leader": LazyCommand(
        module="kvserver.cli.move_leader", attribute="move_leader", summary="Transfers leadership to another member of the cluster"
    ),
    "put": LazyCommand(module="kvserver.cli.kv", attribute="put", summary="Puts the given key into the store"),
    "snapshot": LazyCommand(module="kvserver.cli.snapshot", attribute="snapshot", summary="Manages snapshots of a server"),
    "top": LazyCommand(module="kvserver.cli.memory", attribute="top", summary="Shows the members' memory, live"),
    "txn": LazyCommand(module="kvserver.cli.txn", attribute="txn", summary="Processes all the requests in one transaction"),
    "watch": LazyCommand(module="kvserver.cli.watch", attribute="watch", summary="Watches events stream on keys or prefixes"),
    "version": LazyCommand(module="kvserver.cli.version_command", attribute="version", summary="Prints the version of kvctl"),
}

_GRPC_ENVIRONMENT: Final = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}


def make_root() -> LazyGroup:
    """The `kvctl` command."""
    return LazyGroup(
        "kvctl",
        COMMANDS,
        params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
        help="A command line client for kvserver and etcd v3.",
    )


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    root = make_root()
    try:
        with root.make_context("kvctl", list(arguments)) as ctx:
            root.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except CliError as error:
        return _fail(error.text, error.code)
    except click.NoSuchOption as error:
        return _fail(_unknown_flag(error), ExitCode.ERROR)
    except click.BadOptionUsage as error:
        return _fail(f"flag needs an argument: {error.option_name}", ExitCode.ERROR)
    except click.UsageError as error:
        return _fail(error.format_message(), ExitCode.ERROR)
    except BrokenPipeError:
        streams.discard_stdout()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        streams.discard_stdout()
        return _fail((error.strerror or str(error)).lower(), ExitCode.ERROR)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: a defect of kvctl is one line too, and exits 1
        return _fail(f"internal error: {type(error).__name__}: {error}", ExitCode.ERROR)
    return ExitCode.OK


def _unknown_flag(error: click.NoSuchOption) -> str:
    name = error.option_name
    what = f"unknown flag: {name}" if name.startswith("--") else f"unknown shorthand flag: '{name.lstrip('-')}' in {name}"
    usage = f"\nRun '{error.ctx.command_path} --help' for usage." if error.ctx is not None else ""
    return what + usage


def _fail(text: str, code: ExitCode) -> int:
    if text:
        with contextlib.suppress(OSError):
            sys.stderr.buffer.write(f"Error: {text}\n".encode("utf-8", "surrogateescape"))
            sys.stderr.buffer.flush()
    return code


class _Termination:
    """SIGTERM ends a command as an interrupt does, so that what it was writing is removed; only the exit code is another."""

    def __init__(self) -> None:
        self.asked = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        del number, frame
        self.asked = True
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # started in the background by a shell
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)


def main() -> None:
    """The `kvctl` script."""
    streams.open_closed()
    termination = _Termination()
    signal.signal(signal.SIGTERM, termination.take)
    for name, value in _GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    code = run(sys.argv[1:])
    sys.exit(ExitCode.TERMINATED if termination.asked else code)


if __name__ == "__main__":
    main()
