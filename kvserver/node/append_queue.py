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
from functools import partial
from typing import Final, Protocol

from kvserver.node.worker import Worker
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
        worker: Worker,
        hard_state: HardState,
        install: Callable[[Message, HardState], Awaitable[None]],
        on_saved: Callable[[list[Message]], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._wal = wal
        self._window = window
        self._worker = worker
        self._saved_state = hard_state
        self._known_state = hard_state  # what raft wants saved; ahead of _saved_state by a commit index at most
        self._commit_timer: asyncio.TimerHandle | None = None
        self._install = install
        self._on_saved = on_saved
        self._on_fatal = on_fatal
        self._queue: deque[Message] = deque()
        self._is_running = False
        self._install_task: asyncio.Task[None] | None = None
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._failed = False

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or being written."""
        return not self._is_running and not self._queue

    @property
    def saved_commit(self) -> Index:
        """The commit index in the last hard state that was saved."""
        return self._saved_state.commit

    def submit(self, message: Message) -> None:
        """Queue a MsgStorageAppend. Its memory is the unstable tail's, which raft bounds."""
        self._queue.append(message)
        if not self._is_running and not self._failed:
            self._start()

    async def wait_idle(self) -> None:
        """Return when what is being written now is done (before the files are closed)."""
        if not self._is_running and not self._failed and self._known_state != self._saved_state:
            self._run_save([], [])
        while self._is_running:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def _start(self) -> None:
        while self._queue and not self._is_running:
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
        if not self._is_running and not self._failed and self._known_state != self._saved_state:
            self._run_save([], [])

    def _run_install(self, message: Message) -> None:
        self._known_state = hard_state = self._hard_state_of(message)
        self._is_running = True
        task = asyncio.get_running_loop().create_task(self._install_snapshot(message, hard_state), name="install-snapshot")
        self._install_task = task
        task.add_done_callback(lambda done: self._installed(done, message, hard_state))

    def _installed(self, done: asyncio.Task[None], message: Message, hard_state: HardState) -> None:
        self._install_task = None
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        self._finish([message], message.entries, hard_state, error)

    def _run_save(self, batch: list[Message], entries: list[Entry]) -> None:
        hard_state = self._known_state
        changed = hard_state if hard_state != self._saved_state else None
        sync = bool(entries) or self._must_sync()
        self._is_running = True
        self._worker.submit(
            partial(self._wal.save, entries, changed, sync=sync),
            lambda _, error: self._finish(batch, entries, hard_state, error),
        )

    async def _install_snapshot(self, message: Message, hard_state: HardState) -> None:
        await self._install(message, hard_state)
        if message.entries:
            await self._worker.run(partial(self._wal.save, message.entries, hard_state, sync=True))

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

    def _finish(self, batch: list[Message], entries: Sequence[Entry], hard_state: HardState, error: BaseException | None) -> None:
        """A save or an install ended: hand over what it carried, or stop for good."""
        self._is_running = False
        try:
            if error is not None:
                raise error
            self._saved_state = hard_state
            self._window.append(entries)
            self._on_saved([response for message in batch for response in message.responses])
        except Exception as failure:  # noqa: BLE001 - whatever it is, nothing may be acknowledged after it: the node stops
            self._failed = True
            self._on_fatal(failure)
        except asyncio.CancelledError:
            self._failed = True  # an install that the stop cut short
        if self._queue and not self._failed:
            self._start()
        if not self._is_running:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
