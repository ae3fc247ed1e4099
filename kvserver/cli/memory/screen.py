"""The terminal of `top`: frames that replace each other, and the key that ends it.

Rules: on a terminal the alternate screen is used, so that what stood there is back afterwards, whatever ends the command; lines are cut
to its width and height. Elsewhere a frame is text, and the next one follows behind an empty line. Keys are read only if stdin and stdout
both are terminals. A signal that asks to end ends like the key.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from kvserver.cli.run import write

_ENTER: Final = b"\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor
_LEAVE: Final = b"\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_QUIT_KEYS: Final = frozenset(b"qQ\x04")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """Draws frames; `ended` is set when the user asks to leave."""

    def __init__(self, *, is_terminal: bool, has_keys: bool = False) -> None:
        self.ended = asyncio.Event()
        self.has_keys = has_keys
        self._is_terminal = is_terminal
        self._frames = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Show the next frame."""
        if self._is_terminal:
            width, height = shutil.get_terminal_size()
            write(fit(lines, width, height).encode("utf-8", "surrogateescape"))
        else:
            write(("\n" * bool(self._frames) + "\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        self._frames += 1

    def read_keys(self) -> None:
        """The user has typed something."""
        try:
            typed = os.read(sys.stdin.fileno(), 64)
        except OSError:
            typed = b""  # the terminal is gone
        if not typed or _QUIT_KEYS.intersection(typed):
            self.ended.set()


def fit(lines: Sequence[str], width: int, height: int) -> str:
    """The frame as a terminal of that size takes it, over whatever stands there."""
    shown = [line[:width] for line in lines[: max(1, height - 1)]]
    return _HOME + "".join(f"{line}{_END_LINE}\r\n" for line in shown) + _CLEAR_BELOW


@contextmanager
def opened() -> Iterator[Screen]:
    """The screen, for as long as it is drawn on; call on the running loop."""
    is_terminal = sys.stdout.isatty()
    has_keys = is_terminal and sys.stdin.isatty()
    screen = Screen(is_terminal=is_terminal, has_keys=has_keys)
    if not is_terminal:
        yield screen
        return
    saved = termios.tcgetattr(sys.stdin.fileno()) if has_keys else None
    loop = asyncio.get_running_loop()
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, screen.ended.set)
        write(_ENTER)
        if has_keys:
            tty.setcbreak(sys.stdin.fileno())
            loop.add_reader(sys.stdin.fileno(), screen.read_keys)
        yield screen
    finally:
        if saved is not None:
            loop.remove_reader(sys.stdin.fileno())
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, saved)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        write(_LEAVE)
