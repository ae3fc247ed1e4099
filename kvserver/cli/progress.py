"""How far a long command is, on stderr.

Rules: on a terminal one line that is overwritten, at most `REDRAWS_PER_S` times a second, and cleared at the end. Elsewhere nothing but the
events, one JSON object a line, as etcdctl logs them.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, TextIO

from kvserver.cli.golang import humanize_bytes

REDRAWS_PER_S: Final = 10
_BAR_WIDTH: Final = 30
_CLEAR: Final = "\r\x1b[K"


class Progress:
    """One thing being counted in bytes, and what happens to it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._next_s = 0.0
        self._is_drawn = False

    def event(self, message: str, **fields: object) -> None:
        """Something has happened; on a terminal the line that is drawn says enough."""
        if self._is_terminal:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        self._write(json.dumps({"level": "info", "ts": now, "msg": message} | fields, separators=(",", ":")) + "\n")

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """So much of it is done."""
        now_s = time.monotonic()
        if not self._is_terminal or (now_s < self._next_s and done_bytes < total_bytes):
            return
        self._next_s = now_s + 1 / REDRAWS_PER_S
        self._is_drawn = True
        self._write(_CLEAR + render(what, done_bytes, total_bytes))

    def end(self) -> None:
        """Clear the line."""
        if self._is_drawn:
            self._is_drawn = False
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # whoever looked has left: what is being done goes on
            self._stream.write(text)
            self._stream.flush()


def render(what: str, done_bytes: int, total_bytes: int) -> str:
    """`saving [#####.....] 50% 10 MB of 20 MB`."""
    share = min(1.0, done_bytes / total_bytes) if total_bytes else 1.0
    filled = int(share * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    return f"{what} [{bar}] {int(share * 100)}% {humanize_bytes(done_bytes)} of {humanize_bytes(total_bytes)}"
