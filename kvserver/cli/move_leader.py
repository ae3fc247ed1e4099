"""move-leader: finds the leader among the endpoints and has it hand over.

Rules: all endpoints are asked for their status at once; the first that says it leads is told to hand over, and nobody is waited for any
longer, so a member that is down or hangs is in nobody's way. Only the leader can be told; it is never looked for outside the endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.golang import GoSyntaxError, parse_uint
from kvserver.cli.output import change_printer
from kvserver.cli.run import execute, settings_of, write, write_error
from kvserver.client import Client, ClientError, ConnectError
from kvserver.pb import rpc_pb2 as pb

MOVE_LEADER_HELP: Final = """Transfers leadership to another member of the cluster.

The leader must be among --endpoints. The ID is that of the member that shall lead, as in `member list`.
"""


class StatusCaller(Protocol):
    """What the search for the leader needs of a client."""

    async def status(self, endpoint: str) -> pb.StatusResponse:
        """One member's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What came of a search: the leader's endpoint (None: nobody leads) and id, and the endpoints that failed until then, each with why."""

    endpoint: str | None = None
    leader_id: int = 0
    failures: dict[str, ClientError] = field(default_factory=dict)


def _move_leader(arguments: tuple[str, ...]) -> None:
    settings = settings_of(click.get_current_context())
    if len(arguments) != 1:
        raise CliError("move-leader command needs 1 argument", ExitCode.BAD_ARGUMENTS)
    try:
        target_id = parse_uint(arguments[0], 16)
    except GoSyntaxError as error:
        raise CliError(str(error), ExitCode.BAD_ARGUMENTS) from None
    printer = change_printer(settings)
    leader_id, answer = execute(settings, lambda client: _hand_over(client, settings.endpoints, target_id))
    write(printer.move_leader(answer, leader_id, target_id))


async def _hand_over(client: Client, endpoints: Sequence[str], target_id: int) -> tuple[int, pb.MoveLeaderResponse]:
    """The id of the member that led, and its answer."""
    found = await find_leader(client, endpoints)
    if found.endpoint is None:
        raise _nobody_leads(endpoints, found.failures)
    return found.leader_id, await client.move_leader(found.endpoint, target_id)


async def find_leader(client: StatusCaller, endpoints: Sequence[str]) -> Search:
    """Ask all at once; the first that says it leads ends the search. No task outlives the call."""
    names = dict.fromkeys(endpoints)
    tasks = [asyncio.create_task(_ask(client, endpoint), name=f"status of {endpoint}") for endpoint in names]
    failures: dict[str, ClientError] = {}
    try:
        for each in asyncio.as_completed(tasks):
            endpoint, answer = await each
            if isinstance(answer, ClientError):
                failures[endpoint] = answer
            elif answer.leader == answer.header.member_id:
                return Search(endpoint=endpoint, leader_id=answer.leader, failures=failures)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Search(failures={name: failures[name] for name in names if name in failures})


async def _ask(client: StatusCaller, endpoint: str) -> tuple[str, pb.StatusResponse | ClientError]:
    try:
        return endpoint, await client.status(endpoint)
    except ClientError as error:
        return endpoint, error


def _nobody_leads(endpoints: Sequence[str], failures: dict[str, ClientError]) -> Exception:
    """Where no endpoint answered, why; else that none of them leads, after a line on stderr for each that couldn't be asked."""
    reasons = {name: error.reasons.get(name, "") for name, error in failures.items() if isinstance(error, ConnectError)}
    if len(failures) == len(set(endpoints)):
        return ConnectError(reasons) if len(reasons) == len(failures) else next(iter(failures.values()))
    for name, error in failures.items():
        reason = f"cannot connect: {reasons[name]}" if name in reasons else str(error)
        write_error(f"Failed to get the status of endpoint {name} ({reason})\n".encode())
    return CliError(f"no leader endpoint given at [{' '.join(endpoints)}]", ExitCode.BAD_ARGUMENTS)


move_leader = make_command(
    "move-leader",
    arguments="<id>",
    summary="Transfers leadership to another member of the cluster",
    help_text=MOVE_LEADER_HELP,
    run=_move_leader,
)
