"""The on-disk engine: tables of sorted byte keys, written through a buffer, committed in batches on a thread of their own.

Purpose: the applier writes at memory speed; the disk sees one fsynced LMDB transaction per batch; every reader sees every write at once.

Theory of operation
- Writes go to the *active* layer. `end_entry(mark)` ends one replicated entry: only between entries is a layer sealed, so a batch holds
  whole entries, their data together with the meta that says so. `mark` (the applied index) becomes the batch's mark.
- Sealing makes the active layer the *pending* one, and the commit thread writes it (sorted, one transaction, fsync) while a new active
  layer fills. There is never more than one pending layer, so memory is bounded by two layers.
- A commit is due `interval_s` after the first write of a layer, and at once when it has `commit_count` changes or `commit_bytes` bytes.
- At `max_buffer_bytes` in both layers together, or `commit_count` changes in the active layer while the other is still being written,
  `has_room` turns false: the applier awaits `wait_room()` before the next entry. One entry may exceed the bounds by its own size.
- `allow_commit_through(mark)` is a gate: from the first call on a batch isn't written before its mark is allowed. The node never closes it:
  raft hands out only entries that the WAL holds durably (asynchronous storage writes), which is what durability.md asks for.
- Out of space: the batch is kept and tried again every `retry_s`; any other failure is final (`on_fatal`).

Caveats: dirty pages of a transaction are anonymous memory inside LMDB (4 KiB per touched page), so `commit_count` bounds a batch too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Final

from kvserver.errors import FatalError
from kvserver.storage import batch, files
from kvserver.storage.config import EngineConfig, EngineHooks
from kvserver.storage.errors import StorageNoSpaceError, StoreFailedError, StoreUnreadableError
from kvserver.storage.layer import ENTRY_OVERHEAD_BYTES, Layer
from kvserver.storage.page_format import DescribeRow, describe_plainly
from kvserver.storage.reader import LayeredReader
from kvserver.storage.view import MAX_AGE_S, ReadView
from kvserver.storage.waiting import wait, wake
from wal import Files, OsFiles

OS_FILES: Final = OsFiles()


class Engine:
    """One open store file with its write buffer. Everything but ReadViews and `copy_to` belongs to the loop that opened it."""

    def __init__(self, path: Path, tables: Sequence[bytes], config: EngineConfig, hooks: EngineHooks, system: Files) -> None:
        self._system = system
        self.path = path
        self.hooks = hooks
        self._config = config
        self._table_names = tuple(tables)
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "store-commit")
        self._env, self._dbs = files.open_env(path, quota_bytes=config.quota_bytes, tables=tables, every_row=config.verify_on_open)
        self._active = Layer(len(tables))
        self._pending: Layer | None = None
        self._writing: ThreadFuture[float] | None = None
        self._reader = LayeredReader(self._env, self._dbs, (self._active,), self._damaged, renews=True)
        self._timer: asyncio.TimerHandle | None = None
        self._wanted = False
        self._gate: int | None = None
        self._durable_mark = 0
        self._sealed = 0
        self._committed_batches = 0
        self._no_space = False
        self._failure: FatalError | None = None
        self._closed = False
        self._swapping = False
        self._room_waiters: list[asyncio.Future[None]] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._durable_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._views: dict[ReadView, asyncio.TimerHandle] = {}
        self._in_use_bytes: int | None = None  # counted when asked, once per committed batch: the quota asks before every put
        self._view_waiters: list[asyncio.Future[None]] = []
        self._copying = Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        tables: Sequence[bytes],
        config: EngineConfig | None = None,
        hooks: EngineHooks | None = None,
        system: Files = OS_FILES,
    ) -> Engine:
        """Open or create the store in the file `path`; must be called on the running loop.

        Blocks for as long as reading the file takes: its pages are checked first.

        Args:
            system: through what the file is replaced; LMDB reads and writes it by itself (docs/adr/0006).

        Raises:
            StoreUnreadableError: the file is no store, is truncated, or isn't accessible.
        """
        return cls(path, tables, config or EngineConfig(), hooks or EngineHooks(), system)

    # --- writing -------------------------------------------------------------------------------------------------------------------------

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """Store `value` under `key` in the active layer; visible to every reader made from now on."""
        self._active.set(table, key, value)

    def delete(self, table: int, key: bytes) -> None:
        """Remove `key`, whether or not it exists."""
        self._active.set(table, key, None)

    def end_entry(self, mark: int) -> None:
        """Everything written so far belongs to entries up to `mark` (which never falls); a batch may end here.

        Raises:
            FatalError: the store has failed.
        """
        active = self._active
        active.mark = mark
        if self._failure is not None:
            raise self._failure
        if active.count >= self._config.commit_count or active.size_bytes >= self._config.commit_bytes:
            self.request_commit()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._config.interval_s, self._timer_fired)

    def request_commit(self) -> None:
        """Commit what is buffered as soon as the commit thread is free; call it between entries only."""
        self._wanted = True
        if self._pending is None:
            self._seal()

    def allow_commit_through(self, mark: int) -> None:
        """From the first call on, batches wait until their mark is at most the highest `mark` given here."""
        if self._gate is None or mark > self._gate:
            self._gate = mark
            self._write_pending()

    def poison(self, cause: BaseException) -> None:
        """What is in the active layer is half an entry: commit nothing any more. A FatalError says itself what it means to the operator."""
        if self._failure is None:
            self._fail(cause if isinstance(cause, FatalError) else StoreFailedError(self.path, cause))

    @property
    def durable_mark(self) -> int:
        """The mark of the last committed and fsynced batch since opening; 0 before the first."""
        return self._durable_mark

    @property
    def buffered_bytes(self) -> int:
        """Bytes of keys, values and overhead in both layers."""
        return self._active.size_bytes + (self._pending.size_bytes if self._pending is not None else 0)

    @property
    def buffered_payload_bytes(self) -> int:
        """Bytes of keys and values in both layers: about what the next commits add to the file, deletions' keys included."""
        overhead_bytes = ENTRY_OVERHEAD_BYTES * (self._active.count + (self._pending.count if self._pending is not None else 0))
        return self.buffered_bytes - overhead_bytes

    @property
    def has_room(self) -> bool:
        """Whether the next entry may be written: the bytes are below their bound, and the changes are while a batch waits or is written."""
        if self._failure is not None or self.buffered_bytes >= self._config.max_buffer_bytes:
            return False
        return self._pending is None or self._active.count < self._config.commit_count

    async def wait_room(self) -> None:
        """Return when `has_room` holds.

        Raises:
            FatalError: the store has failed.
        """
        while not self.has_room:
            if self._failure is not None:
                raise self._failure
            self.request_commit()
            await wait(self._room_waiters)

    async def commit(self) -> None:
        """Commit everything written so far and return when it is on disk; call it between entries only.

        Raises:
            FatalError: the store has failed.
        """
        wanted = self._sealed + (1 if self._active.count else 0)
        self.request_commit()
        while self._committed_batches < wanted:
            if self._failure is not None:
                raise self._failure
            await wait(self._idle_waiters)

    async def wait_durable(self, mark: int) -> None:
        """Return when a batch whose mark is at least `mark` is committed; does not itself ask for a commit.

        Raises:
            FatalError: the store has failed.
        """
        while self._durable_mark < mark:
            if self._failure is not None:
                raise self._failure
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._durable_waiters.append((mark, waiter))
            await waiter

    # --- reading -------------------------------------------------------------------------------------------------------------------------

    @property
    def reader(self) -> LayeredReader:
        """The newest state; use it at once and don't keep it over an await."""
        return self._reader

    def read_view(self) -> ReadView:
        """The state as of now, for one other thread, for at most `MAX_AGE_S` seconds; the caller closes it."""
        layers = [self._active.frozen_copy()]
        if self._pending is not None:
            layers.append(self._pending)
        view = ReadView(LayeredReader(self._env, self._dbs, tuple(layers), self._damaged), self._view_closed)
        self._views[view] = self._loop.call_later(MAX_AGE_S, self._expire_view, view)
        return view

    @property
    def size_bytes(self) -> int:
        """Bytes of the file on disk."""
        return self.path.stat().st_size

    @property
    def size_in_use_bytes(self) -> int:
        """Bytes of pages that hold something, as committed: tables, their tree, and the two meta pages; free pages don't count."""
        if self._in_use_bytes is None:
            self._in_use_bytes = files.in_use_bytes(self._env, self._dbs)
        return self._in_use_bytes

    # --- whole-file operations -----------------------------------------------------------------------------------------------------------

    def copy_to(self, path: Path, describe_row: DescribeRow = describe_plainly) -> None:
        """Write a compact, consistent, fsynced, checked copy of everything committed to the new file `path`. Blocking: call it in a thread.

        Raises:
            StoreDamagedError: a row or page is damaged; says where, rows in the words of `describe_row`.
            OSError: it exists or can't be written; nothing is left of it.
        """
        with self._copying:
            if self._closed:
                raise StoreUnreadableError(self.path, "it is closed")
            files.copy_env(self._env, path, self._table_names, describe_row)

    async def replace_with(self, source: Path, *, mark: int) -> None:
        """Replace the whole store by the verified copy `source` (same file system), drop what is buffered, and read on from it.

        The swap itself happens without giving up the loop: no reader sees a store between the two.

        Raises:
            FatalError: the store has failed, or can't be opened after the swap.
        """
        self._stop_timer()
        self._swapping = True  # no commit begins from here on: it would write into a file that is about to be closed
        try:
            await self._wait_idle(drop_unwritten=True)
            async with self._no_copy():
                await self._prepare_replace()
                await self._wait_views()
                self._reader.close()
                self._env.close()
                files.replace(self.path, source, self._system)
                quota_bytes = self._config.quota_bytes
                self._env, self._dbs = files.open_env(self.path, quota_bytes=quota_bytes, tables=self._table_names, checked=True)
        finally:
            self._swapping = False
        self._pending = None
        self._sealed += 1  # who waits for a commit of what is dropped now waits no more
        self._in_use_bytes = None
        self._active = Layer(len(self._table_names))
        self._reader = LayeredReader(self._env, self._dbs, (self._active,), self._damaged, renews=True)
        self._wanted = False
        self._committed_batches = self._sealed
        self._has_space_again()
        self._advance_durable(mark)
        wake(self._idle_waiters)
        wake(self._room_waiters)

    async def _prepare_replace(self) -> None:
        """Reserve what the swap needs; without space, wait for it."""
        while (error := files.prepare_replace(self.path)) is not None:
            self._out_of_space(StorageNoSpaceError(self.path, str(error)))
            await asyncio.sleep(self._config.retry_s)

    async def close(self, *, commit: bool = True) -> None:
        """Commit what is buffered (unless told not to, out of space, behind the gate, or failed), then close the file."""
        if self._closed:
            return
        self._closed = True
        self._stop_timer()
        await self._wait_idle(drop_unwritten=not commit)
        if commit and self._failure is None and self._pending is None and self._active.count and self._may_write(self._active):
            self.request_commit()
            await self._wait_idle(drop_unwritten=False)
        self._stop_timer()
        async with self._no_copy():
            await self._wait_views()
            self._executor.shutdown()
            self._reader.close()
            self._env.close()

    def abandon(self) -> None:
        """Close at once after a failed start: nothing was written."""
        self._closed = True
        self._executor.shutdown()
        self._reader.close()
        self._env.close()

    # --- committing ----------------------------------------------------------------------------------------------------------------------

    def _timer_fired(self) -> None:
        self._timer = None
        self.request_commit()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _seal(self) -> None:
        if self._swapping:
            return
        self._wanted = False
        if self._failure is not None:
            return
        if self._active.count == 0:
            if self._active.mark > self._durable_mark:
                self._set_durable(self._active.mark)  # entries without any effect: there is nothing to write for them
            return
        self._stop_timer()
        self._sealed += 1
        self._pending, self._active = self._active, Layer(len(self._table_names))
        self._reader = self._reader.with_layers((self._active, self._pending))
        self._write_pending()

    def _may_write(self, layer: Layer) -> bool:
        return self._gate is None or layer.mark <= self._gate

    def _write_pending(self) -> None:
        if self._pending is None or self._writing is not None or not self._may_write(self._pending):
            return
        if self._swapping or self._failure is not None:
            return
        self._writing = self._executor.submit(batch.commit, self._env, self._dbs, self._pending, self.path)
        self._writing.add_done_callback(self._written_in_thread)

    def _written_in_thread(self, future: ThreadFuture[float]) -> None:
        self._loop.call_soon_threadsafe(self._written, future)

    def _written(self, future: ThreadFuture[float]) -> None:
        self._writing = None
        error = future.exception()
        if error is None:
            self._committed(future.result())
        elif isinstance(error, StorageNoSpaceError):
            self._out_of_space(error)
        else:
            self._fail(StoreFailedError(self.path, error))
        wake(self._idle_waiters)

    def _committed(self, seconds: float) -> None:
        if self._pending is None:
            raise AssertionError("a commit ended that nothing had begun")
        mark = self._pending.mark
        self._pending = None
        self._in_use_bytes = None
        self._committed_batches += 1
        self._reader.close()
        self._reader = LayeredReader(self._env, self._dbs, (self._active,), self._damaged, renews=True)
        self._has_space_again()
        self.hooks.on_commit_seconds(seconds)
        self._set_durable(mark)
        wake(self._room_waiters)
        if self._wanted:
            self._seal()

    def _set_durable(self, mark: int) -> None:
        self._advance_durable(mark)
        self.hooks.on_durable(mark)

    def _advance_durable(self, mark: int) -> None:
        self._durable_mark = mark
        waiting = self._durable_waiters
        self._durable_waiters = [(wanted, waiter) for wanted, waiter in waiting if wanted > mark]
        wake([waiter for wanted, waiter in waiting if wanted <= mark])

    def _out_of_space(self, error: StorageNoSpaceError) -> None:
        if not self._no_space:
            self._no_space = True
            self.hooks.on_no_space(error)
        if not self._closed:
            self._loop.call_later(self._config.retry_s, self._write_pending)

    def _has_space_again(self) -> None:
        if self._no_space:
            self._no_space = False
            self.hooks.on_no_space(None)

    def _fail(self, failure: FatalError) -> None:
        self._failure = failure
        wake(self._room_waiters)
        wake(self._idle_waiters)
        wake([waiter for _, waiter in self._durable_waiters])
        self._durable_waiters.clear()
        self.hooks.on_fatal(failure)

    # --- waiting -------------------------------------------------------------------------------------------------------------------------

    async def _wait_idle(self, *, drop_unwritten: bool) -> None:
        """Wait until the commit thread has nothing to do and (unless dropped, gated, or out of space) nothing is pending."""
        while self._writing is not None:
            if drop_unwritten:
                self._wanted = False
            await wait(self._idle_waiters)

    @contextlib.asynccontextmanager
    async def _no_copy(self) -> AsyncIterator[None]:
        """Wait for a running copy to end and let none begin."""
        await self._loop.run_in_executor(None, self._copying.acquire)
        try:
            yield
        finally:
            self._copying.release()

    async def _wait_views(self) -> None:
        for view in list(self._views):
            view.expired = True
        while self._views:
            await wait(self._view_waiters)

    def _damaged(self, table: int, key: bytes, reason: str) -> None:
        """Called by whichever thread read the row."""
        self.hooks.on_damage(table, key, reason)

    def _expire_view(self, view: ReadView) -> None:
        view.expired = True

    def _view_closed(self, view: ReadView) -> None:
        """Called by whichever thread closed the view."""
        self._loop.call_soon_threadsafe(self._forget_view, view)

    def _forget_view(self, view: ReadView) -> None:
        timer = self._views.pop(view, None)
        if timer is not None:
            timer.cancel()
        if not self._views:
            wake(self._view_waiters)
