"""member add, list, promote, remove, update.

Rules: what can be refused without the cluster is refused before anything is sent: arguments, ids, URLs, formats. A change is sent once;
after a timeout or a broken connection `member list` tells whether it happened.
Caveat: the block that `member add` prints comes from the answer to the change itself, not from a second call, because that one could fail:
adding a voter to a single member stops the cluster until the new one runs.
"""

from __future__ import annotations

from typing import Final

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagOption
from kvserver.cli.golang import GoSyntaxError, parse_uint
from kvserver.cli.group import FlagGroup
from kvserver.cli.output import change_printer, member_printer
from kvserver.cli.peer_urls import split_peer_urls
from kvserver.cli.run import execute, settings_of, write
from kvserver.cli.settings import GLOBAL_FLAGS

ADD_FLAGS: Final = (
    Flag(name="peer-urls", help="peer URLs of the new member, separated by commas"),
    Flag(name="learner", kind="bool", help="add it as a learner: it gets the data but has no vote until it is promoted"),
)
UPDATE_FLAGS: Final = (Flag(name="peer-urls", help="the member's new peer URLs, separated by commas; they replace all it had"),)

ADD_HELP: Final = """Adds a member into the cluster.

The new member is started afterwards, with the settings that this prints.
"""

LIST_HELP: Final = """Lists all members in the cluster.

In the simple format a line holds: ID, status, name, peer addresses, client addresses, is learner.
"""

PROMOTE_HELP: Final = """Promotes a learner to a voting member.

The cluster refuses as long as the learner isn't in sync with the leader.
"""


def _add(arguments: tuple[str, ...], peer_urls: str, learner: bool) -> None:
    settings = settings_of(click.get_current_context())
    if not arguments:
        raise CliError("member name not provided", ExitCode.BAD_ARGUMENTS)
    if len(arguments) > 1:
        hints = (f", did you mean --peer-urls={each}" for each in arguments if each.lower().startswith("http"))
        raise CliError("too many arguments" + "".join(hints), ExitCode.BAD_ARGUMENTS)
    printer = change_printer(settings)
    urls = _urls(peer_urls)
    answer = execute(settings, lambda client: client.member_add(urls, learner=learner))
    write(printer.member_add(answer, arguments[0], peer_urls))


def _list(arguments: tuple[str, ...]) -> None:
    del arguments  # ignored, as in etcdctl
    settings = settings_of(click.get_current_context())
    printer = member_printer(settings)
    write(printer.member_list(execute(settings, lambda client: client.member_list())))


def _promote(arguments: tuple[str, ...]) -> None:
    settings = settings_of(click.get_current_context())
    member_id = _member_id(arguments)
    printer = change_printer(settings)
    write(printer.member_promote(execute(settings, lambda client: client.member_promote(member_id)), member_id))


def _remove(arguments: tuple[str, ...]) -> None:
    settings = settings_of(click.get_current_context())
    member_id = _member_id(arguments)
    printer = change_printer(settings)
    write(printer.member_remove(execute(settings, lambda client: client.member_remove(member_id)), member_id))


def _update(arguments: tuple[str, ...], peer_urls: str) -> None:
    settings = settings_of(click.get_current_context())
    member_id = _member_id(arguments)
    printer = change_printer(settings)
    urls = _urls(peer_urls)
    write(printer.member_update(execute(settings, lambda client: client.member_update(member_id, urls)), member_id))


def _member_id(arguments: tuple[str, ...]) -> int:
    if len(arguments) != 1:
        raise CliError("member ID is not provided", ExitCode.BAD_ARGUMENTS)
    try:
        return parse_uint(arguments[0], 16)
    except GoSyntaxError as error:
        raise CliError(f"bad member ID arg ({error}), expecting ID in Hex", ExitCode.BAD_ARGUMENTS) from None


def _urls(text: str) -> tuple[str, ...]:
    if not text:
        raise CliError("member peer urls not provided", ExitCode.BAD_ARGUMENTS)
    try:
        return split_peer_urls(text)
    except GoSyntaxError as error:
        raise CliError(str(error)) from None


member = FlagGroup(
    "member",
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Membership related commands",
    commands=[
        make_command("add", flags=ADD_FLAGS, arguments="<name>", summary="Adds a member into the cluster", help_text=ADD_HELP, run=_add),
        make_command("list", summary="Lists all members in the cluster", help_text=LIST_HELP, run=_list),
        make_command("promote", arguments="<id>", summary="Promotes a learner to a voting member", help_text=PROMOTE_HELP, run=_promote),
        make_command("remove", arguments="<id>", summary="Removes a member from the cluster", run=_remove),
        make_command("update", flags=UPDATE_FLAGS, arguments="<id>", summary="Changes the peer URLs of a member", run=_update),
    ],
)
