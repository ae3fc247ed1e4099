"""Which printer a format has for what; where it has none, the error says so before anything is sent."""

from __future__ import annotations

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.output.types import AlarmPrinter, ChangePrinter, EndpointPrinter, KeyValuePrinter, MemberPrinter
from kvserver.cli.settings import Settings


def key_value_printer(settings: Settings, *, values_only: bool = False) -> KeyValuePrinter:
    """For put, get, del and txn."""
    match settings.write_out:
        case "simple":
            from kvserver.cli.output.simple import SimplePrinter

            return SimplePrinter(hex_output=settings.hex, values_only=values_only)
        case "json":
            from kvserver.cli.output.json import JsonPrinter

            return JsonPrinter()
        case "fields":
            from kvserver.cli.output.fields import FieldsPrinter

            return FieldsPrinter()
        case "protobuf":
            from kvserver.cli.output.protobuf import ProtobufPrinter

            return ProtobufPrinter()
    raise _unsupported(settings.write_out)


def member_printer(settings: Settings) -> MemberPrinter:
    """For member list."""
    match settings.write_out:
        case "simple":
            from kvserver.cli.output.simple import SimplePrinter

            return SimplePrinter(hex_output=settings.hex)
        case "json":
            from kvserver.cli.output.json import JsonPrinter

            return JsonPrinter()
        case "fields":
            from kvserver.cli.output.fields import FieldsPrinter

            return FieldsPrinter()
        case "table":
            from kvserver.cli.output.table import TablePrinter

            return TablePrinter()
        case "protobuf":
            from kvserver.cli.output.protobuf import ProtobufPrinter

            return ProtobufPrinter()
    raise _unsupported(settings.write_out)


def change_printer(settings: Settings) -> ChangePrinter:
    """For the member commands that change the cluster, and for move-leader."""
    match settings.write_out:
        case "simple":
            from kvserver.cli.output.simple import SimplePrinter

            return SimplePrinter(hex_output=settings.hex)
        case "json":
            from kvserver.cli.output.json import JsonPrinter

            return JsonPrinter()
        case "protobuf":
            from kvserver.cli.output.protobuf import ProtobufPrinter

            return ProtobufPrinter()
    raise _unsupported(settings.write_out)


def alarm_printer(settings: Settings) -> AlarmPrinter:
    """For the alarm commands."""
    match settings.write_out:
        case "simple":
            from kvserver.cli.output.simple import SimplePrinter

            return SimplePrinter(hex_output=settings.hex)
        case "json":
            from kvserver.cli.output.json import JsonPrinter

            return JsonPrinter()
        case "fields":
            from kvserver.cli.output.fields import FieldsPrinter

            return FieldsPrinter()
        case "protobuf":
            from kvserver.cli.output.protobuf import ProtobufPrinter

            return ProtobufPrinter()
    raise _unsupported(settings.write_out)


def endpoint_printer(settings: Settings) -> EndpointPrinter:
    """For the endpoint commands."""
    match settings.write_out:
        case "simple":
            from kvserver.cli.output.simple import SimplePrinter

            return SimplePrinter(hex_output=settings.hex)
        case "json":
            from kvserver.cli.output.json import JsonPrinter

            return JsonPrinter()
        case "fields":
            from kvserver.cli.output.fields import FieldsPrinter

            return FieldsPrinter()
        case "table":
            from kvserver.cli.output.table import TablePrinter

            return TablePrinter()
    raise _unsupported(settings.write_out)


def _unsupported(write_out: str) -> CliError:
    return CliError(f"{write_out} not supported as output format", ExitCode.BAD_FEATURE)
