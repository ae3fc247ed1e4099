"""From a command to the cluster and back to the terminal: the only place of kvctl that knows asyncio, the client's errors and the streams.

Rules: one event loop a command. Client errors become `CliError` with etcdctl's exit codes: 2 when no endpoint could be reached, else 1.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import BinaryIO, Final, TypeVar

import click

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import GLOBALS_KEY
from kvserver.cli.settings import Settings, resolve
from kvserver.client import Client, ClientConfig, ClientError, ConnectError, NoEndpointError, parse_endpoint

ResultT = TypeVar("ResultT")

ENVIRONMENT_PREFIXES: Final = ("KVCTL", "ETCDCTL")


def settings_of(ctx: click.Context) -> Settings:
    """The global flags in force; prints the warnings and, with --debug, the settings."""
    settings = resolve(ctx.meta.get(GLOBALS_KEY, {}), os.environ)
    for line in (*(f"Warning: {warning}" for warning in settings.warnings), *settings.debug):
        write_error(line.encode("utf-8", "surrogateescape") + b"\n")
    return settings


def is_timeout_given(ctx: click.Context) -> bool:
    """Whether the command's time limit is the user's wish, not the default of short commands."""
    return "command_timeout" in ctx.meta.get(GLOBALS_KEY, {}) or any(
        f"{prefix}_COMMAND_TIMEOUT" in os.environ for prefix in ENVIRONMENT_PREFIXES
    )


def execute(
    settings: Settings,
    work: Callable[[Client], Awaitable[ResultT]],
    *,
    endpoints: tuple[str, ...] | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> ResultT:
    """Run `work` with a client for the settings' endpoints (or those given), on asyncio's loop or another. Raises `CliError`."""
    try:
        config = client_config(settings, settings.endpoints if endpoints is None else endpoints)
    except NoEndpointError:
        raise CliError("etcdclient: no available endpoints", ExitCode.BAD_CONNECTION) from None
    except ClientError as error:
        raise CliError(str(error), ExitCode.BAD_ARGUMENTS) from None
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_with_client(config, work))
    except ConnectError as error:
        raise CliError(str(error), ExitCode.BAD_CONNECTION) from None
    except ClientError as error:
        raise CliError(str(error)) from None


async def _with_client(config: ClientConfig, work: Callable[[Client], Awaitable[ResultT]]) -> ResultT:
    async with Client(config) as client:
        return await work(client)


def client_config(settings: Settings, endpoints: tuple[str, ...]) -> ClientConfig:
    """The client's configuration. Raises `ClientError` for endpoints that can't be used."""
    return ClientConfig(
        endpoints=tuple(parse_endpoint(text) for text in endpoints),
        dial_timeout_s=settings.dial_timeout_s,
        call_timeout_s=settings.command_timeout_s,
        keepalive_time_s=settings.keepalive_time_s,
        keepalive_timeout_s=settings.keepalive_timeout_s,
        user=settings.user,
        password=settings.password,
    )


def write(data: bytes) -> None:
    """Bytes to stdout, now: a failure must be this command's failure, not the interpreter's at exit."""
    write_all(sys.stdout.buffer, data)


def write_error(data: bytes) -> None:
    """Bytes to stderr, now; lost if nobody can read them: that is no reason to stop."""
    with suppress(OSError):
        write_all(sys.stderr.buffer, data)


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Every byte, now. Under PYTHONUNBUFFERED the stream is the bare file, which may take only a part of a large output at a time."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
    stream.flush()
