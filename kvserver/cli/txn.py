"""txn: a transaction read from standard input (the grammar stands in `TXN_HELP`).

Rules: nothing is sent unless all three sections are complete and well-formed. Where etcdctl panics (unknown operator, lease compares), this
reports an error or does what was meant.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import click

from kvserver.cli import requests
from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagCommand
from kvserver.cli.golang import GoSyntaxError, parse_int, quote, to_text, unquote
from kvserver.cli.output import key_value_printer
from kvserver.cli.run import execute, settings_of, write
from kvserver.pb import rpc_pb2 as pb

TXN_FLAGS: Final = (Flag(name="interactive", kind="bool", letter="i", help="prompt for each section"),)

TXN_HELP: Final = """Processes all the requests in one transaction, read from standard input.

Three sections, each ended by an empty line: compares, requests if all of them hold, requests if not.

\b
compare:   <target>("<key>") <operator> "<value>"
target:    ver|version, c|create, m|mod, val|value, lease (hexadecimal)
operator:  = != > <
request:   put, get or del with their own arguments and flags

Arguments may stand in single quotes (as they are) or in double quotes (with Go's escapes).
"""

_LITERAL: Final = r'"(?:[^"\\\n]|\\.)*"|`[^`]*`'
_KEY: Final = re.compile(rf"\s*({_LITERAL})")
_OPERATOR: Final = re.compile(r"\)\s+(\S+)")
_VALUE: Final = re.compile(rf"\s+({_LITERAL})")
_WORD: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[^\'"\s]\S*[^\'"\s]?')

_RESULTS: Final = {"=": pb.Compare.EQUAL, "!=": pb.Compare.NOT_EQUAL, ">": pb.Compare.GREATER, "<": pb.Compare.LESS}


def _txn(arguments: tuple[str, ...], interactive: bool) -> None:
    settings = settings_of(click.get_current_context())
    if arguments:
        raise CliError("txn command does not accept argument", ExitCode.BAD_ARGUMENTS)
    printer = key_value_printer(settings)
    request = read_txn(sys.stdin.buffer, (lambda text: write(text.encode() + b"\n")) if interactive else (lambda _: None))
    write(printer.txn(execute(settings, lambda client: client.txn(request))))


def read_txn(stream: BinaryIO, prompt: Callable[[str], None]) -> pb.TxnRequest:
    """The transaction that the stream spells; `prompt` is told what comes next. Raises `CliError`."""
    request = pb.TxnRequest()
    prompt("compares:")
    request.compare.extend(parse_compare(line) for line in _section(stream))
    prompt("success requests (get, put, del):")
    request.success.extend(parse_op(line) for line in _section(stream))
    prompt("failure requests (get, put, del):")
    request.failure.extend(parse_op(line) for line in _section(stream))
    return request


def _section(stream: BinaryIO) -> Iterator[str]:
    """The lines up to an empty one, stripped. A section that just ends is incomplete input."""
    while True:
        raw = stream.readline()
        if not raw.endswith(b"\n"):
            raise CliError("EOF", ExitCode.INVALID_INPUT)
        line = to_text(raw).strip()
        if not line:
            return
        yield line


def parse_compare(line: str) -> pb.Compare:
    """One predicate. Raises `CliError` with code 3."""
    target, parenthesis, rest = line.partition("(")
    if not parenthesis:
        raise _invalid(f"malformed comparison: {line}")
    key, operator, value = _scan_compare(rest)
    if value is None:
        seen = f"{target}({quote(key or b'')}) {operator} {quote(b'')}"
        raise _invalid(f"malformed comparison: {line}; got {seen}")
    if operator not in _RESULTS:
        raise _invalid(f"malformed comparison: {line} (unknown operator {operator})")
    compare = pb.Compare(key=key or b"", result=_RESULTS[operator])
    _set_target(compare, target, value, line)
    return compare


def _scan_compare(text: str) -> tuple[bytes | None, str, bytes | None]:
    """Key, operator and value of `"key") op "value"`; what couldn't be read is None, or empty for the operator."""
    try:
        if (key := _KEY.match(text)) is None:
            return None, "", None
        key_bytes = unquote(key[1])
        if (operator := _OPERATOR.match(text, key.end())) is None:
            return key_bytes, "", None
        if (value := _VALUE.match(text, operator.end())) is None:
            return key_bytes, operator[1], None
        return key_bytes, operator[1], unquote(value[1])
    except GoSyntaxError:
        return None, "", None


def _set_target(compare: pb.Compare, target: str, value: bytes, line: str) -> None:
    try:
        match target:
            case "ver" | "version":
                compare.target, compare.version = pb.Compare.VERSION, parse_int(to_text(value))
            case "c" | "create":
                compare.target, compare.create_revision = pb.Compare.CREATE, parse_int(to_text(value))
            case "m" | "mod":
                compare.target, compare.mod_revision = pb.Compare.MOD, parse_int(to_text(value))
            case "val" | "value":
                compare.target, compare.value = pb.Compare.VALUE, value
            case "lease":
                compare.target, compare.lease = pb.Compare.LEASE, parse_int(to_text(value), 16)
            case _:
                raise _invalid(f"malformed comparison: {line} (unknown target {target})")
    except GoSyntaxError:
        raise _invalid(f"invalid txn compare request: {line}") from None


def parse_op(line: str) -> pb.RequestOp:
    """One put, get or del. Raises `CliError`."""
    words = split_words(line)
    if len(words) < 2:
        raise _invalid(f"invalid txn compare request: {line}")
    command = _op_commands().get(words[0])
    if command is None:
        raise _invalid(f"invalid txn request: {line}")
    try:
        params = dict(command.make_context(words[0], words[1:]).params)
    except (click.ClickException, click.exceptions.Exit, CliError):
        raise _invalid(f"invalid txn request: {line}") from None
    return _op(words[0], params.pop("arguments"), params)


def _op(name: str, arguments: tuple[str, ...], options: dict[str, Any]) -> pb.RequestOp:
    if name == "put":
        return pb.RequestOp(request_put=requests.put_request(arguments, options, lambda: b""))
    if name == "get":
        return pb.RequestOp(request_range=requests.range_request(arguments, options))
    return pb.RequestOp(request_delete_range=requests.delete_request(arguments, options))


def _op_commands() -> dict[str, FlagCommand]:
    rows = {"put": requests.PUT_FLAGS, "get": requests.GET_FLAGS, "del": requests.DEL_FLAGS}
    return {name: make_command(name, flags=_meaningful(flags), inherited=()) for name, flags in rows.items()}


def _meaningful(flags: tuple[Flag, ...]) -> tuple[Flag, ...]:
    """Without what only concerns printing."""
    return tuple(flag for flag in flags if flag.name != "print-value-only")


def split_words(line: str) -> list[str]:
    """Words of a line; quoted ones without their quotes. Raises `CliError` for a broken literal."""
    words = []
    for word in _WORD.findall(line):
        if word.startswith("'"):
            words.append(word[1:-1])
        elif word.startswith('"'):
            try:
                words.append(to_text(unquote(word)))
            except GoSyntaxError as error:
                raise _invalid(str(error)) from None
        else:
            words.append(word)
    return words


def _invalid(text: str) -> CliError:
    return CliError(text, ExitCode.INVALID_INPUT)


txn = make_command("txn", flags=TXN_FLAGS, summary="Processes all the requests in one transaction", help_text=TXN_HELP, run=_txn)
