"""put, get, del, compaction."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from kvserver.cli import requests
from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag
from kvserver.cli.golang import GoSyntaxError, parse_int
from kvserver.cli.output import key_value_printer
from kvserver.cli.run import execute, settings_of, write
from kvserver.client import methods

COMPACTION_FLAGS: Final = (Flag(name="physical", kind="bool", help="wait until the old revisions are physically removed"),)

PUT_HELP: Final = """Puts the given key into the store.

A value that begins with '-' would be taken for a flag: put '--' before it.
Without a value (and without --ignore-value) the value is read from standard input, to its end and byte for byte.
"""


def _put(arguments: tuple[str, ...], **options: Any) -> None:
    settings = settings_of(click.get_current_context())
    printer = key_value_printer(settings)
    request = requests.put_request(arguments, options, sys.stdin.buffer.read)
    write(printer.put(execute(settings, lambda client: client.call(methods.PUT, request))))


def _get(arguments: tuple[str, ...], print_value_only: bool, **options: Any) -> None:
    settings = settings_of(click.get_current_context())
    if options["count_only"] and settings.write_out not in ("fields", "json", "protobuf"):
        raise CliError("--count-only is only for `--write-out=fields`, `json` or `protobuf`", ExitCode.BAD_ARGUMENTS)
    if print_value_only and settings.write_out != "simple":
        raise CliError("print-value-only is only for `--write-out=simple`", ExitCode.BAD_ARGUMENTS)
    printer = key_value_printer(settings, values_only=print_value_only)
    request = requests.range_request(arguments, options)
    write(printer.get(execute(settings, lambda client: client.range(request))))


def _delete(arguments: tuple[str, ...], **options: Any) -> None:
    settings = settings_of(click.get_current_context())
    printer = key_value_printer(settings)
    request = requests.delete_request(arguments, options)
    write(printer.delete(execute(settings, lambda client: client.call(methods.DELETE_RANGE, request))))


def _compaction(arguments: tuple[str, ...], physical: bool) -> None:
    settings = settings_of(click.get_current_context())
    if len(arguments) != 1:
        raise CliError("compaction command needs 1 argument", ExitCode.BAD_ARGUMENTS)
    try:
        revision = parse_int(arguments[0])
    except GoSyntaxError as error:
        raise CliError(str(error)) from None
    execute(settings, lambda client: client.compact(revision, physical=physical))
    write(b"compacted revision %d\n" % revision)


put = make_command(
    "put",
    flags=requests.PUT_FLAGS,
    arguments="<key> [<value>]",
    summary="Puts the given key into the store",
    help_text=PUT_HELP,
    run=_put,
)
get = make_command("get", flags=requests.GET_FLAGS, arguments="<key> [<range_end>]", summary="Gets the key or a range of keys", run=_get)
delete = make_command(
    "del",
    flags=requests.DEL_FLAGS,
    arguments="<key> [<range_end>]",
    summary="Removes the specified key or range of keys [key, range_end)",
    run=_delete,
)
compaction = make_command(
    "compaction", flags=COMPACTION_FLAGS, arguments="<revision>", summary="Compacts the event history", run=_compaction
)
