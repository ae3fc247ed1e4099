"""Blocking work on a thread, awaited to its end even by a cancelled caller.

Rule: a file is never closed or removed while a thread still works on it. So cancellation waits for the running call (which may be asked to
end early), and is then raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_to_end(
    executor: Executor | None,
    work: Callable[[], T],
    *,
    discard: Callable[[T], object] | None = None,
    stop: Callable[[], None] | None = None,
    meanwhile: Callable[[], None] | None = None,
    interval_s: float = 5.0,
) -> T:
    """Run `work` on the executor (None: the loop's own) and return its result or raise its error; call `meanwhile` on the loop every
    `interval_s` until it is done.

    If the caller is cancelled meanwhile, `stop` is called, which may make `work` end early, and `work` is awaited; a result that nobody
    will get is passed to `discard` (on the executor).
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(executor, work)
    try:
        while not future.done():
            await asyncio.wait([future], timeout=None if meanwhile is None else interval_s)
            if meanwhile is not None and not future.done():
                meanwhile()
    except BaseException:
        if stop is not None:
            stop()
        await _finished(future)
        if discard is not None and not future.cancelled() and future.exception() is None:
            result = future.result()
            await _finished(loop.run_in_executor(executor, lambda: discard(result)))
        raise
    return future.result()


async def _finished(future: asyncio.Future[T]) -> None:
    """Wait for the end of `future`, whatever it is; for callers that are already being cancelled and raise that afterwards."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # mark as retrieved: the caller's own end goes first
