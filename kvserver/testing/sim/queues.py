"""The storage threads of a simulated member: appends to the WAL, and applies to the store, as the node's queues do them.

Rules: those of `kvserver.node.append_queue` (whose batches these are, too) and `kvserver.node.apply_queue`, with events in the place of
threads: one save is out at a time; a commit index alone waits; the window takes entries over when they are durable, before raft hears of
it; an installed snapshot is a batch of its own, and in this order: everything committed before is applied, the marker is durable, the store
is swapped, the window begins anew. A crash may come between any two events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kvserver.node.append_batch import AppendBatch, hard_state_after, take_batch
from kvserver.testing.sim.disk import Disk
from kvserver.testing.sim.kernel import Action, ViolationError
from kvserver.testing.sim.plan import Pace
from raft.messages import Message
from raft.types import Entry, HardState, SnapshotMetadata
from wal import Marker

_COMMIT_DELAY_US: Final = 100_000
_MAX_BATCH_BYTES: Final = 256 * 1024
_SLICE_ENTRIES: Final = 16
_APPLY_AT_ONCE: Final = 0.7


class Owner(Protocol):
    """The member that a queue belongs to: its events die with it, and wait while it is stalled."""

    @property
    def disk(self) -> Disk: ...
    def after(self, delay_us: int, action: Action, *arguments: object) -> None: ...
    def between(self, low_us: int, high_us: int) -> int: ...
    def chance(self, probability: float) -> bool: ...
    def note(self, text: str) -> None: ...
    def saved(self, hard_state: HardState, entries: list[Entry], responses: list[Message]) -> None: ...
    def install(self, metadata: SnapshotMetadata) -> None: ...
    def apply_entry(self, entry: Entry) -> None: ...
    def storage_responded(self, responses: list[Message]) -> None: ...


class SimAppendQueue:
    """Raft's storage appends, in order."""

    def __init__(self, owner: Owner, pace: Pace, hard_state: HardState, when_applied: Callable[[Action], None]) -> None:
        self._owner = owner
        self._pace = pace
        self._saved_state = hard_state
        self._known_state = hard_state
        self._when_applied = when_applied
        self._queue: deque[Message] = deque()
        self._is_running = False
        self._is_commit_delayed = False

    def submit(self, message: Message) -> None:
        """Queue a MsgStorageAppend."""
        self._queue.append(message)
        if not self._is_running:
            self._start()

    def _start(self) -> None:
        while self._queue and not self._is_running:
            if self._queue[0].snapshot is not None:
                self._run_install(self._queue.popleft())
                return
            batch = take_batch(self._queue, self._known_state, _MAX_BATCH_BYTES)
            self._known_state = batch.hard_state
            if batch.must_be_saved_now(self._saved_state):
                self._run_save(batch)
            elif not self._is_commit_delayed:
                self._is_commit_delayed = True
                self._owner.after(_COMMIT_DELAY_US, self._save_commit)

    def _save_commit(self) -> None:
        self._is_commit_delayed = False
        if not self._is_running and self._known_state != self._saved_state:
            self._run_save(AppendBatch(messages=[], entries=[], hard_state=self._known_state))

    def _run_save(self, batch: AppendBatch) -> None:
        self._is_running = True
        saved, hard_state = self._saved_state, batch.hard_state
        must_sync = batch.must_sync(saved)
        self._owner.disk.wal.write(batch.entries, hard_state if hard_state != saved else None)
        delay_us = self._owner.between(1_000, self._pace.max_sync_us) if must_sync else 1_000
        self._owner.after(delay_us, self._finish, batch, must_sync)

    def _run_install(self, message: Message) -> None:
        self._is_running = True
        self._known_state = hard_state = hard_state_after(message, self._known_state)
        self._when_applied(lambda: self._owner.after(self._delay_us(), self._mark, message, hard_state))

    def _mark(self, message: Message, hard_state: HardState) -> None:
        assert message.snapshot is not None
        metadata = message.snapshot.metadata
        if (metadata.index, metadata.term) not in self._owner.disk.received:
            raise ViolationError("snapshot", f"raft installs a snapshot {metadata.term}/{metadata.index} that was not received")
        wal = self._owner.disk.wal
        wal.write_marker(Marker(metadata.index, metadata.term), hard_state)
        wal.sync()
        self._owner.note(f"wrote marker {metadata.term}/{metadata.index}")
        self._owner.after(self._delay_us(), self._swap, message, hard_state)

    def _swap(self, message: Message, hard_state: HardState) -> None:
        assert message.snapshot is not None
        self._owner.install(message.snapshot.metadata)
        entries = list(message.entries)
        if entries:
            self._owner.disk.wal.write(entries, hard_state)
        batch = AppendBatch(messages=[message], entries=entries, hard_state=hard_state)
        self._owner.after(self._delay_us() if entries else 0, self._finish, batch, bool(entries))

    def _finish(self, batch: AppendBatch, must_sync: bool) -> None:
        self._is_running = False
        if must_sync:
            self._owner.disk.wal.sync()
        self._saved_state = batch.hard_state
        responses = [response for message in batch.messages for response in message.responses]
        self._owner.saved(batch.hard_state, batch.entries, responses)
        if self._queue and not self._is_running:
            self._start()

    def _delay_us(self) -> int:
        return self._owner.between(1_000, self._pace.max_sync_us)


class SimApplyQueue:
    """Raft's storage applies, in order."""

    def __init__(self, owner: Owner, pace: Pace) -> None:
        self._owner = owner
        self._pace = pace
        self._queue: deque[Message] = deque()
        self._position = 0
        self._is_scheduled = False
        self._when_idle: list[Action] = []

    def submit(self, message: Message) -> None:
        """Queue a MsgStorageApply; often applied at once when nothing is ahead of it."""
        self._queue.append(message)
        if self._is_scheduled:
            return
        if not self._pace.max_apply_us or self._owner.chance(_APPLY_AT_ONCE):
            self._run()
        else:
            self._schedule()

    def when_idle(self, action: Action) -> None:
        """Call `action` when everything queued is applied."""
        if self._queue:
            self._when_idle.append(action)
        else:
            action()

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._owner.after(self._owner.between(0, self._pace.max_apply_us), self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        applied = 0
        while self._queue:
            message = self._queue[0]
            while self._position < len(message.entries):
                if applied == _SLICE_ENTRIES and self._pace.max_apply_us:
                    self._schedule()
                    return
                self._owner.apply_entry(message.entries[self._position])
                self._position += 1
                applied += 1
            self._queue.popleft()
            self._position = 0
            self._owner.storage_responded(message.responses)
            if self._is_scheduled:
                return
        waiting, self._when_idle = self._when_idle, []
        for action in waiting:
            action()
