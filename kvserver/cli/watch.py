"""watch: events of keys as they come, printed or handed to a command; several at a time with -i.

Rules: flags, texts and exit codes are etcdctl's. What stands behind `--` is a command, run for each event with ETCD_WATCH_REVISION (of the
message), ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and ETCD_WATCH_VALUE, the last three in Go's quotes; if it fails, so does the watch. The
key may come from the environment (ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END, or KVCTL_*), but not from both. A broken connection is
mended by the client library.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagCommand
from kvserver.cli.golang import quote, to_bytes
from kvserver.cli.output import WatchPrinter, watch_printer
from kvserver.cli.run import execute, settings_of, write, write_error
from kvserver.cli.txn import split_words
from kvserver.client import Client, Watch, prefix_end
from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.pb import rpc_pb2 as pb
from kvserver.pb.kv_pb2 import Event

WATCH_FLAGS: Final = (
    Flag(name="interactive", kind="bool", letter="i", help="read watches from standard input, one a line"),
    Flag(name="prefix", kind="bool", help="all keys that start with the given one"),
    Flag(name="rev", kind="int", default="0", help="start at this revision (0: with the next one)"),
    Flag(name="prev-kv", kind="bool", help="show the pair that the key had before the event"),
    Flag(name="progress-notify", kind="bool", help="have the server say from time to time how far the watch has come"),
)

WATCH_HELP: Final = """Watches a key, or a range of keys, and prints each event as it comes, until it is interrupted.

With `-- COMMAND ARGUMENTS` the command is run for each event, with the event in the environment (ETCD_WATCH_REVISION,
ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY, ETCD_WATCH_VALUE). With -i watches are read from standard input, one a line:
watch [flags] <key> [<range_end>] [-- COMMAND ARGUMENTS]; a line `progress` asks how far they have come.
"""

_COMMAND_KEY: Final = "kvctl.watch.command"
_BAD_NUMBER: Final = "bad number of arguments"


class WatchCommand(FlagCommand):
    """Sets aside what stands behind `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands in front of `--`."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND_KEY] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One watch to be made: what to ask the server for, and the command to run (empty: none)."""

    request: pb.WatchCreateRequest
    command: tuple[str, ...]


def _watch(arguments: tuple[str, ...], interactive: bool, **options: Any) -> None:
    ctx = click.get_current_context()
    settings = settings_of(ctx)
    printer = watch_printer(settings)
    if interactive:
        execute(settings, lambda client: _read_orders(client, printer))
    else:
        order = make_order(arguments, ctx.meta.get(_COMMAND_KEY), options, os.environ)
        execute(settings, lambda client: _show(client.watch(order.request, require_leader=True), order.command, printer))
        raise CliError("watch is canceled by the server", ExitCode.TRANSFER_FAILED)


def make_order(
    arguments: Sequence[str], command: tuple[str, ...] | None, options: Mapping[str, Any], environment: Mapping[str, str]
) -> Order:
    """What a command line asks for; `command` is what stood behind `--`, None: there was none. Raises `CliError`."""
    key, end = (_variable(environment, name) for name in ("WATCH_KEY", "WATCH_RANGE_END"))
    if end and not key:
        raise _bad(f"ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={quote(to_bytes(end))}")
    if command == ():
        raise _bad(f"{_BAD_NUMBER} (found separator --, but no commands)")
    if key and arguments:
        raise _bad(f"{_BAD_NUMBER} (found conflicting environment key)")
    keys = [key, *([end] if end else [])] if key else list(arguments)
    if not keys:
        raise _bad(_BAD_NUMBER)
    has_end = len(keys) == 2  # as in etcdctl, what follows is passed over
    if has_end and options["prefix"]:
        raise _bad("`range_end` and `--prefix` are mutually exclusive")
    lo = to_bytes(keys[0])
    range_end = prefix_end(lo) if options["prefix"] else to_bytes(keys[1]) if has_end else b""
    request = pb.WatchCreateRequest(
        key=lo or b"\x00",
        range_end=range_end,
        start_revision=options["rev"],
        prev_kv=options["prev_kv"],
        progress_notify=options["progress_notify"],
    )
    return Order(request=request, command=command or ())


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"KVCTL_{name}") or environment.get(f"ETCDCTL_{name}", "")


async def _show(watch: Watch, command: Sequence[str], printer: WatchPrinter) -> None:
    """Print what comes, until the server cancels the watch. Raises `CliError`: the command failed."""
    async with watch:
        async for message in watch:
            if message.canceled:
                write_error(f"watch was canceled ({_reason(message)})\n".encode("utf-8", "surrogateescape"))
            elif not message.events:
                write(b"progress notify: %d\n" % message.header.revision)
            write(printer.watch(message))
            if command:
                for event in message.events:
                    await _run(command, message.header.revision, event)


def _reason(message: pb.WatchResponse) -> str:
    if message.compact_revision:
        return CompactedError.message
    return message.cancel_reason or FutureRevisionError.message


async def _run(command: Sequence[str], revision: int, event: Event) -> None:
    environment = {
        **os.environ,
        "ETCD_WATCH_REVISION": str(revision),
        "ETCD_WATCH_EVENT_TYPE": quote(Event.EventType.Name(event.type).encode()),
        "ETCD_WATCH_KEY": quote(event.kv.key),
        "ETCD_WATCH_VALUE": quote(event.kv.value),
    }
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        code = await process.wait()
    except OSError as error:
        why = f"fork/exec {command[0]}: {(error.strerror or str(error)).lower()}"
        if "/" not in command[0]:
            why = f"exec: {quote(to_bytes(command[0]))}: executable file not found in $PATH"
    else:
        if not code:
            return
        why = f"exit status {code}" if code > 0 else f"signal: {-code}"
    shown = " ".join(quote(to_bytes(word)) for word in command)
    write_error(f"command [{shown}] error ({why})\n".encode("utf-8", "surrogateescape"))
    raise CliError("")


# --- several at a time -----------------------------------------------------------------------------------------------------------------


async def _read_orders(client: Client, printer: WatchPrinter) -> None:
    """Make a watch of each line, until the input ends. Raises `CliError`."""
    watches: list[Watch] = []
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    _begin_reading(lines)
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                line = await lines.get()
                if not line.endswith(b"\n"):
                    raise CliError("Error reading watch request line: EOF", ExitCode.INVALID_INPUT)
                text = line.decode("utf-8", "surrogateescape").removesuffix("\n")
                if text.strip() == "progress":
                    for watch in watches:
                        await watch.request_progress()
                elif (order := parse_line(text, os.environ)) is not None:
                    watches.append(client.watch(order.request, require_leader=True))
                    group.create_task(_show(watches[-1], order.command, printer), name=f"watch {len(watches)}")
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _begin_reading(lines: asyncio.Queue[bytes]) -> None:
    """Have a thread read standard input; what ends without a newline is the last. Nobody waits for it: a terminal may say nothing."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        rest = b""
        while chunk := os.read(descriptor, 65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                tell(line + b"\n")
        tell(rest)

    def tell(line: bytes) -> None:
        with suppress(RuntimeError):  # the command has ended
            loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=read, name="watch-input", daemon=True).start()


def parse_line(text: str, environment: Mapping[str, str]) -> Order | None:
    """The watch that a line asks for; None, and a word to stderr, for another line. Raises `CliError`: it is a wrong watch."""
    words = split_words(text)
    wrong = ""
    if not words:
        wrong = f"Invalid command: {text} (watch and progress supported)"
    elif words[0] != "watch":
        wrong = f"Invalid command {text} (only support watch)"
    elif len(words) < 2 and not _variable(environment, "WATCH_KEY"):
        wrong = f"Invalid command {text} (command type or key is not provided)"
    if wrong:
        write_error(wrong.encode("utf-8", "surrogateescape") + b"\n")
        return None
    line = make_command("watch", flags=WATCH_FLAGS, inherited=(), kind=WatchCommand)
    try:
        with line.make_context("watch", words[1:]) as ctx:
            options = dict(ctx.params)
            return make_order(options.pop("arguments"), ctx.meta.get(_COMMAND_KEY), options, environment)
    except click.ClickException as error:
        raise _bad(error.format_message()) from None
    except click.exceptions.Exit:
        raise _bad("help requested") from None


def _bad(text: str) -> CliError:
    return CliError(text, ExitCode.BAD_ARGUMENTS)


watch = make_command(
    "watch",
    flags=WATCH_FLAGS,
    arguments="[<key> [<range_end>]] [-- <command> ...]",
    summary="Watches events stream on keys or prefixes",
    help_text=WATCH_HELP,
    run=_watch,
    kind=WatchCommand,
)
