"""The removal work of compactions, in slices between entries.

Rules
- A slice runs on the loop, between entries, and is a batch's part like any entry: it changes nothing that anybody may read.
- It waits while the write buffer is full, and while the disk is: what it deletes gives space back only after it was written itself.
- Paused while the store's file is being replaced: what a slice writes then would be dropped, and it must not meet the new file half-way.
- Damage in its way ends it, reported, until the store is replaced; any other error is a defect, after which nothing is committed.

Who waits for a removal (a `physical` Compact) waits here, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from kvserver.apply.removal_waiters import RemovalWaiters
from kvserver.errors import CorruptError
from kvserver.types import Index, Revision

COMPACTION_SLICE: Final = 200
"""Changes that one turn looks at: about 2 ms."""
BUFFER_PAUSE_S: Final = 0.01
SPACE_PAUSE_S: Final = 1.0


class SlicedEngine(Protocol):
    """What is needed of the engine."""

    @property
    def has_room(self) -> bool: ...
    @property
    def is_out_of_space(self) -> bool: ...
    def request_commit(self) -> None: ...
    def end_entry(self, mark: int) -> None: ...
    def poison(self, cause: BaseException) -> None: ...


class SlicedCompactor(Protocol):
    """What is needed of the compactor."""

    @property
    def pending(self) -> bool: ...
    @property
    def finished(self) -> int: ...
    def run_slice(self, max_records: int) -> bool: ...


class Removal:
    """One store's removal work. Belongs to its loop; `load` gives it the compactor, also after a replacement."""

    def __init__(self, engine: SlicedEngine, applied_index: Callable[[], Index]) -> None:
        self._engine = engine
        self._applied_index = applied_index
        self._loop = asyncio.get_running_loop()
        self._compactor: SlicedCompactor | None = None
        self._handle: asyncio.Handle | None = None
        self._waiters = RemovalWaiters()
        self._is_paused = False
        self._is_closed = False
        self.on_finished: Callable[[Revision], None] | None = None

    def load(self, compactor: SlicedCompactor) -> None:
        """Work for this compactor from now on, and go on with what it has pending."""
        self._compactor = compactor
        self._waiters.advance(Revision(compactor.finished))
        self.start()

    def start(self) -> None:
        """Begin (or go on with) what is pending."""
        if self._handle is None and self._may_run():
            self._handle = self._loop.call_soon(self._run_slice)

    def pause(self) -> None:
        """No slice runs until `resume`."""
        self._is_paused = True
        self._cancel_slice()

    def resume(self) -> None:
        """Go on with what is pending."""
        self._is_paused = False
        self.start()

    async def wait(self, revision: Revision) -> None:
        """Return when the removal is complete through `revision`, committed or not. Raises CorruptError: damage is in the way."""
        if self._compactor is None or self._compactor.finished < revision:
            await self._waiters.wait(revision)

    def stop(self, *, is_damaged: bool) -> None:
        """Nothing is removed any more, as nothing is committed; who waits hears of the damage, if that is the reason."""
        self._is_closed = True
        self._cancel_slice()
        if is_damaged:
            self._waiters.get_stuck()

    def close(self) -> None:
        """End it; who waits is cancelled."""
        self._is_closed = True
        self._cancel_slice()
        self._waiters.cancel()

    def _may_run(self) -> bool:
        return not self._is_closed and not self._is_paused and self._compactor is not None and self._compactor.pending

    def _cancel_slice(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run_slice(self) -> None:
        self._handle = None
        compactor = self._compactor
        if not self._may_run() or compactor is None:
            return
        if self._engine.is_out_of_space:
            self._handle = self._loop.call_later(SPACE_PAUSE_S, self._run_slice)
            return
        if not self._engine.has_room:
            self._engine.request_commit()
            self._handle = self._loop.call_later(BUFFER_PAUSE_S, self._run_slice)
            return
        try:
            more = compactor.run_slice(COMPACTION_SLICE)
            self._engine.end_entry(self._applied_index())
        except CorruptError:
            self._waiters.get_stuck()  # reported; nothing is removed behind the damage until the member is restored
            return
        except Exception as error:
            self._engine.poison(error)
            raise
        if more:
            self._handle = self._loop.call_soon(self._run_slice)
        finished = Revision(compactor.finished)
        self._waiters.advance(finished)
        if not more and self.on_finished is not None:
            self.on_finished(finished)
