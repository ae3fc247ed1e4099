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
- A batch never holds an entry that this member's WAL does not hold durably, and needs no gate for it: raft hands out for application only
  what is stable here (asynchronous storage writes), so what is written to a layer was fsynced in the WAL before.
- Out of space: the batch is kept and tried again every `retry_s`; any other failure is final (`on_fatal`). So is an IO error that might
  have been want of space but isn't by now, `DOUBTFUL_TRIES` times in a row: a disk that fails must not look like a full one for ever.
- While the file is being replaced (swap.py) nothing is sealed or written, and what is buffered is dropped in the end.

Caveats: dirty pages of a transaction are anonymous memory inside LMDB (4 KiB per touched page), so `commit_count` bounds a batch too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

from kvserver.errors import FatalError
from kvserver.storage import batch, files, swap
from kvserver.storage.config import EngineConfig, EngineHooks
from kvserver.storage.errors import StorageNoSpaceError, StoreFailedError, StoreUnreadableError, SwapFailedError
from kvserver.storage.layer import ENTRY_OVERHEAD_BYTES, Layer
from kvserver.storage.page_format import DescribeRow, describe_plainly
from kvserver.storage.reader import LayeredReader
from kvserver.storage.view import OpenViews, ReadView
from kvserver.storage.waiting import Due, DurableMark, holding, wait, wake
from wal import Files, OsFiles

OS_FILES: Final = OsFiles()
DOUBTFUL_TRIES: Final = 3


class Engine:
    """One open store file with its write buffer. Everything but ReadViews and `copy_to` belongs to the loop that opened it."""

    def __init__(
        self, path: Path, tables: Sequence[bytes], config: EngineConfig, hooks: EngineHooks, system: Files, *, checked: bool
    ) -> None:
        self._system = system
        self.path = path
        self.hooks = hooks
        self._config = config
        self._table_names = tuple(tables)
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "store-commit")
        self._env, self._dbs = files.open_env(
            path, quota_bytes=config.quota_bytes, tables=tables, every_row=config.verify_on_open, checked=checked
        )
        self._active = Layer(len(tables))
        self._pending: Layer | None = None
        self._writing: ThreadFuture[float] | None = None
        self._reader = self._new_reader()
        self._due = Due(self.request_commit)
        self._retry = Due(self._write_pending)
        self._wanted = False
        self._durable = DurableMark()
        self._sealed = 0
        self._committed_batches = 0
        self._no_space = False
        self._doubtful = 0
        self._failure: FatalError | None = None
        self._closed = False
        self._swapping = False
        self._room_waiters: list[asyncio.Future[None]] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._views = OpenViews()
        self._in_use_bytes: int | None = None  # counted when asked, once per committed batch: the quota asks before every put
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
        checked: bool = False,
    ) -> Engine:
        """Open or create the store in the file `path`; must be called on the running loop.

        Blocks for as long as reading the file takes: its pages are checked first, unless that was done.

        Args:
            system: through what the file is replaced; LMDB reads and writes it by itself (docs/adr/0006).
            checked: the caller has run `check_structure` over the file just now (in a thread, where it disturbs nobody).

        Raises:
            StoreUnreadableError: the file is no store, is truncated, or isn't accessible.
        """
        return cls(path, tables, config or EngineConfig(), hooks or EngineHooks(), system, checked=checked)

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
        else:
            self._due.after(self._config.interval_s)

    def request_commit(self) -> None:
        """Commit what is buffered as soon as the commit thread is free; call it between entries only."""
        self._wanted = True
        if self._pending is None:
            self._seal()

    def poison(self, cause: BaseException) -> None:
        """What is in the active layer is half an entry: commit nothing any more. A FatalError says itself what it means to the operator."""
        if self._failure is None:
            self._fail(cause if isinstance(cause, FatalError) else StoreFailedError(self.path, cause))

    @property
    def durable_mark(self) -> int:
        """The mark of the last committed and fsynced batch since opening; 0 before the first."""
        return self._durable.value

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

    @property
    def is_out_of_space(self) -> bool:
        """Whether a batch is kept because the disk or the map is full."""
        return self._no_space

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
        while self._durable.value < mark:
            if self._failure is not None:
                raise self._failure
            await self._durable.wait(mark)

    # --- reading -------------------------------------------------------------------------------------------------------------------------

    @property
    def reader(self) -> LayeredReader:
        """The newest state; use it at once and don't keep it over an await."""
        return self._reader

    def read_view(self) -> ReadView:
        """The state as of now, for one other thread, for at most `MAX_AGE_S` seconds; the caller closes it.

        Raises:
            ViewExpiredError: the file is just being replaced, or closed; try again.
        """
        self._views.check()
        layers = [self._active.frozen_copy()]
        if self._pending is not None:
            layers.append(self._pending)
        return self._views.add(LayeredReader(self._env, self._dbs, tuple(layers), self._damaged, path=str(self.path)))

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
            files.copy_env(self._env, path, self._table_names, describe_row, store=self.path)

    async def replace_with(self, source: Path, *, mark: int, on_swapped: Callable[[], None] = lambda: None) -> None:
        """Replace the whole store by the copy `source` (same file system), whose pages were checked before; drop what is buffered.

        The old store is read until the new one takes its place, within one turn of the loop, which then calls `on_swapped` (swap.py).
        Without space it waits, for as long as it takes. Cancelled, the old store goes on, unless the files are being exchanged at that
        moment: then that is completed first.

        Raises:
            StoreUnreadableError: `source` can't be opened; the old store goes on.
            FatalError: the store has failed, or the swap has.
        """
        self._swapping = True
        self._due.cancel()
        self._retry.cancel()
        try:
            await self._wait_writing(drop_wanted=True)
            if self._failure is not None:
                raise self._failure
            fresh = await self._prepare_swap(source)
            try:
                await self._exchange(source, fresh, mark, on_swapped)
            finally:
                if self._env is not fresh.env:
                    self._executor.submit(fresh.env.close)
        finally:
            self._swapping = False
            self._go_on()

    async def _prepare_swap(self, source: Path) -> swap.OpenFile:
        """Open the new file; without space for it, wait."""

        def note_no_space(error: StorageNoSpaceError) -> None:
            if self._closed or self._failure is not None:
                raise self._failure or StoreUnreadableError(self.path, "it is closed")
            self._out_of_space(error)

        prepare = partial(swap.prepare, self.path, source, self._table_names, quota_bytes=self._config.quota_bytes, system=self._system)
        return await swap.prepare_patiently(self._executor, prepare, retry_s=self._config.retry_s, on_no_space=note_no_space)

    async def _exchange(self, source: Path, fresh: swap.OpenFile, mark: int, on_swapped: Callable[[], None]) -> None:
        """Swap the files, and what reads them, once nobody else reads the old one."""
        try:
            async with holding(self._copying), self._views.none_open():
                cancelled = await swap.exchange(self._executor, self.path, source, self._system)
                self._adopt(fresh, mark)
                on_swapped()
        except SwapFailedError as failure:
            self._fail(failure)
            raise
        if cancelled:
            raise asyncio.CancelledError

    def _adopt(self, fresh: swap.OpenFile, mark: int) -> None:
        """From here on the new file is the store, and nothing is buffered."""
        self._reader.close()
        self._executor.submit(self._env.close)
        self._env, self._dbs = fresh.env, fresh.dbs
        self._pending, self._active = None, Layer(len(self._table_names))
        self._reader = self._new_reader()
        self._in_use_bytes = None
        self._wanted = False
        self._sealed += 1  # who waits for a commit of what is dropped now waits no more
        self._committed_batches = self._sealed
        self._has_space_again()
        self._durable.advance(mark)

    def _go_on(self) -> None:
        """The swap is over, done or not: what waits is due."""
        self._write_pending()
        if self._active.count:
            self.request_commit()
        wake(self._idle_waiters)
        wake(self._room_waiters)

    async def close(self, *, commit: bool = True) -> None:
        """Commit what is buffered (unless told not to, out of space, or failed), then close the file."""
        if self._closed:
            return
        self._closed = True
        self._due.cancel()
        self._retry.cancel()
        while self._swapping:
            await wait(self._idle_waiters)
        await self._wait_writing(drop_wanted=not commit)
        if commit and self._failure is None and self._pending is None and self._active.count:
            self.request_commit()
            await self._wait_writing(drop_wanted=False)
        self._due.cancel()
        async with holding(self._copying):
            await self._views.end()
            self._reader.close()
            await self._loop.run_in_executor(self._executor, self._env.close)
        self._executor.shutdown()

    def abandon(self) -> None:
        """Close at once after a failed start: nothing was written."""
        self._closed = True
        self._executor.shutdown()
        self._reader.close()
        self._env.close()

    # --- committing ----------------------------------------------------------------------------------------------------------------------

    def _seal(self) -> None:
        if self._swapping:
            return
        self._wanted = False
        if self._failure is not None:
            return
        if self._active.count == 0:
            if self._active.mark > self._durable.value:
                self._set_durable(self._active.mark)  # entries without any effect: there is nothing to write for them
            return
        self._due.cancel()
        self._sealed += 1
        self._pending, self._active = self._active, Layer(len(self._table_names))
        self._reader = self._reader.with_layers((self._active, self._pending))
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending is None or self._writing is not None or self._swapping or self._failure is not None:
            return
        self._writing = self._executor.submit(batch.commit, self._env, self._dbs, self._pending, self.path)
        self._writing.add_done_callback(self._written_in_thread)

    def _written_in_thread(self, future: ThreadFuture[float]) -> None:
        self._loop.call_soon_threadsafe(self._written, future)

    def _written(self, future: ThreadFuture[float]) -> None:
        self._writing = None
        error = future.exception()
        self._doubtful = self._doubtful + 1 if isinstance(error, StorageNoSpaceError) and error.is_doubtful else 0
        if error is None:
            self._committed(future.result())
        elif not isinstance(error, StorageNoSpaceError):
            self._fail(StoreFailedError(self.path, error))
        elif self._doubtful >= DOUBTFUL_TRIES:
            self._fail(StoreFailedError(self.path, f"{error.reason}, {self._doubtful} times in a row, though the disk has space"))
        else:
            self._out_of_space(error)
            if not self._closed and not self._swapping:
                self._retry.after(self._config.retry_s)
        wake(self._idle_waiters)

    def _committed(self, seconds: float) -> None:
        if self._pending is None:
            raise AssertionError("a commit ended that nothing had begun")
        mark = self._pending.mark
        self._pending = None
        self._in_use_bytes = None
        self._committed_batches += 1
        self._reader.close()
        self._reader = self._new_reader()
        self._has_space_again()
        self.hooks.on_commit_seconds(seconds)
        self._set_durable(mark)
        wake(self._room_waiters)
        if self._wanted:
            self._seal()

    def _set_durable(self, mark: int) -> None:
        self._durable.advance(mark)
        self.hooks.on_durable(mark)

    def _out_of_space(self, error: StorageNoSpaceError) -> None:
        if not self._no_space:
            self._no_space = True
            self.hooks.on_no_space(error)

    def _has_space_again(self) -> None:
        if self._no_space:
            self._no_space = False
            self.hooks.on_no_space(None)

    def _fail(self, failure: FatalError) -> None:
        self._failure = failure
        wake(self._room_waiters)
        wake(self._idle_waiters)
        self._durable.give_up()
        self.hooks.on_fatal(failure)

    # --- waiting -------------------------------------------------------------------------------------------------------------------------

    async def _wait_writing(self, *, drop_wanted: bool) -> None:
        """Wait until the commit thread has nothing to do; with `drop_wanted` nothing is sealed behind what it writes now."""
        while self._writing is not None:
            if drop_wanted:
                self._wanted = False
            await wait(self._idle_waiters)

    def _new_reader(self) -> LayeredReader:
        """The loop's reader: the file as it is now under the active layer."""
        return LayeredReader(self._env, self._dbs, (self._active,), self._damaged, renews=True, path=str(self.path))

    def _damaged(self, table: int, key: bytes, reason: str) -> None:
        """Called by whichever thread read the row."""
        self.hooks.on_damage(table, key, reason)
