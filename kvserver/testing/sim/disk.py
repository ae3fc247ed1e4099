"""The disks of a simulated member: a WAL that forgets what was not synced, a store whose commits trail behind what is applied.

Rules
- A crash keeps what was synced and a random prefix of the records written since (a torn tail); the store falls back to its last commit;
  received snapshot files stay.
- The WAL refuses what the real one would refuse to write or to boot from: both follow `wal.state.LogState`.
- Recovery answers as `Wal.open` does, so that the real `WindowLoader` fills the window.
- A record is the smallest thing that is lost: what sectors and directory entries add to that is `file_wal.py`'s, on some of the seeds.

Source: durability.md; wal/log.py and wal/state.py for what is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final
from zlib import crc32

from kvserver.testing.sim.kernel import ViolationError
from raft.types import NO_NODE, ConfState, Entry, EntryType, HardState, Index, NodeId, Term
from wal import Marker, Recovered
from wal.state import LogState

OPERATION: Final = struct.Struct(">QB")
"""What a command holds: its id and its key; padding follows."""

_DIGEST: Final = struct.Struct(">IQQQI")
_DIGESTED_BYTES: Final = 64

Record = Entry | HardState | tuple[Marker, HardState]


@dataclass(slots=True, kw_only=True)
class StoreState:
    """The state machine: registers (key -> index of the newest write), and a digest over everything ever applied."""

    index: Index
    term: Term
    conf_state: ConfState
    digest: int = 0
    values: dict[int, Index] = field(default_factory=dict)

    def copy(self) -> StoreState:
        """An independent copy: a commit, or a snapshot."""
        return replace(self, values=dict(self.values))

    def apply(self, entry: Entry, conf_state: ConfState | None = None) -> None:
        """Apply the next entry; `conf_state` is what a configuration change led to."""
        if entry.index != self.index + 1:
            raise ViolationError("apply order", f"entry {entry.index} was applied at {self.index}")
        header = _DIGEST.pack(self.digest, entry.index, entry.term, entry.type, len(entry.data))
        self.digest = crc32(entry.data[:_DIGESTED_BYTES], crc32(header))
        self.index, self.term = entry.index, entry.term
        if conf_state is not None:
            self.conf_state = conf_state
        elif entry.data and entry.type is EntryType.NORMAL:
            self.values[OPERATION.unpack_from(entry.data)[1]] = entry.index


class SimWal:
    """The log on disk. `state` is where it stands as written, `durable` as synced."""

    __slots__ = ("_base", "_member", "_records", "_synced", "durable", "state")

    def __init__(self, member: NodeId) -> None:
        self._member = member
        self._base = _empty_log()
        self._records: list[Record] = []
        self._synced = 0
        self.state = _empty_log()
        self.durable = _empty_log()

    def write(self, entries: list[Entry], hard_state: HardState | None) -> None:
        """Write a save: entries first, then the hard state. Not yet durable."""
        for entry in entries:
            self._check(self.state.entry_fault(entry.index, entry.term))
            self.state.append(entry.index, entry.term)
            self._records.append(entry)
        if hard_state is not None:
            self._check(self.state.hard_state_fault(hard_state, self.state.last_index, self.state.last_term))
            self.state.hard_state = hard_state
            self._records.append(hard_state)

    def write_marker(self, marker: Marker, hard_state: HardState) -> None:
        """Write that a snapshot was installed."""
        recorded = replace(hard_state, commit=marker.index)
        self._check(self.state.marker_fault(marker, recorded))
        self.state.mark(marker, recorded)
        self._records.append((marker, recorded))

    def sync(self) -> None:
        """Everything written so far is durable."""
        self._settle()

    def _settle(self) -> None:
        for record in self._records[self._synced :]:
            replay(self.durable, record)
        self._synced = len(self._records)

    def crash(self, rng: Random) -> None:
        """Forget a random suffix of what was not synced."""
        del self._records[rng.randint(self._synced, len(self._records)) :]
        self._synced = len(self._records)

    def release(self, index: Index) -> None:
        """Drop records from the front that only concern entries through `index`, which the store holds and the log knows as committed."""
        through = min(index, self.state.hard_state.commit)
        count = 0
        for record in self._records[: self._synced]:
            position = record.index if isinstance(record, Entry) else record[0].index if isinstance(record, tuple) else Index(0)
            if position > through:
                break
            replay(self._base, record)
            count += 1
        if count:
            del self._records[:count]
            self._synced -= count
            self._base.forget(self._base.last_index)
            start = self._base.start_index
            self.state.forget(Index(min(start, self.state.last_index)))
            self.durable.forget(Index(min(start, self.durable.last_index)))

    def recover(self, applied_index: Index, sink: Callable[[Entry], None]) -> Recovered:
        """Read everything back after a crash or a first start, as `Wal.open` does."""
        base = self._base
        state = LogState(start_index=base.start_index, start_term=base.start_term, hard_state=base.hard_state, marker=base.marker)
        for record in self._records:
            if isinstance(record, Entry):
                self._check(state.entry_fault(record.index, record.term))
                sink(record)
            replay(state, record)
        hard_state = state.hard_state
        commit = Index(max(hard_state.commit, applied_index, state.marker.index if state.marker else 0))
        if state.last_index < commit:
            raise ViolationError("durability", f"{self._member} lost entries: its log ends at {state.last_index}, {commit} was committed")
        if hard_state.term < state.last_term:
            hard_state = HardState(term=state.last_term, vote=NO_NODE, commit=commit)
        state.hard_state = replace(hard_state, commit=commit)
        self.state, self.durable = state, _copy_of(self._base)
        self._synced = 0
        self._settle()
        self.durable.hard_state = state.hard_state
        return Recovered(
            hard_state=state.hard_state,
            marker=state.marker,
            first_index=Index(state.start_index + 1),
            prev_term=state.start_term,
            last_index=state.last_index,
            last_term=state.last_term,
            repaired=None,
        )

    def holds_durably(self, index: Index, term: Term) -> bool:
        """The synced log contains that position, or begins behind it."""
        durable = self.durable
        if index < durable.start_index:
            return True
        return index <= durable.last_index and durable.term_at(index) == term

    def _check(self, fault: str | None) -> None:
        if fault is not None:
            raise ViolationError("WAL rules", f"{self._member}: {fault}")


@dataclass(slots=True)
class Disk:
    """What of a member outlives a crash."""

    wal: SimWal
    committed: StoreState
    received: dict[tuple[Index, Term], StoreState] = field(default_factory=dict)


def _empty_log() -> LogState:
    return LogState(start_index=Index(0), start_term=Term(0))


def _copy_of(state: LogState) -> LogState:
    """A copy of a log that holds no entries (a base)."""
    return LogState(start_index=state.start_index, start_term=state.start_term, hard_state=state.hard_state, marker=state.marker)


def replay(state: LogState, record: Record) -> None:
    """Bring a log's state behind its next record."""
    if isinstance(record, Entry):
        state.append(record.index, record.term)
    elif isinstance(record, HardState):
        state.hard_state = record
    else:
        state.mark(*record)
