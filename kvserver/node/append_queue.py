"""The append thread of raft's asynchronous storage writes: the WAL, on a thread of its own.

Purpose: takes raft's MsgStorageAppend messages, makes them durable in order, and hands their responses back on the loop. Everything that
queued up while one fdatasync ran goes into the next: that is the group commit.

Rules
- One save is out at a time; what it may carry is decided in `append_batch`, its size bounded by `MAX_BATCH_BYTES`.
- A commit index alone is a hint (it is learned anew after a restart), so it waits for the next entries, at most `COMMIT_DELAY_S`: one
  trip to the thread less for every write.
- The window takes the entries over when they are durable, before raft hears of it.
- An installed snapshot is a batch of its own: the installer runs, and only then the responses leave. A stop cuts it short, wherever it is:
  it may be waiting for disk space for as long as there is none, and the next start finishes or forgets it (transfers.py).
- A save that finds no space for a new WAL segment is *held*: its batch is kept and saved again every `RETRY_S` until it succeeds; what
  comes meanwhile queues up behind it (raft bounds how much), and `on_held` is told. Nothing of it is acknowledged until then.
- A save that fails otherwise is fatal: nothing it carried is acknowledged (durability.md: a retry of fsync proves nothing).

Source: etcd-io/raft doc.go, "Usage with Asynchronous Storage Writes".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from kvserver.node.append_batch import AppendBatch, hard_state_after, take_batch
from kvserver.node.worker import Worker
from raft.messages import Message
from raft.types import Entry, HardState, Index
from wal import WalNoSpaceError

MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
COMMIT_DELAY_S: Final = 0.1
RETRY_S: Final = 0.5


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
        on_held: Callable[[WalNoSpaceError | None], None] = lambda error: None,
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
        self._on_held = on_held
        self._queue: deque[Message] = deque()
        self._is_running = False
        self._retry: asyncio.TimerHandle | None = None
        self._is_held = False
        self._is_closing = False
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
        """Return when what is being written now is done (before the files are closed). What is held for want of space, and an install, is
        given up: nobody was told of it."""
        self._is_closing = True
        if self._retry is not None:
            self._give_up()
        elif self._install_task is not None:
            self._install_task.cancel()
        if not self._is_running and not self._failed and self._known_state != self._saved_state:
            self._run_save(AppendBatch(messages=[], entries=[], hard_state=self._known_state))
        while self._is_running:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def _start(self) -> None:
        while self._queue and not self._is_running:
            if self._queue[0].snapshot is not None:
                self._run_install(self._queue.popleft())
                return
            batch = take_batch(self._queue, self._known_state, MAX_BATCH_BYTES)
            self._known_state = batch.hard_state
            if batch.must_be_saved_now(self._saved_state):
                self._run_save(batch)
            elif self._commit_timer is None:
                self._commit_timer = asyncio.get_running_loop().call_later(COMMIT_DELAY_S, self._save_commit)

    def _save_commit(self) -> None:
        self._commit_timer = None
        if not self._is_running and not self._failed and self._known_state != self._saved_state:
            self._run_save(AppendBatch(messages=[], entries=[], hard_state=self._known_state))

    def _run_install(self, message: Message) -> None:
        self._known_state = hard_state = hard_state_after(message, self._known_state)
        self._is_running = True
        task = asyncio.get_running_loop().create_task(self._install_snapshot(message, hard_state), name="install-snapshot")
        self._install_task = task
        task.add_done_callback(lambda done: self._installed(done, message, hard_state))

    def _installed(self, done: asyncio.Task[None], message: Message, hard_state: HardState) -> None:
        self._install_task = None
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        self._finish(AppendBatch(messages=[message], entries=list(message.entries), hard_state=hard_state), error)

    def _run_save(self, batch: AppendBatch) -> None:
        self._is_running = True
        self._save(batch)

    def _save(self, batch: AppendBatch) -> None:
        self._retry = None
        saved, hard_state = self._saved_state, batch.hard_state
        changed = hard_state if hard_state != saved else None
        save = partial(self._wal.save, batch.entries, changed, sync=batch.must_sync(saved))
        # No function that refers to itself: the cycle would keep megabytes of entries until the collector comes round.
        self._worker.submit(save, partial(self._save_ended, batch))

    def _save_ended(self, batch: AppendBatch, _: object, error: BaseException | None) -> None:
        if isinstance(error, WalNoSpaceError) and not self._is_closing:
            self._note_held(error)
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._save, batch)
        else:
            self._finish(batch, error)

    async def _install_snapshot(self, message: Message, hard_state: HardState) -> None:
        await self._install(message, hard_state)
        if message.entries:
            await self.run_patiently(partial(self._wal.save, message.entries, hard_state, sync=True))

    async def run_patiently(self, write: Callable[[], None]) -> None:
        """Have the WAL thread write, again and again while there is no space: for an install, whose writes are its own."""
        while True:
            try:
                await self._worker.run(write)
            except WalNoSpaceError as error:
                if self._is_closing:
                    raise
                self._note_held(error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _note_held(self, error: WalNoSpaceError) -> None:
        if not self._is_held:
            self._is_held = True
            self._on_held(error)

    def _give_up(self) -> None:
        """The stop came while a save was held: it was never acknowledged, and nothing may follow it."""
        assert self._retry is not None
        self._retry.cancel()
        self._retry = None
        self._failed = True
        self._is_running = False

    def _finish(self, batch: AppendBatch, error: BaseException | None) -> None:
        """A save or an install ended: hand over what it carried, or stop for good."""
        self._is_running = False
        try:
            if error is not None:
                raise error
            if self._is_held:
                self._is_held = False
                self._on_held(None)
            self._saved_state = batch.hard_state
            self._window.append(batch.entries)
            self._on_saved([response for message in batch.messages for response in message.responses])
        except WalNoSpaceError:
            self._failed = True  # the stop came first: as in `_give_up`
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
