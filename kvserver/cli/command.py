"""Making a leaf command out of rows."""

from __future__ import annotations

from collections.abc import Callable

import click

from kvserver.cli.flags import CONTEXT_SETTINGS, Flag, FlagCommand, FlagOption
from kvserver.cli.settings import GLOBAL_FLAGS


def make_command(
    name: str,
    *,
    flags: tuple[Flag, ...] = (),
    inherited: tuple[Flag, ...] = GLOBAL_FLAGS,
    arguments: str = "",
    summary: str = "",
    help_text: str = "",
    run: Callable[..., None] | None = None,
    kind: type[FlagCommand] = FlagCommand,
) -> FlagCommand:
    """A command that calls `run(arguments, **flags)`; inherited flags go to the context. `arguments` is the usage text behind the flags."""
    return kind(
        name,
        params=[
            *(FlagOption(flag) for flag in flags),
            *(FlagOption(flag, is_global=True) for flag in inherited),
            click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, metavar=arguments),
        ],
        callback=run,
        help=help_text or summary,
        short_help=summary,
        options_metavar="[flags]",
        context_settings=dict(CONTEXT_SETTINGS),
    )
