"""Groups of commands: the root, which loads its commands on demand, and the small groups below it.

Rules: a group without a command shows its help and succeeds. An unknown command names itself. The root imports a command's module only when
that command runs, so that `kvctl --help` and `kvctl version` don't pay for grpcio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from kvserver.cli.errors import CliError
from kvserver.cli.flags import CONTEXT_SETTINGS, flag_options, normalize, write_options


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyCommand:
    """Where a command lives, and what the root's help says about it."""

    module: str
    attribute: str
    summary: str


class FlagGroup(click.Group):
    """A group whose options are rows."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(
            name,
            invoke_without_command=True,
            callback=_show_help,
            options_metavar="[flags]",
            context_settings=dict(CONTEXT_SETTINGS),
            **attributes,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the flags before the command's name."""
        return super().parse_args(ctx, normalize(args, flag_options(self, ctx)))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named by the first argument; `help COMMAND` is `COMMAND --help`, at every level and behind flags."""
        if args[0] == "help":
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [*args[1:], "--help"]
        command = self.get_command(ctx, args[0])
        if command is None:
            raise CliError(f'unknown command "{args[0]}" for "{ctx.command_path}"\nRun \'{ctx.command_path} --help\' for usage.')
        return args[0], command, args[1:]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first, then options and global options."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)


class LazyGroup(FlagGroup):
    """A group of `LazyCommand`s."""

    def __init__(self, name: str, lazy: Mapping[str, LazyCommand], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name].summary) for name in self.list_commands(ctx)])


def _show_help() -> None:
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
