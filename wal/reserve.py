"""File descriptors in reserve, so that the log can go on when the process has used up its others.

Purpose: a cut of the log opens half a dozen files, one after the other. If clients, or whoever shares the process, hold every descriptor
that the system grants, each of these would fail with EMFILE, and a log whose cut fails half-way is dead. So a few descriptors are kept
open on /dev/null, and given up for a file of the log when there is no other.

Rules: any thread; what was given up is taken back at the next opening for which there are descriptors, so that a cut, which closes
what it opens, can go on for ever. EMFILE is the process's limit, ENFILE the system's; both are met in the same way.

Caveat: another thread may take what was given up before it is used. The opening then fails as it would have without the reserve.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

OUT_OF_FILES_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE})
RESERVED_DESCRIPTORS: Final = 6
"""A cut holds three at a time; the other half is for the thread that reads old entries, and for who may snatch one."""


class DescriptorReserve:
    """See the module. Takes its descriptors at the first opening."""

    __slots__ = ("_held", "_lock", "_wanted")

    def __init__(self, count: int = RESERVED_DESCRIPTORS) -> None:
        self._wanted = count
        self._held: list[int] = []
        self._lock = threading.Lock()

    @property
    def held_count(self) -> int:
        """How many are in reserve now."""
        return len(self._held)

    def open(self, opening: Callable[[], _T]) -> _T:
        """What `opening` opens; if there is no descriptor for it, once more without the reserve. Raises what `opening` raises."""
        if len(self._held) < self._wanted:
            with self._lock:
                self._fill()
        try:
            return opening()
        except OSError as error:
            if error.errno not in OUT_OF_FILES_ERRNOS:
                raise
        with self._lock:
            self.release()
            try:
                return opening()
            finally:
                self._fill()

    def release(self) -> None:
        """Give all of them up, until the next opening."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        while len(self._held) < self._wanted:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return  # none to be had now: the next opening asks again
