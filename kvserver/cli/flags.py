"""Command-line flags in etcdctl's manner, on top of click.

What differs from click's own manner:
- a boolean flag may carry a value: `--prefix`, `--prefix=true`, `--prefix=false`;
- a short flag may carry one behind "=": `-w=json`;
- an optional flag means "-" without a value, and takes one only behind "=": `--json`, `--json=FILE`;
- global flags stand before or after the command's name;
- integers are Go's, and so are the error texts.

Rules: a flag is a row (`Flag`), not a decorator, so that the txn command can parse its lines with the same rows and a test can walk them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import click

from kvserver.cli.errors import CliError
from kvserver.cli.golang import GoSyntaxError, parse_bool, parse_int

GLOBALS_KEY: Final = "kvctl.globals"
CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
FlagKind = Literal["string", "bool", "int", "list", "optional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag: its long name, an optional letter, what it takes, its default and its help."""

    name: str
    help: str
    kind: FlagKind = "string"
    letter: str = ""
    default: str = ""

    @property
    def parameter(self) -> str:
        """The name of the Python parameter."""
        return self.name.replace("-", "_")


def _converter(flag: Flag) -> Callable[[Any], Any]:
    """What turns the flag's text into its value; a default may come already converted."""
    parsers: dict[str, Callable[[str], bool | int]] = {"bool": parse_bool, "int": lambda text: parse_int(text, 0)}
    parse = parsers[flag.kind]

    def convert(value: str | bool | int) -> bool | int:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except GoSyntaxError as error:
            raise CliError(f'invalid argument "{value}" for "--{flag.name}" flag: {error}') from None

    return convert


class FlagOption(click.Option):
    """A click option made from a `Flag`; `is_global` ones store what the user typed instead of passing it on."""

    def __init__(self, flag: Flag, *, is_global: bool = False) -> None:
        self.flag = flag
        self.is_global = is_global
        names = [f"--{flag.name}", *([f"-{flag.letter}"] if flag.letter else [])]
        number = int(flag.default or "0") if flag.kind == "int" else 0
        defaults: dict[str, Any] = {"bool": flag.default == "true", "int": number, "list": None}
        super().__init__(
            names,
            type=_converter(flag) if flag.kind in ("bool", "int") else click.UNPROCESSED,
            default=None if is_global else defaults.get(flag.kind, flag.default),
            multiple=flag.kind == "list",
            help=flag.help,
            expose_value=not is_global,
            callback=_remember if is_global else None,
            metavar={"bool": "", "int": "N", "list": "LIST", "optional": "[=FILE]"}.get(flag.kind, "TEXT"),
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Name and help, with the default where there is one worth naming."""
        letter = f"-{self.flag.letter}, " if self.flag.letter else "    "
        value = "" if self.flag.kind == "bool" else str(self.metavar) if self.flag.kind == "optional" else f" {self.metavar}"
        default = f" (default: {self.flag.default})" if self.flag.default not in ("", "0") else ""
        return f"{letter}--{self.flag.name}{value}", f"{self.flag.help}{default}"


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a global flag that was typed; a later one wins, lists add up."""
    if ctx.get_parameter_source(param.name or "") is not click.core.ParameterSource.COMMANDLINE:
        return
    seen: dict[str, Any] = ctx.meta.setdefault(GLOBALS_KEY, {})
    name = str(param.name)
    seen[name] = (*seen.get(name, ()), *value) if isinstance(value, tuple) else value


def normalize(args: Sequence[str], options: Iterable[FlagOption]) -> list[str]:
    """Rewrite `--bool` to `--bool=true` and `-w=x` to `-wx`, leaving values and everything behind `--` alone."""
    by_name = {name: option for option in options for name in (*option.opts, *option.secondary_opts)}
    result: list[str] = []
    rest = list(args)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        option = by_name.get(name)
        if token == "--":
            return [*result, token, *rest]
        if option is None:
            result.append(token)
        elif option.flag.kind == "bool":
            result.append(f"{option.opts[0]}={value if equals else 'true'}")
        elif option.flag.kind == "optional":
            result.append(f"{option.opts[0]}={value if equals else '-'}")
        elif equals:
            result.append(f"{option.opts[0]}={value}")
        else:
            result.append(token)
            if rest:
                result.append(rest.pop(0))
    return result


def flag_options(command: click.Command, ctx: click.Context) -> list[FlagOption]:
    """The options of a command that were made from rows."""
    return [param for param in command.get_params(ctx) if isinstance(param, FlagOption)]


class FlagCommand(click.Command):
    """A leaf command whose options are rows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after bringing flags into click's form."""
        return super().parse_args(ctx, normalize(args, flag_options(self, ctx)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, the global ones in a section of their own."""
        write_options(self, ctx, formatter)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Two sections of a help page: options, global options."""
    rows = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    for title, chosen in (
        ("Options", [row for row in rows if not getattr(row, "is_global", False)]),
        ("Global options", [row for row in rows if getattr(row, "is_global", False)]),
    ):
        records = [record for row in chosen if (record := row.get_help_record(ctx)) is not None]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
