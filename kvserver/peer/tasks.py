"""The transport's tasks: named, counted, ended together.

Rules: a task ends by itself or by cancellation. One that raises is a programmer's error: it is reported to the loop's exception handler
at once, not when it happens to be collected. `stop` returns when every task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class TaskBag:
    """See the module. Used on one loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[None, None, None], *, name: str) -> asyncio.Task[None]:
        """Start `work` as a task that the bag ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """Cancel all and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            task.get_loop().call_exception_handler({"message": f"task {task.get_name()} failed", "exception": error, "task": task})
