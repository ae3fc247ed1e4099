"""From the flags and arguments of put, get and del to the requests they stand for.

Rules: pure; used by the commands and by the lines of a txn alike. The checks, their order and their texts are etcdctl's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag
from kvserver.cli.golang import GoSyntaxError, parse_int, quote, to_bytes
from kvserver.client.ranges import EVERYTHING_FROM_KEY, prefix_end
from kvserver.pb import rpc_pb2 as pb

ValueT = TypeVar("ValueT")

PUT_FLAGS: Final = (
    Flag(name="lease", default="0", help="lease ID (in hexadecimal) to attach to the key"),
    Flag(name="prev-kv", kind="bool", help="return the previous key-value pair"),
    Flag(name="ignore-value", kind="bool", help="keep the value that the key has"),
    Flag(name="ignore-lease", kind="bool", help="keep the lease that the key has"),
)

GET_FLAGS: Final = (
    Flag(name="consistency", default="l", help="linearizable (l) or serializable (s)"),
    Flag(name="order", help="order of results: ASCEND or DESCEND (ASCEND by default)"),
    Flag(name="sort-by", help="sort by CREATE, KEY, MODIFY, VALUE or VERSION"),
    Flag(name="limit", kind="int", default="0", help="most results to return (0: all)"),
    Flag(name="prefix", kind="bool", help="all keys that start with the given one"),
    Flag(name="from-key", kind="bool", help="all keys greater than or equal to the given one, compared as bytes"),
    Flag(name="rev", kind="int", default="0", help="read as of this revision (0: the newest)"),
    Flag(name="keys-only", kind="bool", help="only the keys"),
    Flag(name="count-only", kind="bool", help="only the count; with --write-out=fields, json or protobuf"),
    Flag(name="print-value-only", kind="bool", help="only the values; with --write-out=simple"),
    Flag(name="min-mod-rev", kind="int", default="0", help="only keys last modified at this revision or later"),
    Flag(name="max-mod-rev", kind="int", default="0", help="only keys last modified at this revision or earlier"),
    Flag(name="min-create-rev", kind="int", default="0", help="only keys created at this revision or later"),
    Flag(name="max-create-rev", kind="int", default="0", help="only keys created at this revision or earlier"),
)

DEL_FLAGS: Final = (
    Flag(name="prefix", kind="bool", help="all keys that start with the given one"),
    Flag(name="from-key", kind="bool", help="all keys greater than or equal to the given one, compared as bytes"),
    Flag(name="prev-kv", kind="bool", help="return the deleted key-value pairs"),
    Flag(name="range", kind="bool", help="accepted for etcdctl's sake: two arguments are always a range"),
)

PUT_NEEDS: Final = "put command needs 1 argument and input from stdin or 2 arguments"

_ORDERS: Final = {"": pb.RangeRequest.NONE, "ASCEND": pb.RangeRequest.ASCEND, "DESCEND": pb.RangeRequest.DESCEND}
_TARGETS: Final = {
    "": pb.RangeRequest.KEY,
    "CREATE": pb.RangeRequest.CREATE,
    "KEY": pb.RangeRequest.KEY,
    "MODIFY": pb.RangeRequest.MOD,
    "VALUE": pb.RangeRequest.VALUE,
    "VERSION": pb.RangeRequest.VERSION,
}


def put_request(arguments: Sequence[str], options: dict[str, Any], read_stdin: Callable[[], bytes]) -> pb.PutRequest:
    """A put; the value comes from `read_stdin` when it isn't among the arguments."""
    if not arguments:
        raise _bad(PUT_NEEDS)
    if options["ignore_value"] and len(arguments) > 1:
        raise _bad("put command needs only 1 argument when 'ignore-value' is set")
    value = b""
    if len(arguments) > 1:
        value = to_bytes(arguments[1])
    elif not options["ignore_value"]:
        value = read_stdin()
        if not value:
            raise _bad(PUT_NEEDS)
    try:
        lease = parse_int(options["lease"], 16)
    except GoSyntaxError as error:
        raise _bad(f"bad lease ID ({error}), expecting ID in Hex") from None
    return pb.PutRequest(
        key=to_bytes(arguments[0]),
        value=value,
        lease=lease,
        prev_kv=options["prev_kv"],
        ignore_value=options["ignore_value"],
        ignore_lease=options["ignore_lease"],
    )


def range_request(arguments: Sequence[str], options: dict[str, Any]) -> pb.RangeRequest:
    """A get."""
    if not arguments:
        raise _bad("get command needs one argument as key and an optional argument as range_end")
    _check_range(arguments, options)
    if options["keys_only"] and options["count_only"]:
        raise _bad("`--keys-only` and `--count-only` cannot be set at the same time, choose one")
    if options["consistency"] not in ("l", "s"):
        raise CliError(f"unknown consistency flag {quote(to_bytes(options['consistency']))}", ExitCode.BAD_FEATURE)
    key, range_end = _key_range(arguments, options)
    return pb.RangeRequest(
        key=key,
        range_end=range_end,
        limit=options["limit"],
        revision=max(0, options["rev"]),
        sort_order=_chosen(_ORDERS, options["order"], "order"),
        sort_target=_chosen(_TARGETS, options["sort_by"], "target"),
        serializable=options["consistency"] == "s",
        keys_only=options["keys_only"],
        count_only=options["count_only"],
        min_mod_revision=options["min_mod_rev"],
        max_mod_revision=options["max_mod_rev"],
        min_create_revision=options["min_create_rev"],
        max_create_revision=options["max_create_rev"],
    )


def delete_request(arguments: Sequence[str], options: dict[str, Any]) -> pb.DeleteRangeRequest:
    """A del."""
    if not 1 <= len(arguments) <= 2:
        raise _bad("del command needs one argument as key and an optional argument as range_end")
    _check_range(arguments, options)
    key, range_end = _key_range(arguments, options)
    return pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=options["prev_kv"])


def _check_range(arguments: Sequence[str], options: dict[str, Any]) -> None:
    if options["prefix"] and options["from_key"]:
        raise _bad("`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if len(arguments) > 1 and (options["prefix"] or options["from_key"]):
        raise _bad("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")


def _key_range(arguments: Sequence[str], options: dict[str, Any]) -> tuple[bytes, bytes]:
    key = to_bytes(arguments[0])
    if options["prefix"] or options["from_key"]:
        return key or b"\x00", prefix_end(key) if options["prefix"] else EVERYTHING_FROM_KEY
    return key, to_bytes(arguments[1]) if len(arguments) > 1 else b""


def _chosen(table: Mapping[str, ValueT], text: str, what: str) -> ValueT:
    try:
        return table[text.upper()]
    except KeyError:
        raise CliError(f"bad sort {what} {text}", ExitCode.BAD_FEATURE) from None


def _bad(text: str) -> CliError:
    return CliError(text, ExitCode.BAD_ARGUMENTS)
