"""The command lines of bench put, bench range and bench mixed.

Rules: everything is checked before a connection is made. The exit code is 0 only if every request succeeded; an interrupted run prints its
report and exits 130. No time limit for a request unless `--command-timeout` was given, as in etcd's tool.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, BinaryIO, Final

import click
import uvloop

from kvserver.cli.bench.helpers import Compactor, ProgressBar
from kvserver.cli.bench.links import open_links
from kvserver.cli.bench.loads import KeySpace, Load, MixedLoad, PutLoad, RangeLoad
from kvserver.cli.bench.report import Report, render_json, render_text
from kvserver.cli.bench.runner import Helper, Run
from kvserver.cli.bench.schedule import Schedule
from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagOption
from kvserver.cli.golang import GoSyntaxError, parse_duration_s, quote, to_bytes
from kvserver.cli.group import FlagGroup
from kvserver.cli.run import client_config, execute, is_timeout_given, settings_of, write, write_all, write_error
from kvserver.cli.settings import GLOBAL_FLAGS, Settings
from kvserver.client import Client
from kvserver.pb import rpc_pb2 as pb

BUSY_GENERATOR_CORES: Final = 0.9
"""From here on the report warns that the generator may be what limits the rate: its Python code runs on one core."""

COMMON_FLAGS: Final = (
    Flag(name="clients", kind="int", default="1", help="clients, each with one request at a time"),
    Flag(name="conns", kind="int", default="1", help="connections that the clients share"),
    Flag(name="total", kind="int", default="10000", help="requests to send"),
    Flag(name="rate", kind="int", default="0", help="requests a second, sent when they are due (0: as fast as they are answered)"),
    Flag(name="json", kind="optional", help="the report as JSON: instead of the text, or to FILE beside it"),
)
KEY_FLAGS: Final = (
    Flag(name="key-size", kind="int", default="8", help="bytes of a key"),
    Flag(name="val-size", kind="int", default="8", help="bytes of a value"),
    Flag(name="key-space-size", kind="int", default="1", help="different keys"),
    Flag(name="sequential-keys", kind="bool", help="keys in order, again and again, instead of at random"),
)
COMPACT_FLAGS: Final = (
    Flag(name="compact-interval", default="0s", help="compact this often during the run (0s: never)"),
    Flag(name="compact-index-delta", kind="int", default="1000", help="how many revisions below the newest to compact at"),
)
CONSISTENCY_FLAG: Final = Flag(name="consistency", default="l", help="linearizable (l) or serializable (s)")
LIMIT_FLAG: Final = Flag(name="limit", kind="int", default="0", help="most results to return (0: all)")
RATIO_FLAG: Final = Flag(name="rd-wr-ratio", default="1", help="reads for each write")


def _put(arguments: tuple[str, ...], compact_interval: str, compact_index_delta: int, **options: Any) -> None:
    if arguments:
        raise CliError("bench put command accepts no arguments", ExitCode.BAD_ARGUMENTS)
    load = PutLoad(_key_space(options), options["val_size"])
    try:
        interval_s = parse_duration_s(compact_interval)
    except GoSyntaxError as error:
        raise CliError(f'invalid argument "{compact_interval}" for "--compact-interval" flag: {error}') from None

    def helpers(client: Client) -> list[Helper]:
        if interval_s <= 0:
            return []
        return [Compactor(client, interval_s=interval_s, distance=compact_index_delta).keep_compacting]

    _measure("put", load, options | {"compact_interval": compact_interval, "compact_index_delta": compact_index_delta}, helpers)


def _range(arguments: tuple[str, ...], **options: Any) -> None:
    if not 1 <= len(arguments) <= 2:
        raise CliError("bench range command needs a key and an optional range_end", ExitCode.BAD_ARGUMENTS)
    key, range_end = arguments[0], arguments[1] if len(arguments) > 1 else ""
    request = pb.RangeRequest(
        key=to_bytes(key), range_end=to_bytes(range_end), limit=options["limit"], serializable=_is_serializable(options["consistency"])
    )
    _measure("range", RangeLoad(request), {"key": key, "range_end": range_end} | options)


def _mixed(arguments: tuple[str, ...], **options: Any) -> None:
    if arguments:
        raise CliError("bench mixed command accepts no arguments", ExitCode.BAD_ARGUMENTS)
    keys = _key_space(options)
    ratio = _ratio(options["rd_wr_ratio"])
    puts = PutLoad(keys, options["val_size"])
    load = MixedLoad(puts, keys, reads_per_write=ratio, is_serializable=_is_serializable(options["consistency"]))
    _measure("mixed", load, options | {"rd_wr_ratio": ratio})


def _no_helpers(client: Client) -> list[Helper]:
    return []


def _measure(command: str, load: Load, options: dict[str, Any], helpers: Callable[[Client], list[Helper]] = _no_helpers) -> None:
    """Check what all have in common, run the load, write the report, and end as it deserves."""
    ctx = click.get_current_context()
    settings = settings_of(ctx)
    if settings.write_out not in ("simple", "json"):
        raise CliError("unsupported output format", ExitCode.BAD_FEATURE)
    json_target = options.pop("json") or ("-" if settings.write_out == "json" else "")
    for name in ("clients", "conns", "total"):
        _check(options[name] > 0, name, options[name], "must be positive")
    _check(options["rate"] >= 0, "rate", options["rate"], "must not be negative")
    schedule = Schedule(rate_per_s=options["rate"]) if options["rate"] else None
    run = Run(load=load, total=options["total"], clients=options["clients"], schedule=schedule)
    timeout_s = settings.command_timeout_s if is_timeout_given(ctx) else None
    with ExitStack() as files:

        async def work(client: Client) -> BinaryIO | None:
            config = client_config(settings, settings.endpoints)
            metadata = await client.token() if settings.user else ()
            async with open_links(config, min(options["conns"], options["clients"]), metadata, timeout_s) as links:
                file = files.enter_context(_open_report(json_target)) if json_target not in ("", "-") else None
                await run.execute(links, [ProgressBar(sys.stderr).show, *helpers(client)])
            return file

        file = execute(settings, work, loop_factory=uvloop.new_event_loop if schedule is None else _precise_loop)
        report = _report(command, run, settings, options)
        _write_report(report, json_target, file)
    _end(report)


def _precise_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are exact to about 0.1 ms: select(2) counts microseconds, epoll and uvloop milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _open_report(path: str) -> BinaryIO:
    """Before the load, so that an hour's run doesn't end with a report that can't be written."""
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: OSError) -> CliError:
    return CliError(f"could not write the report to {path}: {(error.strerror or str(error)).lower()}")


def _report(command: str, run: Run, settings: Settings, options: dict[str, Any]) -> Report:
    return Report(
        command=command,
        options={"endpoints": list(settings.endpoints)} | options,
        total=run.total,
        elapsed_ns=run.elapsed_ns,
        is_interrupted=run.is_interrupted,
        generator_cpu_ns=run.cpu_ns,
        lateness=run.lateness,
        tallies=list(run.tallies.values()),
    )


def _write_report(report: Report, json_target: str, file: BinaryIO | None) -> None:
    """The JSON goes to its file first: stdout may be a pipe whose reader is gone. A full disk doesn't keep the text back."""
    as_json = render_json(report).encode("utf-8", "surrogateescape")
    failure: OSError | None = None
    if file is not None:
        try:
            write_all(file, as_json)
        except OSError as error:
            failure = error
    write(as_json if json_target == "-" else render_text(report).encode("utf-8", "surrogateescape"))
    if failure is not None:
        raise _unwritable(json_target, failure)
    if report.generator_cores > BUSY_GENERATOR_CORES:
        text = f"Warning: the generator kept {report.generator_cores:.2f} cores busy: it may be what limited the rate (docs/bench.md)\n"
        write_error(text.encode())


def _end(report: Report) -> None:
    """Raise unless every request was sent and succeeded."""
    if report.is_interrupted:
        raise CliError("", ExitCode.INTERRUPTED)
    if report.failed:
        raise CliError(f"{report.failed} of {report.ended} requests failed")


def _key_space(options: dict[str, Any]) -> KeySpace:
    for name in ("key_size", "key_space_size"):
        _check(options[name] > 0, name, options[name], "must be positive")
    _check(options["val_size"] >= 0, "val-size", options["val_size"], "must not be negative")
    try:
        return KeySpace(
            size=options["key_space_size"],
            key_size_bytes=options["key_size"],
            is_sequential=options.get("sequential_keys", False),
            randomness=random.Random(),
        )
    except ValueError as error:
        raise CliError(str(error)) from None


def _check(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise CliError(f'invalid argument "{value}" for "--{name.replace("_", "-")}" flag: {rule}')


def _is_serializable(consistency: str) -> bool:
    if consistency not in ("l", "s"):
        raise CliError(f"unknown consistency flag {quote(to_bytes(consistency))}", ExitCode.BAD_FEATURE)
    return consistency == "s"


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    _check(math.isfinite(ratio) and ratio >= 0, "rd-wr-ratio", text, "must be a number that isn't negative")
    return ratio


PUT_HELP: Final = """Measures puts.

The defaults write one key again and again; --key-space-size and --sequential-keys spread them.
"""
RANGE_HELP: Final = """Measures reads of a key, or of all keys in [key, range_end)."""
MIXED_HELP: Final = """Measures reads and puts of single keys of one key space, in random order, reported separately."""

bench = FlagGroup(
    "bench",
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Measures a server under load",
    commands=[
        make_command(
            "mixed",
            flags=(*COMMON_FLAGS, *KEY_FLAGS, RATIO_FLAG, CONSISTENCY_FLAG),
            summary="Measures reads and puts",
            help_text=MIXED_HELP,
            run=_mixed,
        ),
        make_command("put", flags=(*COMMON_FLAGS, *KEY_FLAGS, *COMPACT_FLAGS), summary="Measures puts", help_text=PUT_HELP, run=_put),
        make_command(
            "range",
            flags=(*COMMON_FLAGS, CONSISTENCY_FLAG, LIMIT_FLAG),
            arguments="<key> [<range_end>]",
            summary="Measures reads",
            help_text=RANGE_HELP,
            run=_range,
        ),
    ],
)
