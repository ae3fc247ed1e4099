"""The two commands: flags in, pages out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag
from kvserver.cli.golang import GoSyntaxError, parse_duration_s
from kvserver.cli.memory.asking import Answer, ask_all, endpoints_of
from kvserver.cli.memory.live import show_live, show_once
from kvserver.cli.memory.show import as_blocks, as_json, as_tables
from kvserver.cli.run import execute, settings_of, write
from kvserver.cli.settings import Settings

CLUSTER_FLAG: Final = Flag(name="cluster", kind="bool", help="ask the client URLs of all members instead of --endpoints")
TOP_FLAGS: Final = (
    CLUSTER_FLAG,
    Flag(name="interval", default="2s", help="how often to ask and to draw (0.1s at least)"),
    Flag(name="once", kind="bool", help="print one frame as text and leave"),
)
MIN_INTERVAL_S: Final = 0.1

MEMORY_HELP: Final = """Prints what the memory of each member consists of: resident, anonymous and file bytes of its process, the bytes it
accounts for by owner, its log window, and which peer holds that window by how much.

Works without a quorum; asks every endpoint on its client port.
"""

TOP_HELP: Final = """Shows what `memory` shows, live: `q` or Ctrl-C leaves. Without a terminal each frame is printed as text.
"""


def _memory(arguments: tuple[str, ...], cluster: bool) -> None:
    _no_arguments("memory", arguments)
    settings = settings_of(click.get_current_context())
    show = _format_of(settings)
    endpoints = endpoints_of(settings, cluster=cluster)
    answers = execute(settings, lambda client: ask_all(client, endpoints), endpoints=endpoints)
    write(show(answers))
    _fail_if_any_failed(answers)


def _top(arguments: tuple[str, ...], cluster: bool, interval: str, once: bool) -> None:
    _no_arguments("top", arguments)
    settings = settings_of(click.get_current_context())
    if settings.write_out not in ("simple", "table"):
        raise CliError(f"{settings.write_out} not supported as output format", ExitCode.BAD_FEATURE)
    interval_s = _interval_s(interval)
    endpoints = endpoints_of(settings, cluster=cluster)
    if once:
        _fail_if_any_failed(execute(settings, lambda client: show_once(client, endpoints), endpoints=endpoints))
        return
    try:
        execute(settings, lambda client: show_live(client, endpoints, interval_s), endpoints=endpoints)
    except KeyboardInterrupt:
        return  # the documented way to leave


def _format_of(settings: Settings) -> Callable[[Sequence[Answer]], bytes]:
    match settings.write_out:
        case "simple":
            return as_blocks
        case "table":
            return as_tables
        case "json":
            return as_json
    raise CliError(f"{settings.write_out} not supported as output format", ExitCode.BAD_FEATURE)


def _interval_s(text: str) -> float:
    try:
        interval_s = parse_duration_s(text)
    except GoSyntaxError as error:
        raise CliError(f'invalid argument "{text}" for "--interval" flag: {error}') from None
    if interval_s < MIN_INTERVAL_S:
        raise CliError(f'invalid argument "{text}" for "--interval" flag: must be {MIN_INTERVAL_S}s at least', ExitCode.BAD_ARGUMENTS)
    return interval_s


def _no_arguments(command: str, arguments: tuple[str, ...]) -> None:
    if arguments:
        raise CliError(f"{command} command accepts no arguments; name the endpoints with --endpoints", ExitCode.BAD_ARGUMENTS)


def _fail_if_any_failed(answers: Sequence[Answer]) -> None:
    """The exit code tells that an endpoint did not answer: 2 if none could be reached."""
    failed = [answer for answer in answers if answer.memory is None]
    if failed:
        raise CliError("", ExitCode.BAD_CONNECTION if len(failed) == len(answers) else ExitCode.ERROR)


memory = make_command(
    "memory",
    flags=(CLUSTER_FLAG,),
    summary="Shows what the members' memory consists of, and who holds it",
    help_text=MEMORY_HELP,
    run=_memory,
)
top = make_command("top", flags=TOP_FLAGS, summary="Shows the members' memory, live", help_text=TOP_HELP, run=_top)
