"""A log beside a model of it: what may be found after any end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft.types import Entry, HardState, Index, Term
from tests.wal.simdisk import SimDisk
from wal import Marker, Metadata, Recovered, Wal

METADATA = Metadata(0xC1, 0xA1)


class Collector:
    """A sink that keeps what stands last, as `Wal.open` asks of it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, entry: Entry) -> None:
        if self.entries and entry.index > self.entries[-1].index + 1:
            self.entries.clear()
        while self.entries and self.entries[-1].index >= entry.index:
            self.entries.pop()
        self.entries.append(entry)

    def within(self, recovered: Recovered) -> list[Entry]:
        return [entry for entry in self.entries if recovered.first_index <= entry.index <= recovered.last_index]


def reopen(directory: Path, applied: int = 0, **options: Any) -> tuple[Wal, Recovered, list[Entry]]:
    """Open a log; the entries that stand."""
    sink = Collector()
    wal, recovered = Wal.open(directory, METADATA, sink, applied_index=Index(applied), **options)
    return wal, recovered, sink.within(recovered)


class State:
    """What a log holds, as a plain value: everything since its start or its last marker, whatever was released."""

    def __init__(self, start: Marker, entries: tuple[Entry, ...], hard_state: HardState, marker: Marker | None) -> None:
        self.start = start
        self.entries = entries
        self.hard_state = hard_state
        self.marker = marker

    @property
    def last_index(self) -> int:
        return self.start.index + len(self.entries)

    def term_at(self, index: int) -> int:
        return self.start.term if index == self.start.index else self.entries[index - self.start.index - 1].term

    @property
    def last_term(self) -> int:
        return self.term_at(self.last_index)

    def with_entry(self, new: Entry) -> State:
        return State(self.start, (*self.entries[: new.index - self.start.index - 1], new), self.hard_state, self.marker)

    def with_hard_state(self, hard_state: HardState) -> State:
        return State(self.start, self.entries, hard_state, self.marker)

    def with_marker(self, marker: Marker, hard_state: HardState) -> State:
        return State(marker, (), HardState(term=hard_state.term, vote=hard_state.vote, commit=marker.index), marker)

    def boots_as(self, applied: int) -> HardState:
        """The hard state that opening this log gives."""
        old = self.hard_state
        commit = Index(max(old.commit, applied))
        if old.term < self.last_term:
            return HardState(term=Term(self.last_term), commit=commit)
        return HardState(term=old.term, vote=old.vote, commit=commit)


class Life:
    """A log beside its model: every operation on both; `open` asks that what comes back is a state that the model allows.

    `durable` is the state at the last completed sync, `since` the states after each record written since; a crash may leave any of these.
    """

    DIRECTORY = Path("/wal")
    SEGMENT_BYTES = 4096

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.durable = State(Marker(Index(0), Term(0)), (), HardState(), None)
        self.since: list[State] = []
        self.applied = 0
        self.was_created = False
        self.wal: Wal | None = None

    @property
    def state(self) -> State:
        return self.since[-1] if self.since else self.durable

    def start(self) -> None:
        """Create the log, or open it, as a node does at boot."""
        if Wal.exists(self.DIRECTORY, files=self.disk):
            self.open()
            return
        assert not self.was_created, "the whole log is gone"
        self.wal = Wal.create(self.DIRECTORY, METADATA, files=self.disk, segment_size_bytes=self.SEGMENT_BYTES)
        self.was_created = True

    def open(self) -> None:
        self.wal, recovered, found = reopen(self.DIRECTORY, self.applied, files=self.disk, segment_size_bytes=self.SEGMENT_BYTES)
        self.was_created = True
        for state in [self.durable, *self.since]:
            if self.matches(state, recovered, found):
                self.durable, self.since = state.with_hard_state(recovered.hard_state), []
                return
        raise AssertionError(f"opened as {recovered}, which is none of the {1 + len(self.since)} allowed states")

    def matches(self, state: State, recovered: Recovered, found: list[Entry]) -> bool:
        skipped = recovered.first_index - 1 - state.start.index
        return (
            0 <= skipped <= max(0, self.applied - state.start.index)
            and recovered.prev_term == state.term_at(recovered.first_index - 1)
            and found == list(state.entries[skipped:])
            and (recovered.last_index, recovered.last_term) == (state.last_index, state.last_term)
            and recovered.hard_state == state.boots_as(self.applied)
            and recovered.marker == state.marker
        )

    def save(self, new: list[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        for item in new:
            self.since.append(self.state.with_entry(item))
        if hard_state is not None:
            self.since.append(self.state.with_hard_state(hard_state))
        self.wal.save(new, hard_state, sync=sync)
        if sync:
            self.durable, self.since = self.state, []

    def save_marker(self, marker: Marker, hard_state: HardState) -> None:
        self.since.append(self.state.with_marker(marker, hard_state))
        self.wal.save_marker(marker, hard_state)
        self.durable, self.since = self.state, []
        self.applied = max(self.applied, marker.index)

    def apply(self, index: int) -> None:
        """The store holds entries through `index` durably."""
        self.applied = max(self.applied, min(index, self.state.hard_state.commit, self.durable.last_index))

    def release(self) -> None:
        self.wal.release(Index(self.applied))

    def close(self) -> None:
        self.wal.close()
        self.durable, self.since = self.state, []

    def restart(self, seed: int) -> None:
        """The process was killed; the machine was not."""
        self.disk = self.disk.after_restart(seed)

    def power_loss(self, seed: int) -> None:
        self.disk = self.disk.after_power_loss(seed)
