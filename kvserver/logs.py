"""Structured logs: one JSON object per line.

Purpose: the one logger of kvserver. A line has `level`, `ts` (RFC 3339, UTC, milliseconds), `caller` (file:line), `msg`, then the
fields that were bound and those of the event, so that what reads etcd's logs reads these.

Rules
- A `Logger` is passed to whoever logs; there is no global one. `bind` gives a logger with more fields and the same destination.
- Nothing per request above debug. A level that is off costs one comparison.
- A field may be anything: what JSON does not know is shown by `str`, bytes as text where they are text, and a field that can't even be
  shown is shown as its type. A logger never raises because of what it is given.
- A destination that fails (a full disk, a closed pipe) loses the line and is counted in `lost_lines`: a log must not stop a node.

Libraries that use the standard logging module are caught by `StdlibBridge`; raft's log sink is `RaftLogSink`.

Source: zap's production encoding, for the names and order of the keys.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, Protocol, TextIO

from kvserver.clock import Clock, SystemClock

__all__ = ["Level", "LogOutput", "Logger", "RaftLogSink", "StdlibBridge", "StreamOutput", "open_outputs"]

_MAX_FIELD_CHARS: Final = 16 * 1024
"""A longer text in a field is cut: a log line must not hold a value of the store."""

_OWN_KEYS: Final = frozenset({"level", "ts", "caller", "msg"})


class Level(IntEnum):
    """Severities, least severe first."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50

    @classmethod
    def named(cls, name: str) -> Level:
        """The level of `--log-level`; `dpanic` and `panic` are `fatal`. Raises `KeyError` for another name."""
        return {"debug": cls.DEBUG, "info": cls.INFO, "warn": cls.WARN, "error": cls.ERROR}.get(name) or {
            "dpanic": cls.FATAL,
            "panic": cls.FATAL,
            "fatal": cls.FATAL,
        }[name]


class LogOutput(Protocol):
    """Where lines go."""

    def write_line(self, line: str) -> None:
        """Write one line (without its line break). Raises `OSError` or `ValueError` when it can't."""


class StreamOutput:
    """Lines to one or several text streams, each flushed per line."""

    def __init__(self, streams: Sequence[TextIO]) -> None:
        self._streams = tuple(streams)

    def write_line(self, line: str) -> None:
        """Write the line to every stream."""
        for stream in self._streams:
            stream.write(line + "\n")
            stream.flush()

    def close(self) -> None:
        """Close the files among the streams."""
        for stream in self._streams:
            if stream not in (sys.stdout, sys.stderr):
                stream.close()


def open_outputs(names: Sequence[str]) -> StreamOutput:
    """The streams that `--log-outputs` names: `default` and `stderr`, `stdout`, or paths of files to append to.

    Raises `OSError` when a file can't be opened.
    """
    streams: list[TextIO] = []
    for name in names:
        if name in ("default", "stderr"):
            streams.append(sys.stderr)
        elif name == "stdout":
            streams.append(sys.stdout)
        else:
            streams.append(open(name, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115 - lives as long as the process
    return StreamOutput(streams)


class _Core:
    """What all loggers bound from one share."""

    __slots__ = ("clock", "level", "lost_lines", "output")

    def __init__(self, output: LogOutput, level: Level, clock: Clock) -> None:
        self.output = output
        self.level = level
        self.clock = clock
        self.lost_lines = 0


class Logger:
    """A destination, a least level and bound fields."""

    __slots__ = ("_core", "_fields")

    def __init__(self, output: LogOutput, *, level: Level = Level.INFO, clock: Clock | None = None) -> None:
        self._core = _Core(output, level, clock if clock is not None else SystemClock())
        self._fields: dict[str, object] = {}

    @property
    def level(self) -> Level:
        """The least level that is written."""
        return self._core.level

    @property
    def lost_lines(self) -> int:
        """How many lines the destination did not take."""
        return self._core.lost_lines

    def bind(self, **fields: object) -> Logger:
        """A logger whose lines also carry `fields`."""
        bound = Logger.__new__(Logger)
        bound._core = self._core
        bound._fields = {**self._fields, **fields}
        return bound

    def enabled(self, level: Level) -> bool:
        """Whether a line of this level would be written; for fields that cost something to compute."""
        return level >= self._core.level

    def debug(self, event: str, /, **fields: object) -> None:
        """What a developer wants to know."""
        if self._core.level <= Level.DEBUG:
            self._write(Level.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """What an operator may want to know."""
        if self._core.level <= Level.INFO:
            self._write(Level.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """What an operator should look at."""
        if self._core.level <= Level.WARN:
            self._write(Level.WARN, event, fields)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: object) -> None:
        """What failed; `error` adds its text and its traceback."""
        if self._core.level <= Level.ERROR:
            self._write(Level.ERROR, event, {**fields, **_error_fields(error)})

    def fatal(self, event: str, /, *, error: BaseException | None = None, **fields: object) -> None:
        """Why the process ends; the caller ends it."""
        self._write(Level.FATAL, event, {**fields, **_error_fields(error)})

    def log(self, level: Level, event: str, /, *, caller: str, **fields: object) -> None:
        """A line on behalf of somebody else, with their position in the source."""
        if level >= self._core.level:
            self._write(level, event, fields, caller)

    def _write(self, level: Level, event: str, fields: dict[str, object], caller: str = "") -> None:
        core = self._core
        record: dict[str, object] = {
            "level": level.name.lower(),
            "ts": _timestamp(core.clock.wall_ns()),
            "caller": caller or _caller(),
            "msg": event,
        }
        for key, value in (*self._fields.items(), *fields.items()):
            record[key if key not in _OWN_KEYS else f"{key}_"] = value if type(value) is not str else value[:_MAX_FIELD_CHARS]
        try:
            core.output.write_line(_encode(record))
        except (OSError, ValueError):  # ValueError: the stream is closed
            core.lost_lines += 1


def _timestamp(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _caller() -> str:
    frame = sys._getframe(3)  # _caller, _write, info and its like, the caller
    path = frame.f_code.co_filename
    return f"{os.path.basename(os.path.dirname(path))}/{os.path.basename(path)}:{frame.f_lineno}"


def _error_fields(error: BaseException | None) -> dict[str, object]:
    if error is None:
        return {}
    return {"error": str(error) or type(error).__name__, "stacktrace": "".join(traceback.format_exception(error))}


def _encode(record: dict[str, object]) -> str:
    try:
        return json.dumps(record, allow_nan=False, default=_show, separators=(",", ":"))
    except Exception:  # noqa: BLE001 - whatever a field's own code raises; the line is written without that field's help
        return json.dumps({str(key): _show_safely(value) for key, value in record.items()}, separators=(",", ":"))


def _show(value: object) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[:_MAX_FIELD_CHARS]).decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)[:_MAX_FIELD_CHARS]


def _show_safely(value: object) -> str:
    try:
        return str(value)[:_MAX_FIELD_CHARS].encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - a __str__ that raises
        return f"<{type(value).__name__}>"


class StdlibBridge(logging.Handler):
    """Lines of the standard logging module (asyncio, grpc, uvicorn) as lines of ours, no matter which logger they went to."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; its library is the field `logger`."""
        level = Level(min(max(record.levelno // 10 * 10, Level.DEBUG), Level.FATAL))
        fields = _error_fields(record.exc_info[1]) if record.exc_info else {}
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a format string that does not fit its arguments is the library's, not ours to die of
            message = str(record.msg)
        caller = f"{os.path.basename(os.path.dirname(record.pathname))}/{record.filename}:{record.lineno}"
        self._logger.log(level, message, caller=caller, logger=record.name, **fields)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take over the root logger for the duration of the block; what was there comes back."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers[:] = [self]
        root.setLevel(max(logging.WARNING if self._logger.level > Level.DEBUG else logging.DEBUG, self._logger.level))
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


class RareLine:
    """A warning about something that may happen very often: it is written every `every_s` at most, with how often it happened since."""

    __slots__ = ("_clock", "_count", "_event", "_every_s", "_logger", "_said_s")

    def __init__(self, logger: Logger, event: str, *, every_s: float = 10.0, clock: Clock | None = None) -> None:
        self._logger = logger
        self._event = event
        self._every_s = every_s
        self._clock = clock if clock is not None else SystemClock()
        self._said_s: float | None = None
        self._count = 0

    def warning(self, *, count: int = 1, **fields: object) -> None:
        """It happened, `count` times; the fields are those of the last time."""
        self._count += count
        now_s = self._clock.monotonic_s()
        if self._said_s is None or now_s - self._said_s >= self._every_s:
            self._logger.warning(self._event, count=self._count, **fields)
            self._said_s, self._count = now_s, 0


class RaftLogSink:
    """Raft's lines as events: the core's text is the message, ids stay in the core's hexadecimal."""

    __slots__ = ("_logger",)

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def debug(self, message: str) -> None:
        """Detail of the protocol."""
        if self._logger.enabled(Level.DEBUG):
            self._logger.log(Level.DEBUG, message, caller="raft")

    def info(self, message: str) -> None:
        """A change of role, term or leader."""
        self._logger.log(Level.INFO, message, caller="raft")

    def warning(self, message: str) -> None:
        """Something that should be rare."""
        self._logger.log(Level.WARN, message, caller="raft")

    def error(self, message: str) -> None:
        """A broken invariant, reported before the core raises."""
        self._logger.log(Level.ERROR, message, caller="raft")
