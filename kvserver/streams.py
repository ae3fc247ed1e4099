"""The three standard streams of a command that may have been started without them, or whose reader goes away.

Purpose: `kvctl ... 2>&-` starts a process without descriptor 2. Python then has no `sys.stderr`, and worse: the next file or socket that is
opened gets the number 2, and whatever writes to "stderr" writes into it. So what is closed is opened on /dev/null before all else.

Rules: what nobody can read is lost without a word; it is no reason to fail. `ended` says how a process that was cut short ends: 130 after
an interrupt, 141 when the reader of the output has left, as a shell would say of SIGINT and SIGPIPE.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Final

INTERRUPTED_EXIT: Final = 130
BROKEN_PIPE_EXIT: Final = 141


def open_closed() -> None:
    """Open descriptors 0, 1 and 2 on /dev/null where they are closed, and give `sys` the streams that it lacks. Call it first."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, "r", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)


def discard_stdout() -> None:
    """Point descriptor 1 at nothing, so that the interpreter's last flush has nothing to fail at."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def ended(name: str, run: Callable[[], int]) -> int:
    """The exit code of `run`, for a process that ends behind this: cut short, one line at most, and no traceback."""
    try:
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{name}: interrupted\n")
            sys.stderr.flush()
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        discard_stdout()
        return BROKEN_PIPE_EXIT
    return code
