"""The store of a simulated member: applies at once, commits some time later, and is behind after a crash.

Rules: one commit is under way at a time, of the state at its beginning; a snapshot that is installed is durable at once, and a commit that
was under way counts no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvserver.testing.sim.disk import Disk, StoreState
from kvserver.testing.sim.kernel import Action
from kvserver.testing.sim.plan import Pace
from raft.types import ConfState, Entry, Index, Term


class Owner(Protocol):
    """The member that the store belongs to."""

    def after(self, delay_us: int, action: Action, *arguments: object) -> None: ...
    def between(self, low_us: int, high_us: int) -> int: ...


class SimStore:
    """The state machine in memory, and its commits. `on_durable` hears of every commit."""

    def __init__(self, owner: Owner, disk: Disk, pace: Pace, on_durable: Callable[[Index], None]) -> None:
        self._owner = owner
        self._disk = disk
        self._pace = pace
        self._on_durable = on_durable
        self._epoch = 0
        self._is_committing = False
        self.state = disk.committed.copy()

    @property
    def applied_index(self) -> Index:
        """The last entry applied."""
        return self.state.index

    @property
    def durable_index(self) -> Index:
        """The last entry whose effect is on disk."""
        return self._disk.committed.index

    def durable(self) -> tuple[Index, ConfState]:
        """What a snapshot taken now would cover."""
        return self._disk.committed.index, self._disk.committed.conf_state

    def apply(self, entry: Entry, conf_state: ConfState | None = None) -> None:
        """Apply the next entry; `conf_state` is what a configuration change led to."""
        self.state.apply(entry, conf_state)
        if not self._is_committing:
            self._is_committing = True
            self._commit_later()

    def install(self, position: tuple[Index, Term]) -> StoreState:
        """Put a received snapshot in force; received ones that are not newer go. Returns what it holds."""
        received = self._disk.received
        state = received[position]
        self._disk.committed, self.state = state.copy(), state.copy()
        self._epoch += 1
        self._is_committing = False
        for outdated in [key for key in received if key[0] <= position[0]]:
            del received[outdated]
        return state

    def _commit_later(self) -> None:
        self._owner.after(self._owner.between(1_000, self._pace.max_commit_us), self._begin_commit, self._epoch)

    def _begin_commit(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._owner.after(self._owner.between(1_000, self._pace.max_sync_us), self._end_commit, epoch, self.state.copy())

    def _end_commit(self, epoch: int, state: StoreState) -> None:
        if epoch != self._epoch:
            return
        self._disk.committed = state
        self._is_committing = self.state.index > state.index
        if self._is_committing:
            self._commit_later()
        self._on_durable(state.index)
