"""A store's file looked into while the loop runs: before it is opened, and before a received one is installed.

Purpose: to read a store page by page takes seconds for each GB (docs/architecture/storage.md). That is a thread's work, so that a signal is
heard meanwhile, and whoever waits can see what it waits for.

Rules: cancelled, the walk ends within milliseconds and its end is awaited; nothing was changed then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from kvserver.apply import Meta, Store, inspect
from kvserver.logs import Logger
from kvserver.mvcc import TABLES, describe_row
from kvserver.snapshot import run_to_end
from kvserver.storage import Checking, EngineConfig, EngineHooks, check_structure
from wal import Files

PROGRESS_S: Final = 2.0
"""A check that takes longer says so in the log, and how far it is, every so many seconds."""

_T = TypeVar("_T")


async def open_store(
    path: Path, *, config: EngineConfig, hooks: EngineHooks, on_corrupt: Callable[[str], None], files: Files, log: Logger
) -> Store:
    """Check the store's file in a thread, then open it, or create it. See `Store.open` for arguments and errors."""

    def check(checking: Checking) -> None:
        if path.exists() and path.stat().st_size:
            check_structure(path, TABLES, every_row=config.verify_on_open, describe_row=describe_row, checking=checking)

    await _watched(path, check, log)
    return Store.open(path, config=config, hooks=hooks, on_corrupt=on_corrupt, system=files, checked=True)


async def inspect_received(path: Path, log: Logger) -> Meta:
    """What the store in a received snapshot says of itself, once its pages are found to be sound; in a thread.

    Raises:
        StoreUnreadableError: it is no intact store.
    """
    return await _watched(path, lambda checking: inspect(path, checking), log)


async def _watched(path: Path, work: Callable[[Checking], _T], log: Logger) -> _T:
    """Run a check in a thread to its end, or until the caller is cancelled; one that takes long is seen in the log."""
    loop, checking = asyncio.get_running_loop(), Checking()
    began_s = loop.time()

    def tell() -> None:
        size_bytes = checking.of_bytes
        log.info("checking the pages of the store before it is used", file=str(path), size_bytes=size_bytes, percent=checking.percent)

    result = await run_to_end(None, lambda: work(checking), stop=checking.stop, meanwhile=tell, interval_s=PROGRESS_S)
    took_s = loop.time() - began_s
    if took_s >= PROGRESS_S:
        log.info("checked the pages of the store", file=str(path), size_bytes=checking.of_bytes, took_s=round(took_s, 1))
    return result
