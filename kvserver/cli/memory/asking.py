"""Asking endpoints for their memory pages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kvserver.cli.errors import CliError
from kvserver.cli.memory.page import MemberMemory, PageError, parse_page
from kvserver.cli.run import execute
from kvserver.cli.settings import Settings
from kvserver.client import Client, ClientError, ConnectError, ServerError
from kvserver.client.errors import UNIMPLEMENTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one endpoint said, or why it said nothing."""

    endpoint: str
    memory: MemberMemory | None = None
    error: str = ""


def endpoints_of(settings: Settings, *, cluster: bool) -> tuple[str, ...]:
    """The endpoints to ask, each once: those of the settings, or the client URLs of all members as any of these knows them."""
    if not cluster:
        return tuple(dict.fromkeys(settings.endpoints))
    try:
        members = execute(settings, lambda client: client.member_list(linearizable=False)).members
    except CliError as error:
        raise CliError(f"failed to fetch the endpoints from the cluster's member list: {error.text}", error.code) from None
    return tuple(dict.fromkeys(url for member in members for url in member.clientURLs))


async def ask(client: Client, endpoint: str, *, timeout_s: float | None = None) -> Answer:
    """One endpoint's answer; never raises for what an endpoint does."""
    try:
        return Answer(endpoint=endpoint, memory=parse_page(await client.memory(endpoint, timeout_s=timeout_s)))
    except ConnectError as error:
        return Answer(endpoint=endpoint, error=f"cannot connect: {error.reasons.get(endpoint, str(error))}")
    except ServerError as error:
        is_unknown = error.code == UNIMPLEMENTED
        return Answer(endpoint=endpoint, error="it can't tell: not a kvserver, or an older one" if is_unknown else str(error))
    except (ClientError, PageError) as error:
        return Answer(endpoint=endpoint, error=str(error))


async def ask_all(client: Client, endpoints: Sequence[str]) -> list[Answer]:
    """All of them at once; the answers in the order of the endpoints."""
    return list(await asyncio.gather(*(ask(client, endpoint) for endpoint in endpoints)))
