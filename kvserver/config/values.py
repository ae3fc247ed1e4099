"""How the text of a flag becomes a value: one reader per kind.

Rules: a reader takes the text and returns a value or raises `ValueSyntaxError`; it knows neither the flag nor the exit code. Booleans and
durations are read as Go reads them (`t`, `TRUE`, `1`; `1h30m`, `1.5s`), because that is what operators of etcd write. Sizes are bytes, or a
number with a unit: `KiB`, `MiB`, `GiB` are powers of 1024, `KB`, `MB`, `GB` powers of 1000.
"""

from __future__ import annotations

import re
from enum import Enum

from kvserver.config.errors import ValueSyntaxError
from kvserver.config.urls import parse_initial_cluster, parse_urls

__all__ = ["ValueKind", "read_value"]


class ValueKind(Enum):
    """The kinds of values a flag may have; the value is what the help text shows."""

    TEXT = "text"
    LIST = "list"
    BOOL = "bool"
    INT = "int"
    SIZE = "size"
    MILLISECONDS = "ms"
    DURATION = "duration"
    URLS = "urls"
    CLUSTER = "cluster"


_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INT = re.compile(r"[+-]?[0-9]{1,19}")
_SIZE = re.compile(r"([0-9]{1,19})\s*([A-Za-z]*)")
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DURATION_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read_value(kind: ValueKind, text: str) -> object:
    """Read `text` as `kind`; the type of the result is the one that the kind's reader states.

    Raises `ValueSyntaxError`.
    """
    return _READERS[kind](text)


def read_bool(text: str) -> bool:
    """Read a boolean as Go's flag package does."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueSyntaxError(f"{text!r} is not a boolean (true or false)")


def read_int(text: str) -> int:
    """Read a decimal integer."""
    if not _INT.fullmatch(text):
        raise ValueSyntaxError(f"{text!r} is not an integer")
    return int(text)


def read_size(text: str) -> int:
    """Read a number of bytes: `1048576`, `1MiB`, `1MB`; a negative plain number is let through, so that its flag can name its range."""
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is not None and unit is not None:
        return int(match[1]) * unit
    if _INT.fullmatch(text):
        return int(text)
    raise ValueSyntaxError(f"{text!r} is not a size (bytes, or a number with KiB, MiB, GiB, KB, MB, GB)")


def read_duration_s(text: str) -> float:
    """Read a duration such as `10s`, `1h30m` or `0`, in seconds."""
    if text == "0":
        return 0.0
    position = 0
    total_s = 0.0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None:
            break
        total_s += float(match[1]) * _DURATION_UNITS_S[match[2]]
        position = match.end()
    if not text or position < len(text):
        raise ValueSyntaxError(f"{text!r} is not a duration (such as 500ms, 10s, 1h30m)")
    return total_s


def read_text(text: str) -> str:
    """Any text; a NUL or a line break can't be part of a name or a path."""
    if any(character in text for character in "\0\n\r"):
        raise ValueSyntaxError(f"{text!r} contains control characters")
    return text


def read_list(text: str) -> tuple[str, ...]:
    """A comma-separated list without its empty parts."""
    return tuple(filter(None, (part.strip() for part in read_text(text).split(","))))


_READERS = {
    ValueKind.TEXT: read_text,
    ValueKind.LIST: read_list,
    ValueKind.BOOL: read_bool,
    ValueKind.INT: read_int,
    ValueKind.SIZE: read_size,
    ValueKind.MILLISECONDS: read_int,
    ValueKind.DURATION: read_duration_s,
    ValueKind.URLS: parse_urls,
    ValueKind.CLUSTER: parse_initial_cluster,
}
