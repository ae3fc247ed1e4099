"""A simulated member's log as files: the real `wal.Wal` on a disk in memory, beside the model of it.

Purpose: most seeds run on `SimWal`, which models the log as records and is fast; every fourth runs on this, so that the real log meets what
only whole clusters do to it: overwrites, markers, releases and crashes in orders that nobody thought of.

Rules
- Every call goes to the model first (which says what is against the rules), then to the real log. The queues ask only for what the real one
  can do at that moment: write, sync, mark, release.
- A crash is a power loss, or the end of the process alone, after which what was written is still seen. Then the real log is opened, and
  must give what the model has after some prefix of its records, all synced ones included; the model is cut to that.
- The model releases what the real log released: whole segments. Closed segments stay as long as they take no more than `retain_bytes`, to
  serve members that are behind memory (history.py).

Memory: one small segment size, so that cuts are frequent; the disk is rebuilt at each power loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from kvserver.testing.faults import MemoryDisk
from kvserver.testing.sim.disk import Record, SimWal, replay
from kvserver.testing.sim.kernel import ViolationError
from raft.types import NO_NODE, Entry, HardState, Index, NodeId
from wal import Marker, Metadata, Recovered, Wal, WalError
from wal.state import LogState

DIRECTORY: Final = Path("/wal")
SEGMENT_BYTES: Final = 4096
_POWER_FAILS: Final = 0.7


class FileWal(SimWal):
    """As `SimWal`, with the real log beside it."""

    __slots__ = ("_disk", "_metadata", "_real", "retain_bytes")

    def __init__(self, member: NodeId, retain_bytes: int) -> None:
        super().__init__(member)
        self.retain_bytes = retain_bytes
        self._metadata = Metadata(cluster_id=1, member_id=member)
        self._disk = MemoryDisk(member)
        self._real = Wal.create(DIRECTORY, self._metadata, files=self._disk, segment_size_bytes=SEGMENT_BYTES)

    @property
    def real(self) -> Wal:
        """The real log of this life."""
        return self._real

    @property
    def files(self) -> MemoryDisk:
        """The disk that it is on."""
        return self._disk

    def write(self, entries: list[Entry], hard_state: HardState | None) -> None:
        """Write a save; not yet durable."""
        super().write(entries, hard_state)
        self._real.save(entries, hard_state, sync=False)

    def write_marker(self, marker: Marker, hard_state: HardState) -> None:
        """Write that a snapshot was installed; the real log makes it durable at once."""
        super().write_marker(marker, hard_state)
        self._real.save_marker(marker, hard_state)

    def sync(self) -> None:
        """Everything written so far is durable."""
        super().sync()
        self._real.save([], None, sync=True)

    def release(self, index: Index) -> None:
        """Remove the segments that only concern entries through `index`, and as much of the model."""
        self._real.release(index, retain_bytes=self.retain_bytes)
        super().release(Index(self._real.first_index - 1))

    def crash(self, rng: Random) -> None:
        """Lose power, or only the process."""
        seed = rng.getrandbits(32)
        lost = rng.random() < _POWER_FAILS
        self._disk = self._disk.after_power_loss(seed) if lost else self._disk.after_restart(seed)

    def recover(self, applied_index: Index, sink: Callable[[Entry], None]) -> Recovered:
        """Open the real log, and find the model's state that it is in."""
        entries: list[Entry] = []
        try:
            self._real, recovered = Wal.open(
                DIRECTORY, self._metadata, entries.append, applied_index=applied_index, files=self._disk, segment_size_bytes=SEGMENT_BYTES
            )
        except WalError as error:
            raise ViolationError("durability", f"{self._member}: {error}") from error
        self._cut_to(recovered, applied_index)
        held: dict[Index, Entry] = {}
        super().recover(applied_index, lambda entry: held.__setitem__(entry.index, entry))
        found = {entry.index: entry for entry in entries}
        for index in range(recovered.first_index, recovered.last_index + 1):
            if found.get(Index(index)) != held.get(Index(index)):
                raise ViolationError("durability", f"{self._member}: entry {index} came back as {found.get(Index(index))}")
        for entry in entries:
            sink(entry)
        return recovered

    def _cut_to(self, recovered: Recovered, applied_index: Index) -> None:
        """Forget the records that did not survive."""
        for count in range(len(self._records), self._synced - 1, -1):
            if _matches(self._state_after(self._records[:count]), recovered, applied_index):
                del self._records[count:]
                self._synced = count
                return
        raise ViolationError("durability", f"{self._member}: the log came back as {recovered}, which it never was")

    def _state_after(self, records: list[Record]) -> LogState:
        base = self._base
        state = LogState(start_index=base.start_index, start_term=base.start_term, hard_state=base.hard_state, marker=base.marker)
        for record in records:
            replay(state, record)
        return state


def _matches(state: LogState, recovered: Recovered, applied_index: Index) -> bool:
    """Whether opening a log in this state gives that."""
    if (state.last_index, state.last_term, state.marker) != (recovered.last_index, recovered.last_term, recovered.marker):
        return False
    commit = Index(max(state.hard_state.commit, applied_index, state.marker.index if state.marker else 0))
    if state.hard_state.term < state.last_term:
        return recovered.hard_state == HardState(term=state.last_term, vote=NO_NODE, commit=commit)
    return recovered.hard_state == HardState(term=state.hard_state.term, vote=state.hard_state.vote, commit=commit)
