"""Where a report goes: lines of text, or one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, TextIO

_INTERVAL_S: Final = 0.2


def count_of(number: int, noun: str) -> str:
    """`1 segment`, `2 segments`: plain digits, so that a number can be searched for and copied."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


class Output:
    """Text or JSON lines on a stream. What is told with `text` is for people, what is told with `record` for programs."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self.as_json = as_json

    def text(self, line: str = "") -> None:
        """One line, unless the output is JSON."""
        if not self.as_json:
            # A path need not be text: what is none is shown escaped.
            self._stream.write(line.encode("utf-8", "backslashreplace").decode() + "\n")

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One JSON object, unless the output is text."""
        if self.as_json:
            self._stream.write(json.dumps({"kind": kind, **fields}) + "\n")


class Progress:
    """One line on a terminal that says how far a long task has got; silent elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = stream.isatty()
        self._next_s = 0.0
        self._width = 0

    def show(self, what: str, done: int, total: int) -> None:
        """Say it, a few times a second at most."""
        if not self._is_shown or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _INTERVAL_S
        share = f" {100 * done // total}%" if total else ""
        line = f"{what}: {done}{f' of {total}' if total else ''}{share}"
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
