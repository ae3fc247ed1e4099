"""endpoint status, endpoint health, endpoint hashkv.

Rules: every endpoint is asked at once and on its own (no failover); answers are printed in the order of the endpoints. One that fails is
reported on stderr, the others are shown all the same, and the exit code is 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import GLOBALS_KEY, Flag, FlagOption
from kvserver.cli.group import FlagGroup
from kvserver.cli.output import EndpointHash, EndpointHealth, EndpointStatus, endpoint_printer
from kvserver.cli.output.rows import alarm_name
from kvserver.cli.run import execute, settings_of, write, write_error
from kvserver.cli.settings import GLOBAL_FLAGS, Settings
from kvserver.client import Client, ClientError, ConnectError, ServerError, methods
from kvserver.client.errors import PERMISSION_DENIED, UNIMPLEMENTED
from kvserver.client.methods import Method, RequestT, ResponseT
from kvserver.pb import rpc_pb2 as pb

AnswerT = TypeVar("AnswerT")

CLUSTER_FLAG: Final = Flag(name="cluster", kind="bool", help="use the client URLs of all members instead of --endpoints")
HASHKV_FLAGS: Final = (Flag(name="rev", kind="int", default="0", help="highest revision to hash (0: all)"),)
HEALTH_KEY: Final = b"health"

STATUS_HELP: Final = """Prints the status of the endpoints given by --endpoints.

In the simple format a line holds: endpoint, ID, version, db size, is leader, is learner, raft term, raft index, raft applied index, errors.
"""


class EndpointCaller(Protocol):
    """What the health probe needs of a client."""

    async def call_endpoint(self, endpoint: str, method: Method[RequestT, ResponseT], request: RequestT) -> ResponseT:
        """One RPC on one endpoint."""


def _status(arguments: tuple[str, ...]) -> None:
    _no_arguments(arguments)
    settings = settings_of(click.get_current_context())
    printer = endpoint_printer(settings)
    endpoints = _endpoints(settings)
    answers = _ask_all(settings, endpoints, lambda client, endpoint: client.status(endpoint))
    found = [EndpointStatus(endpoint=endpoint, status=answer) for endpoint, answer in answers if isinstance(answer, pb.StatusResponse)]
    _report_failures("status", answers)
    write(printer.status(found))
    if len(found) < len(answers):
        raise CliError("")


def _hashkv(arguments: tuple[str, ...], rev: int) -> None:
    _no_arguments(arguments)
    settings = settings_of(click.get_current_context())
    printer = endpoint_printer(settings)
    endpoints = _endpoints(settings)
    answers = _ask_all(settings, endpoints, lambda client, endpoint: client.hash_kv(endpoint, rev))
    found = [EndpointHash(endpoint=endpoint, hash_kv=answer) for endpoint, answer in answers if isinstance(answer, pb.HashKVResponse)]
    _report_failures("hash", answers)
    write(printer.hash_kv(found))
    failures = [answer for _, answer in answers if isinstance(answer, ClientError)]
    if failures:
        raise CliError(str(failures[-1]))


def _health(arguments: tuple[str, ...]) -> None:
    _no_arguments(arguments)
    settings = settings_of(click.get_current_context())
    printer = endpoint_printer(settings)
    endpoints = _endpoints(settings)
    found = execute(settings, lambda client: _probe_all(client, endpoints), endpoints=endpoints)
    rendered = printer.health(found)
    write_error(rendered.stderr)
    write(rendered.stdout)
    if not all(each.healthy for each in found):
        raise CliError("unhealthy cluster")


def _no_arguments(arguments: tuple[str, ...]) -> None:
    if arguments:
        raise CliError("endpoint commands take no arguments; name the endpoints with --endpoints", ExitCode.BAD_ARGUMENTS)


def _endpoints(settings: Settings) -> tuple[str, ...]:
    """The endpoints to ask, in order; those of the cluster each once."""
    if not click.get_current_context().meta.get(GLOBALS_KEY, {}).get(CLUSTER_FLAG.parameter, False):
        return settings.endpoints
    try:
        members = execute(settings, lambda client: client.member_list()).members
    except CliError as error:
        raise CliError(f"failed to fetch endpoints from etcd cluster member list: {error.text}", error.code) from None
    return tuple(dict.fromkeys(url for member in members for url in member.clientURLs))


def _ask_all(
    settings: Settings, endpoints: tuple[str, ...], ask: Callable[[Client, str], Awaitable[AnswerT]]
) -> list[tuple[str, AnswerT | ClientError]]:
    """Each endpoint with its answer or its error."""

    async def work(client: Client) -> list[tuple[str, AnswerT | ClientError]]:
        return list(zip(endpoints, await asyncio.gather(*(_caught(ask(client, endpoint)) for endpoint in endpoints)), strict=True))

    return execute(settings, work, endpoints=endpoints)


async def _caught(call: Awaitable[AnswerT]) -> AnswerT | ClientError:
    try:
        return await call
    except ClientError as error:
        return error


def _report_failures(what: str, answers: list[tuple[str, AnswerT | ClientError]]) -> None:
    for endpoint, answer in answers:
        if isinstance(answer, ClientError):
            write_error(f"Failed to get the {what} of endpoint {endpoint} ({_reason(endpoint, answer)})\n".encode())


def _reason(endpoint: str, error: ClientError) -> str:
    return f"cannot connect: {error.reasons.get(endpoint, '')}" if isinstance(error, ConnectError) else str(error)


async def _probe_all(client: Client, endpoints: tuple[str, ...]) -> list[EndpointHealth]:
    return list(await asyncio.gather(*(probe(client, endpoint) for endpoint in endpoints)))


async def probe(client: EndpointCaller, endpoint: str) -> EndpointHealth:
    """A linearizable read, which needs the quorum, and the alarms. Denied is healthy too: the denial went through consensus."""
    start_ns = time.monotonic_ns()
    error = ""
    try:
        await client.call_endpoint(endpoint, methods.RANGE, pb.RangeRequest(key=HEALTH_KEY))
    except ServerError as refusal:
        error = "" if refusal.code == PERMISSION_DENIED else str(refusal)
    except ClientError as failure:
        error = _reason(endpoint, failure)
    took_ns = time.monotonic_ns() - start_ns
    return EndpointHealth(endpoint=endpoint, took_ns=took_ns, error=error or await _alarms(client, endpoint))


async def _alarms(client: EndpointCaller, endpoint: str) -> str:
    """What is wrong according to the alarms; a server that has none to ask for has none on."""
    try:
        answer = await client.call_endpoint(endpoint, methods.ALARM_GET, pb.AlarmRequest(action=pb.AlarmRequest.GET))
    except ServerError as error:
        return "" if error.code in (UNIMPLEMENTED, PERMISSION_DENIED) else "Unable to fetch the alarm list"
    except ClientError:
        return "Unable to fetch the alarm list"
    names = "".join(f"{alarm_name(alarm.alarm)} " for alarm in answer.alarms)
    return f"Active Alarm(s): {names}" if names else ""


_INHERITED: Final = (*GLOBAL_FLAGS, CLUSTER_FLAG)

endpoint = FlagGroup(
    "endpoint",
    params=[FlagOption(flag, is_global=True) for flag in _INHERITED],
    help="Endpoint related commands",
    commands=[
        make_command(
            "status",
            inherited=_INHERITED,
            summary="Prints out the status of endpoints specified in `--endpoints` flag",
            help_text=STATUS_HELP,
            run=_status,
        ),
        make_command(
            "health",
            inherited=_INHERITED,
            summary="Checks the healthiness of endpoints specified in `--endpoints` flag",
            run=_health,
        ),
        make_command(
            "hashkv",
            flags=HASHKV_FLAGS,
            inherited=_INHERITED,
            summary="Prints the KV history hash for each endpoint in --endpoints",
            run=_hashkv,
        ),
    ],
)
