"""The apply thread of raft's asynchronous storage writes: committed entries, in order, on the event loop.

Purpose: applies entries in slices of at most `SLICE_S`, so that the loop stays free, pauses while the store's write buffer is over its
bound, and hands raft's MsgStorageApplyResp back when a message's last entry is applied. Raft bounds what can queue up here
(max_committed_size_per_ready covers everything that is being applied).

An entry that changes very many keys comes in slices, too: the loop is free, and the store's bound is looked at, between them.

Rules: strictly in order, one entry at a time; an unexpected failure is fatal, as the members would part ways.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

from raft.messages import Message
from raft.types import Entry

SLICE_S: Final = 0.002


class Room(Protocol):
    """The store's backpressure."""

    @property
    def has_room(self) -> bool: ...
    async def wait_room(self) -> None: ...


class ApplyQueue:
    """Raft's storage applies, in order.

    Args:
        apply_slice: applies the next entry or a slice of it, and says whether that was all of it.
    """

    def __init__(
        self,
        *,
        store: Room,
        apply_slice: Callable[[Entry], bool],
        on_applied: Callable[[list[Message]], None],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._store = store
        self._apply_slice = apply_slice
        self._on_applied = on_applied
        self._on_fatal = on_fatal
        self._queue: deque[Message] = deque()
        self._position = 0  # of the next entry within the first queued message
        self._scheduled = False
        self._is_running = False
        self._waiting: asyncio.Task[None] | None = None
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._stopped = False

    @property
    def is_idle(self) -> bool:
        """Nothing is queued."""
        return not self._queue

    @property
    def queued_bytes(self) -> int:
        """Payload of what is queued."""
        return sum(len(entry.data) for message in self._queue for entry in message.entries)

    def submit(self, message: Message) -> None:
        """Queue a MsgStorageApply; applied at once when nothing is ahead of it. May be called from within `on_applied`."""
        self._queue.append(message)
        if not self._is_running and not self._scheduled and self._waiting is None:
            self._run()

    async def wait_idle(self) -> None:
        """Return when everything queued so far, and what follows it meanwhile, is applied (or the queue was stopped)."""
        while self._queue and not self._stopped:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def stop(self) -> None:
        """Apply nothing more."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()
        self._release_idle_waiters()

    def _run(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        self._is_running = True
        try:
            self._run_slice()
        except Exception as failure:  # noqa: BLE001 - apply is deterministic: what fails here must not be skipped, the node stops
            self._stopped = True
            self._release_idle_waiters()
            self._on_fatal(failure)
        finally:
            self._is_running = False

    def _run_slice(self) -> None:
        until_s = perf_counter() + SLICE_S
        applied_now = 0
        while self._queue:
            message = self._queue[0]
            while self._position < len(message.entries):
                if not self._store.has_room:
                    self._wait_room()
                    return
                if applied_now and perf_counter() > until_s:
                    self._schedule()
                    return
                self._position += self._apply_slice(message.entries[self._position])  # by one, if that was all of the entry
                applied_now += 1
            self._queue.popleft()
            self._position = 0
            self._on_applied(message.responses)
        self._release_idle_waiters()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run)

    def _wait_room(self) -> None:
        self._waiting = asyncio.get_running_loop().create_task(self._store.wait_room(), name="apply-wait-room")
        self._waiting.add_done_callback(self._room_made)

    def _room_made(self, task: asyncio.Task[None]) -> None:
        self._waiting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._stopped = True
            self._release_idle_waiters()
            self._on_fatal(error if isinstance(error, Exception) else RuntimeError(str(error)))
            return
        self._run()

    def _release_idle_waiters(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
