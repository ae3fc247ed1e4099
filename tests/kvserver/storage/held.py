"""Work of the engine's threads that waits until a test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kvserver.storage import batch


class HeldCommits:
    """Commits begin on their thread, and wait there for a permit."""

    def __init__(self) -> None:
        self.begun = 0
        self._permits = threading.Semaphore(0)
        self._is_open = False
        self._write = batch.write

    def __call__(self, *arguments: Any) -> float:
        self.begun += 1
        if not self._is_open:
            self._permits.acquire()
        return self._write(*arguments)

    def allow(self, commits: int = 1) -> None:
        """So many more may end."""
        self._permits.release(commits)

    def open(self) -> None:
        """None is held any more."""
        self._is_open = True
        self.allow()


class HeldCall:
    """A function that, on its thread, waits for `go` before it does its work; `begun` tells when it is called."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self._work = work

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.begun.set()
        if not self.go.wait(20):
            raise TimeoutError("the test never let it go on")
        return self._work(*arguments, **keywords)
