"""Putting together what serves entries below memory: the WAL's reader, its thread, the history, and raft's storage over both.

Rules: made before the core, which reads through `storage`; `on_ready` is set once there is a driver. `stop` before the loop ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvserver.config import ServerConfig
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node.bootstrap import Origin
from kvserver.node.directory import DataDirectory
from kvserver.node.driver import Driver
from kvserver.node.log_history import LogHistory
from kvserver.node.log_storage import LogStorage
from kvserver.node.releaser import Retention
from kvserver.node.term_runs import TermRuns
from kvserver.node.wal_pins import WalPin, WalPins
from kvserver.node.worker import Worker
from wal import Files


@dataclass(slots=True, kw_only=True)
class History:
    """The parts; `on_ready` is called on the loop when entries that raft asked for have been read."""

    log: LogHistory
    storage: LogStorage
    worker: Worker
    on_ready: Callable[[], None]

    async def stop(self) -> None:
        """Read nothing more and end the thread."""
        self.log.stop()
        await self.worker.stop()


def make_history(
    config: ServerConfig, origin: Origin, *, files: Files, metrics: Metrics, log: Logger, on_fatal: Callable[[Exception], None]
) -> History:
    """Serve what `origin.wal` holds below `origin.window`. Call on the running loop."""
    worker = Worker("wal-read")
    entries = LogHistory(
        first_index=origin.wal.first_index,
        terms=TermRuns(origin.wal.term_runs()),
        reader=origin.wal.history(files),
        worker=worker,
        clock=asyncio.get_running_loop(),
        cache_bytes=config.wal_read_cache_bytes,
        metrics=metrics,
        log=log,
        on_ready=lambda: history.on_ready(),  # noqa: PLW0108 - made after the log
        on_fatal=on_fatal,
    )
    history = History(log=entries, storage=LogStorage(origin.window, entries), worker=worker, on_ready=lambda: None)
    return history


def make_retention(
    directory: DataDirectory, config: ServerConfig, history: History, driver: Driver, *, snapshot_bytes: Callable[[], int]
) -> Retention:
    """What the releaser keeps for the members that `driver` feeds from `history`. `snapshot_bytes`: the size of a snapshot taken now."""
    pins, storage, window, loop = WalPins(), history.storage, history.storage.window, asyncio.get_running_loop()

    def pinned() -> WalPin | None:
        return pins.lowest(
            driver.raw.progress() if driver.is_leader else (),
            self_id=driver.raw.id,
            log_first=storage.first_index(),
            mem_first=window.first_index(),
            now_s=loop.time(),
        )

    return Retention(
        retain_bytes=config.wal_retain_bytes,
        pinned=pinned,
        snapshot_bytes=snapshot_bytes,
        free_bytes=partial(directory.files.free_bytes, directory.wal),
        on_released=history.log.raise_floor,
    )
