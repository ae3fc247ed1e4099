"""Notations of Go's standard library that etcdctl's users type and read: quoted strings, durations, booleans, integers, byte sizes.

Rules: pure functions on `str` and `bytes`. Parsing raises `GoSyntaxError` with the text that Go gives, because it becomes part of an error
message that scripts may know. Keys and values are bytes; where they meet `str` it is UTF-8 with surrogateescape, which loses nothing.
Source: the documentation of Go's strconv, time and fmt packages, and go-humanize's for sizes.
"""

from __future__ import annotations

import math
import re
from typing import Final

from kvserver.errors import KvError

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
UINT64_MAX: Final = 2**64 - 1

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_UNIT_NS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)?")
_ESCAPES: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 0x5C, '"': 0x22}
_SHORT_ESCAPES: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_QUOTED_PART: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|([abfnrtv\\\"]))|([^\\\"\n])")
_SIZE_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


class GoSyntaxError(KvError):
    """The text isn't what the notation asks for; `str()` is Go's own wording."""


def to_bytes(text: str) -> bytes:
    """An argument as the bytes that the shell passed."""
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """The inverse of `to_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def parse_bool(text: str) -> bool:
    """Go's ParseBool."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise GoSyntaxError(f"strconv.ParseBool: parsing {quote(to_bytes(text))}: invalid syntax")


def parse_int(text: str, base: int = 10) -> int:
    """Go's ParseInt for 64 bits; no spaces, no underscores. Base 0 takes decimal and 0x."""
    failed = f"strconv.ParseInt: parsing {quote(to_bytes(text))}: "
    digits = text[1:] if text[:1] in ("+", "-") else text
    if base == 0:
        base, digits = (16, digits[2:]) if digits[:2] in ("0x", "0X") else (10, digits)
    allowed = "0123456789abcdef"[:base]
    if not digits or any(char not in allowed for char in digits.lower()):
        raise GoSyntaxError(failed + "invalid syntax")
    value = -int(digits, base) if text.startswith("-") else int(digits, base)
    if not INT64_MIN <= value <= INT64_MAX:
        raise GoSyntaxError(failed + "value out of range")
    return value


def parse_uint(text: str, base: int = 10) -> int:
    """Go's ParseUint for 64 bits: digits only, neither sign nor prefix."""
    failed = f"strconv.ParseUint: parsing {quote(to_bytes(text))}: "
    allowed = "0123456789abcdef"[:base]
    if not text or any(char not in allowed for char in text.lower()):
        raise GoSyntaxError(failed + "invalid syntax")
    value = int(text, base)
    if value > UINT64_MAX:
        raise GoSyntaxError(failed + "value out of range")
    return value


def parse_duration_s(text: str) -> float:
    """Go's ParseDuration (`1h30m`, `500ms`), in seconds."""
    quoted = quote(to_bytes(text))
    rest = text.removeprefix("+").removeprefix("-") if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise GoSyntaxError(f"time: invalid duration {quoted}")
    total_ns = 0.0
    while rest:
        part = _DURATION_PART.match(rest)
        if part is None:
            raise GoSyntaxError(f"time: invalid duration {quoted}")
        if part[2] is None:
            unit = re.match(r"[^\d.]*", rest[part.end() :])
            if unit and unit[0]:
                raise GoSyntaxError(f"time: unknown unit {quote(to_bytes(unit[0]))} in duration {quoted}")
            raise GoSyntaxError(f"time: missing unit in duration {quoted}")
        total_ns += float(part[1]) * _UNIT_NS[part[2]]
        rest = rest[part.end() :]
    return (-total_ns if text.startswith("-") else total_ns) / 1e9


def format_duration(duration_ns: int) -> str:
    """Go's Duration.String: `0s`, `1.5µs`, `2.179755ms`, `5.000386326s`, `1m30s`."""
    if duration_ns < 0:
        return f"-{format_duration(-duration_ns)}"
    if duration_ns == 0:
        return "0s"
    for unit, scale in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if duration_ns < scale * 1_000:
            return _fraction(duration_ns, scale) + unit
    minutes, left_ns = divmod(duration_ns, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    seconds = _fraction(left_ns, 10**9) + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _fraction(value: int, scale: int) -> str:
    whole, part = divmod(value, scale)
    if not part:
        return str(whole)
    return f"{whole}.{str(part).zfill(len(str(scale)) - 1).rstrip('0')}"


def quote(data: bytes) -> str:
    """Go's %q: double quotes, printable characters as they are, bytes that are not UTF-8 as `\\xNN`."""
    return '"' + "".join(_quoted(char) for char in to_text(data)) + '"'


def _quoted(char: str) -> str:
    code = ord(char)
    if code in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[code]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that wasn't UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable():
        return char
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(literal: str) -> bytes:
    """The bytes of a Go string literal, in double quotes with escapes or raw in backquotes."""
    if len(literal) >= 2 and literal[0] == literal[-1] == "`":
        return to_bytes(literal[1:-1].replace("\r", ""))
    if len(literal) < 2 or literal[0] != '"' or literal[-1] != '"':
        raise GoSyntaxError("invalid syntax")
    inner, position, result = literal[1:-1], 0, bytearray()
    while position < len(inner):
        part = _QUOTED_PART.match(inner, position)
        if part is None:
            raise GoSyntaxError("invalid syntax")
        result += _unescaped(part)
        position = part.end()
    return bytes(result)


def _unescaped(part: re.Match[str]) -> bytes:
    byte_hex, short_hex, long_hex, octal, letter, plain = part.groups()
    if plain is not None:
        return to_bytes(plain)
    if letter is not None:
        return bytes([_ESCAPES[letter]])
    if byte_hex is not None or octal is not None:
        value = int(byte_hex, 16) if byte_hex is not None else int(octal, 8)
        if value > 0xFF:
            raise GoSyntaxError("invalid syntax")
        return bytes([value])
    code = int(short_hex or long_hex, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise GoSyntaxError("invalid syntax")
    return chr(code).encode()


def humanize_bytes(size_bytes: int) -> str:
    """A size in decimal units with at most one decimal, rounded half up: `9 B`, `20 kB`, `1.0 MB`."""
    if size_bytes < 10:
        return f"{size_bytes} B"
    exponent = min(math.floor(math.log(size_bytes) / math.log(1000)), len(_SIZE_UNITS) - 1)
    value = math.floor(size_bytes / 1000**exponent * 10 + 0.5) / 10
    return f"{value:.1f} {_SIZE_UNITS[exponent]}" if value < 10 else f"{value:.0f} {_SIZE_UNITS[exponent]}"
