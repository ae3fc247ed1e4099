"""member list."""

from __future__ import annotations

from typing import Final

import click

from kvserver.cli.command import make_command
from kvserver.cli.flags import FlagOption
from kvserver.cli.group import FlagGroup
from kvserver.cli.output import member_printer
from kvserver.cli.run import execute, settings_of, write
from kvserver.cli.settings import GLOBAL_FLAGS

LIST_HELP: Final = """Lists all members in the cluster.

In the simple format a line holds: ID, status, name, peer addresses, client addresses, is learner.
"""


def _list(arguments: tuple[str, ...]) -> None:
    del arguments  # ignored, as in etcdctl
    settings = settings_of(click.get_current_context())
    printer = member_printer(settings)
    write(printer.member_list(execute(settings, lambda client: client.member_list())))


member = FlagGroup(
    "member",
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Membership related commands",
    commands=[make_command("list", summary="Lists all members in the cluster", help_text=LIST_HELP, run=_list)],
)
