"""A thread of its own for one kind of blocking work, in order, with results on the event loop.

Purpose: the WAL's thread. `concurrent.futures` would do, but every result then takes two turns of the loop and twice the time of the
hand-over itself (docs/performance.md); with one write at a time that is what a client waits for.

Rules: work runs in the order of submission; `done` is called on the loop with (result, None) or (None, error), also for what was
submitted before `stop`; the caller bounds how much it submits. The loop must outlive the thread: `stop` waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")

Done = Callable[[Any, BaseException | None], None]


class Worker:
    """One thread. Made and used on a running loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Run `work` on the thread, then `done` on the loop. Raises RuntimeError after `stop`."""
        if self._stopped:
            raise RuntimeError(f"the {self._thread.name} thread was stopped")
        self._queue.put((work, done))

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """The same as a future; cancelling it only drops the result."""
        future: asyncio.Future[_T] = self._loop.create_future()

        def done(result: _T, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(work, done)
        return future

    async def stop(self) -> None:
        """Finish what was submitted and end the thread. May be called twice."""
        if not self._stopped:
            self._stopped = True
            self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            work, done = item
            result, error = None, None
            try:
                result = work()
            except BaseException as failure:  # noqa: BLE001 - whatever it is goes to the caller, who decides
                error = failure
            self._loop.call_soon_threadsafe(done, result, error)
            del item, work, done, result, error  # nothing is kept alive while waiting
