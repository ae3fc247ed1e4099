"""A store's file replaced by another one under the running engine: the steps, and what they promise to readers, writers and the disk.

Theory of operation
1. Nothing is sealed or committed from here on, and the retry of a kept batch is called off. A commit under way ends.
2. `prepare`, on the commit thread: the new file is synced, its lock file reserved, and it is opened, under the name it came with. For want
   of space this is tried again until there is some. Until now nothing has changed; cancelled or failed, the old store goes on.
3. A running copy of the old store ends, and so do the views of it; no new ones are made (ViewExpiredError, which the caller may retry).
   The loop reads on from the old file.
4. `files.replace`, on the commit thread: the new file's name becomes the store's, durably. This can't be undone, so a cancellation that
   comes now is raised when all is done.
5. In one turn of the loop the engine lets go of the old file and reads from the new one. What was buffered is dropped. The old file is
   closed on the commit thread, as giving back a large map takes time.

Invariant: at every turn of the loop the engine has one whole store open, and every reader reads one whole store to its end.

Errors: SwapFailedError for what the disk says. After a failed step 4 nothing is committed any more: it is open which file has the name, and
a commit into one that has none would be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from kvserver.storage import files
from kvserver.storage.errors import StorageNoSpaceError, SwapFailedError
from kvserver.storage.waiting import wait_end
from wal import Files


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """An open store file and its tables."""

    env: lmdb.Environment
    dbs: list[Any]


def prepare(path: Path, source: Path, tables: Sequence[bytes], *, quota_bytes: int, system: Files) -> OpenFile:
    """Do what may fail while the store `path` is what it was: make `source`, whose pages were checked before, durable, and open it.
    Blocking.

    Raises:
        StorageNoSpaceError: there is no space for its lock file; try again.
        SwapFailedError, StoreUnreadableError: it can't be used.
    """
    try:
        files.prepare_replace(source, system)
    except OSError as error:
        if error.errno in files.NO_SPACE_CODES:
            raise StorageNoSpaceError(path, str(error)) from error
        raise SwapFailedError(path, source, error) from error
    env, dbs = files.open_env(source, quota_bytes=quota_bytes, tables=tables, checked=True)
    return OpenFile(env=env, dbs=dbs)


async def prepare_patiently(
    executor: Executor, prepare: Callable[[], OpenFile], *, retry_s: float, on_no_space: Callable[[StorageNoSpaceError], None]
) -> OpenFile:
    """`prepare` on the executor, again and again while there is no space for it: `on_no_space` is told and answers by an error whether to
    give up. Cancelled, nothing stays open.

    Raises:
        SwapFailedError, StoreUnreadableError: as `prepare`.
    """
    while True:
        preparing = asyncio.get_running_loop().run_in_executor(executor, prepare)
        cancelled = await wait_end(preparing)
        try:
            fresh = preparing.result()
        except StorageNoSpaceError as error:
            if cancelled:
                raise asyncio.CancelledError from error
            on_no_space(error)
            await asyncio.sleep(retry_s)
            continue
        if cancelled:
            executor.submit(fresh.env.close)
            raise asyncio.CancelledError
        return fresh


async def exchange(executor: Executor, path: Path, source: Path, system: Files) -> bool:
    """Put `source` in the place of the store `path`, to the end, even if the caller is cancelled meanwhile; answers whether it was.

    Raises:
        SwapFailedError: it is open which of the two has the name now.
    """
    exchanging = asyncio.get_running_loop().run_in_executor(executor, files.replace, path, source, system)
    cancelled = await wait_end(exchanging)
    error = exchanging.exception()
    if error is not None:
        raise SwapFailedError(path, source, error) from error
    return cancelled
