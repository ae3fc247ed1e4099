"""The append thread of raft's asynchronous storage writes: the WAL, on a thread of its own.

Purpose: takes raft's MsgStorageAppend messages, makes them durable in order, and hands their responses back on the loop. Everything that
queued up while one fdatasync ran goes into the next: that is the group commit.

Rules
- One save is out at a time; a batch is bounded by `MAX_BATCH_BYTES` and never joins two messages of which the later one overwrites entries
  of the earlier: the acknowledgements of the earlier one are only true once its own entries were on disk.
- A commit index alone is a hint (it is learned anew after a restart), so it waits for the next entries, at most `COMMIT_DELAY_S`: one
  trip to the thread less for every write.
- The window takes the entries over when they are durable, before raft hears of it.
- An installed snapshot is a batch of its own: the installer runs, and only then the responses leave.
- A save that fails is fatal: nothing it carried is acknowledged (durability.md: a retry of fsync proves nothing).

Source: etcd-io/raft doc.go, "Usage with Asynchronous Storage Writes".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

from raft.messages import Message
from raft.types import EMPTY_HARD_STATE, Entry, HardState, Index

MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
COMMIT_DELAY_S: Final = 0.1


class LogWriter(Protocol):
    """What the queue needs of the WAL; `save` blocks and runs on the WAL thread."""

    def save(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None: ...


class EntrySink(Protocol):
    """Takes over entries that are durable."""

    def append(self, entries: Sequence[Entry]) -> None: ...


class AppendQueue:
    """Raft's storage appends, in order."""

    def __init__(
        self,
        *,
        wal: LogWriter,
        window: EntrySink,
        executor: Executor,
        hard_state: HardState,
        install: Callable[[Message, HardState], Awaitable[None]],
        on_saved: Callable[[list[Message]], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._wal = wal
        self._window = window
        self._executor = executor
        self._saved_state = hard_state
        self._known_state = hard_state  # what raft wants saved; ahead of _saved_state by a commit index at most
        self._commit_timer: asyncio.TimerHandle | None = None
        self._install = install
        self._on_saved = on_saved
        self._on_fatal = on_fatal
        self._queue: deque[Message] = deque()
        self._running: asyncio.Task[None] | asyncio.Future[None] | None = None
        self._failed = False

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or being written."""
        return self._running is None and not self._queue

    @property
    def saved_commit(self) -> Index:
        """The commit index in the last hard state that was saved."""
        return self._saved_state.commit

    def submit(self, message: Message) -> None:
        """Queue a MsgStorageAppend. Its memory is the unstable tail's, which raft bounds."""
        self._queue.append(message)
        if self._running is None and not self._failed:
            self._start()

    async def wait_idle(self) -> None:
        """Return when what is being written now is done (before the files are closed)."""
        if self._running is None and not self._failed and self._known_state != self._saved_state:
            self._run_save([], [])
        while self._running is not None:
            await asyncio.wait([self._running])

    def _start(self) -> None:
        while self._queue and self._running is None:
            if self._queue[0].snapshot is not None:
                self._run_install(self._queue.popleft())
                return
            batch, entries = self._take_batch()
            if entries or self._must_sync() or any(message.responses for message in batch):
                self._run_save(batch, entries)
            elif self._commit_timer is None:
                self._commit_timer = asyncio.get_running_loop().call_later(COMMIT_DELAY_S, self._save_commit)

    def _must_sync(self) -> bool:
        known, saved = self._known_state, self._saved_state
        return known.term != saved.term or known.vote != saved.vote

    def _save_commit(self) -> None:
        self._commit_timer = None
        if self._running is None and not self._failed and self._known_state != self._saved_state:
            self._run_save([], [])

    def _run_install(self, message: Message) -> None:
        self._known_state = hard_state = self._hard_state_of(message)
        task = asyncio.get_running_loop().create_task(self._install_snapshot(message, hard_state), name="install-snapshot")
        self._running = task
        task.add_done_callback(lambda done: self._finish(done, [message], message.entries, hard_state))

    def _run_save(self, batch: list[Message], entries: list[Entry]) -> None:
        hard_state = self._known_state
        changed = hard_state if hard_state != self._saved_state else None
        sync = bool(entries) or self._must_sync()
        self._running = asyncio.get_running_loop().run_in_executor(self._executor, self._save, entries, changed, sync)
        self._running.add_done_callback(lambda done: self._finish(done, batch, entries, hard_state))

    def _save(self, entries: Sequence[Entry], hard_state: HardState | None, sync: bool) -> None:
        self._wal.save(entries, hard_state, sync=sync)

    async def _install_snapshot(self, message: Message, hard_state: HardState) -> None:
        await self._install(message, hard_state)
        if message.entries:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._save, message.entries, hard_state, True)

    def _take_batch(self) -> tuple[list[Message], list[Entry]]:
        """The longest run of queued messages that one save may carry."""
        batch: list[Message] = []
        entries: list[Entry] = []
        size_bytes = 0
        while self._queue and size_bytes < MAX_BATCH_BYTES:
            message = self._queue[0]
            overwrites = bool(message.entries and entries and message.entries[0].index <= entries[-1].index)
            if message.snapshot is not None or overwrites:
                break
            self._queue.popleft()
            batch.append(message)
            entries.extend(message.entries)
            size_bytes += sum(len(entry.data) for entry in message.entries)
            self._known_state = self._hard_state_of(message)
        return batch, entries

    def _hard_state_of(self, message: Message) -> HardState:
        """The hard state in force once `message` is saved; raft leaves the fields empty when nothing changed."""
        stated = HardState(term=message.term, vote=message.vote, commit=message.commit)
        return self._known_state if stated == EMPTY_HARD_STATE else stated

    def _finish(self, done: asyncio.Future[None], batch: list[Message], entries: Sequence[Entry], hard_state: HardState) -> None:
        self._running = None
        if done.cancelled():
            self._failed = True
            return
        error = done.exception()
        try:
            if error is not None:
                raise error
            self._saved_state = hard_state
            self._window.append(entries)
            self._on_saved([response for message in batch for response in message.responses])
        except Exception as failure:  # noqa: BLE001 - whatever it is, nothing may be acknowledged after it: the node stops
            self._failed = True
            self._on_fatal(failure)
            return
        if self._queue:
            self._start()
