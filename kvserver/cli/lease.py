"""lease grant, revoke, timetolive, list, keep-alive.

Rules: ids are in hexadecimal, TTLs are seconds. As in etcdctl, a failure of timetolive, list and keep-alive ends with exit code 2, also
where the cluster has answered; a failed grant or revoke ends with 1, its reason in brackets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagOption
from kvserver.cli.golang import GoSyntaxError, parse_int
from kvserver.cli.group import FlagGroup
from kvserver.cli.output import LeasePrinter, lease_printer
from kvserver.cli.run import execute, settings_of, write
from kvserver.cli.settings import GLOBAL_FLAGS, Settings
from kvserver.client import Client, ClientError, ConnectError

ResultT = TypeVar("ResultT")

TIME_TO_LIVE_FLAGS: Final = (Flag(name="keys", kind="bool", help="show the keys attached to the lease, too"),)
KEEP_ALIVE_FLAGS: Final = (Flag(name="once", kind="bool", help="renew the lease once and exit"),)

GRANT_HELP: Final = """Creates leases.

Keys that are put with --lease=ID end with the lease: when nobody renews it for TTL seconds, or when it is revoked. The smallest TTL is 2 s.
"""
REVOKE_HELP: Final = """Revokes leases.

The keys attached to the lease are deleted, all in one revision.
"""
KEEP_ALIVE_HELP: Final = """Keeps leases alive (renew).

Renews the lease three times within its TTL, until it doesn't exist any more or the command is interrupted.
"""


def _grant(arguments: tuple[str, ...]) -> None:
    settings, printer = _prepared()
    if len(arguments) != 1:
        raise _bad("lease grant command needs TTL argument")
    try:
        ttl_s = parse_int(arguments[0])
    except GoSyntaxError as error:
        raise _bad(f"bad TTL ({error})") from None
    answer = _ask(settings, lambda client: client.lease_grant(ttl_s), "failed to grant lease ({})", ExitCode.ERROR)
    write(printer.lease_grant(answer))


def _revoke(arguments: tuple[str, ...]) -> None:
    settings, printer = _prepared()
    if len(arguments) != 1:
        raise _bad("lease revoke command needs 1 argument")
    lease = _lease_of(arguments[0])
    answer = _ask(settings, lambda client: client.lease_revoke(lease), "failed to revoke lease ({})", ExitCode.ERROR)
    write(printer.lease_revoke(answer, lease))


def _time_to_live(arguments: tuple[str, ...], keys: bool) -> None:
    settings, printer = _prepared()
    if len(arguments) != 1:
        raise _bad("lease timetolive command needs lease ID as argument")
    lease = _lease_of(arguments[0])
    answer = _ask(settings, lambda client: client.lease_time_to_live(lease, keys=keys))
    write(printer.lease_time_to_live(answer, with_keys=keys))


def _list(arguments: tuple[str, ...]) -> None:
    del arguments  # etcdctl takes any
    settings, printer = _prepared()
    write(printer.leases(_ask(settings, lambda client: client.leases())))


def _keep_alive(arguments: tuple[str, ...], once: bool) -> None:
    settings, printer = _prepared()
    if len(arguments) != 1:
        raise _bad("lease keep-alive command needs lease ID as argument")
    lease = _lease_of(arguments[0])
    if not once:
        _ask(settings, lambda client: _keep(client, lease, printer))
        write(printer.lease_ended(lease))
        return
    answer = _ask(settings, lambda client: client.lease_keep_alive_once(lease))
    if answer.TTL <= 0:
        raise CliError("etcdserver: requested lease not found", ExitCode.BAD_CONNECTION)
    write(printer.lease_keep_alive(answer))


async def _keep(client: Client, lease: int, printer: LeasePrinter) -> None:
    async with aclosing(client.lease_keep_alive(lease)) as answers:
        async for answer in answers:
            write(printer.lease_keep_alive(answer))


def _prepared() -> tuple[Settings, LeasePrinter]:
    settings = settings_of(click.get_current_context())
    return settings, lease_printer(settings)


def _ask(
    settings: Settings,
    work: Callable[[Client], Awaitable[ResultT]],
    text: str = "{}",
    code: ExitCode = ExitCode.BAD_CONNECTION,
) -> ResultT:
    """As `execute`; what the cluster, or the lack of an answer, says becomes `text`."""

    async def told(client: Client) -> ResultT:
        try:
            return await work(client)
        except ConnectError:
            raise
        except ClientError as error:
            raise CliError(text.format(error), code) from None

    return execute(settings, told)


def _lease_of(text: str) -> int:
    try:
        return parse_int(text, 16)
    except GoSyntaxError as error:
        raise _bad(f"bad lease ID arg ({error}), expecting ID in Hex") from None


def _bad(text: str) -> CliError:
    return CliError(text, ExitCode.BAD_ARGUMENTS)


lease = FlagGroup(
    "lease",
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Lease related commands",
    commands=[
        make_command("grant", arguments="<ttl>", summary="Creates leases", help_text=GRANT_HELP, run=_grant),
        make_command(
            "keep-alive",
            flags=KEEP_ALIVE_FLAGS,
            arguments="<leaseID>",
            summary="Keeps leases alive (renew)",
            help_text=KEEP_ALIVE_HELP,
            run=_keep_alive,
        ),
        make_command("list", summary="List all active leases", run=_list),
        make_command("revoke", arguments="<leaseID>", summary="Revokes leases", help_text=REVOKE_HELP, run=_revoke),
        make_command("timetolive", flags=TIME_TO_LIVE_FLAGS, arguments="<leaseID>", summary="Get lease information", run=_time_to_live),
    ],
)
