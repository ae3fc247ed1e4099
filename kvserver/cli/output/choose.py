"""Which printer a format has for what; where it has none, the error says so before anything is sent.

Rules: one row for each kind of answer, one entry for each format that can show it. Formats are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.output.types import (
    AlarmPrinter,
    ChangePrinter,
    EndpointPrinter,
    KeyValuePrinter,
    LeasePrinter,
    MemberPrinter,
    WatchPrinter,
)
from kvserver.cli.settings import Settings

if TYPE_CHECKING:
    from kvserver.cli.output.fields import FieldsPrinter
    from kvserver.cli.output.json import JsonPrinter
    from kvserver.cli.output.protobuf import ProtobufPrinter
    from kvserver.cli.output.simple import SimplePrinter
    from kvserver.cli.output.table import TablePrinter

PrinterT = TypeVar("PrinterT")


def _simple(settings: Settings, values_only: bool) -> SimplePrinter:
    from kvserver.cli.output.simple import SimplePrinter

    return SimplePrinter(hex_output=settings.hex, values_only=values_only)


def _json(settings: Settings, values_only: bool) -> JsonPrinter:
    from kvserver.cli.output.json import JsonPrinter

    return JsonPrinter()


def _fields(settings: Settings, values_only: bool) -> FieldsPrinter:
    from kvserver.cli.output.fields import FieldsPrinter

    return FieldsPrinter()


def _table(settings: Settings, values_only: bool) -> TablePrinter:
    from kvserver.cli.output.table import TablePrinter

    return TablePrinter()


def _protobuf(settings: Settings, values_only: bool) -> ProtobufPrinter:
    from kvserver.cli.output.protobuf import ProtobufPrinter

    return ProtobufPrinter()


_KEY_VALUE: Final[Mapping[str, Callable[[Settings, bool], KeyValuePrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "protobuf": _protobuf,
}
_WATCH: Final[Mapping[str, Callable[[Settings, bool], WatchPrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "protobuf": _protobuf,
}
_MEMBER: Final[Mapping[str, Callable[[Settings, bool], MemberPrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "table": _table,
    "protobuf": _protobuf,
}
_CHANGE: Final[Mapping[str, Callable[[Settings, bool], ChangePrinter]]] = {"simple": _simple, "json": _json, "protobuf": _protobuf}
_ALARM: Final[Mapping[str, Callable[[Settings, bool], AlarmPrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "protobuf": _protobuf,
}
_LEASE: Final[Mapping[str, Callable[[Settings, bool], LeasePrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "protobuf": _protobuf,
}
_ENDPOINT: Final[Mapping[str, Callable[[Settings, bool], EndpointPrinter]]] = {
    "simple": _simple,
    "json": _json,
    "fields": _fields,
    "table": _table,
}


def key_value_printer(settings: Settings, *, values_only: bool = False) -> KeyValuePrinter:
    """For put, get, del and txn."""
    return _choose(_KEY_VALUE, settings, values_only)


def watch_printer(settings: Settings) -> WatchPrinter:
    """For watch."""
    return _choose(_WATCH, settings)


def member_printer(settings: Settings) -> MemberPrinter:
    """For member list."""
    return _choose(_MEMBER, settings)


def change_printer(settings: Settings) -> ChangePrinter:
    """For the member commands that change the cluster, and for move-leader."""
    return _choose(_CHANGE, settings)


def alarm_printer(settings: Settings) -> AlarmPrinter:
    """For the alarm commands."""
    return _choose(_ALARM, settings)


def lease_printer(settings: Settings) -> LeasePrinter:
    """For the lease commands."""
    return _choose(_LEASE, settings)


def endpoint_printer(settings: Settings) -> EndpointPrinter:
    """For the endpoint commands."""
    return _choose(_ENDPOINT, settings)


def _choose(row: Mapping[str, Callable[[Settings, bool], PrinterT]], settings: Settings, values_only: bool = False) -> PrinterT:
    make = row.get(settings.write_out)
    if make is None:
        raise CliError(f"{settings.write_out} not supported as output format", ExitCode.BAD_FEATURE)
    return make(settings, values_only)
