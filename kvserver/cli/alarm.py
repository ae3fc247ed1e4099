"""alarm list, alarm disarm.

Rules: `disarm` disarms what `list` shows, one alarm after the other, each by its member and its kind: the server knows no "all". An alarm
that is raised meanwhile stays.
"""

from __future__ import annotations

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import FlagOption
from kvserver.cli.group import FlagGroup
from kvserver.cli.output import alarm_printer
from kvserver.cli.run import execute, settings_of, write
from kvserver.cli.settings import GLOBAL_FLAGS

DISARM_HELP = """Disarms all alarms.

Make room first (compaction, del): while the store is over its quota the next write raises NOSPACE again.
"""


def _list(arguments: tuple[str, ...]) -> None:
    if arguments:
        raise CliError("alarm list command accepts no arguments", ExitCode.BAD_ARGUMENTS)
    settings = settings_of(click.get_current_context())
    printer = alarm_printer(settings)
    write(printer.alarms(execute(settings, lambda client: client.alarms())))


def _disarm(arguments: tuple[str, ...]) -> None:
    if arguments:
        raise CliError("alarm disarm command accepts no arguments", ExitCode.BAD_ARGUMENTS)
    settings = settings_of(click.get_current_context())
    printer = alarm_printer(settings)
    write(printer.alarms(execute(settings, lambda client: client.alarms_disarm_all())))


alarm = FlagGroup(
    "alarm",
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Alarm related commands",
    commands=[
        make_command("disarm", summary="Disarms all alarms", help_text=DISARM_HELP, run=_disarm),
        make_command("list", summary="Lists all alarms", run=_list),
    ],
)
