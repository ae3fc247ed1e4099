"""The seeds that run on the real log: it keeps what the model keeps, and mistakes in it show."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

import wal.log
from kvserver.testing.faults import MemoryDisk
from kvserver.testing.faults.memory import MemoryFile
from kvserver.testing.sim import simulate
from kvserver.testing.sim.file_wal import FileWal
from kvserver.testing.sim.plan import FILES_EVERY
from raft.types import Entry, HardState, Index, NodeId, Term

SEEDS = range(FILES_EVERY - 1, 100, FILES_EVERY)
Patch = pytest.MonkeyPatch


def entry(index: int, term: int) -> Entry:
    return Entry(index=Index(index), term=Term(term), data=b"x" * 300)


def test_one_seed_in_four_runs_on_real_files() -> None:
    assert [seed for seed in range(12) if simulate(seed, steps=1).counts["seeds on real files"]] == [3, 7, 11]


def test_a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() -> None:
    survived = set()
    for seed in range(60):
        log = FileWal(NodeId(1), 0)
        log.write([entry(1, 1), entry(2, 1)], HardState(term=Term(1)))
        log.sync()
        log.write([entry(3, 1), entry(4, 1)], None)
        log.crash(Random(seed))
        seen: list[Entry] = []
        survived.add(log.recover(Index(0), seen.append).last_index)
        assert [each.index for each in seen][:2] == [1, 2]
    assert survived == {2, 3, 4}


def no_sync(patch: Patch) -> None:
    patch.setattr(MemoryFile, "fdatasync", lambda file: None)


def no_directory_sync(patch: Patch) -> None:
    patch.setattr(MemoryDisk, "fsync_dir", lambda disk, directory: None)


def releases_one_segment_too_many(patch: Patch) -> None:
    remove = wal.log.Writer.remove_segments
    patch.setattr(wal.log.Writer, "remove_segments", lambda writer, index: remove(writer, Index(index + 20)))


@pytest.mark.parametrize("plant", [no_sync, no_directory_sync, releases_one_segment_too_many])
def test_finds_mistakes_in_the_log(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in SEEDS:
        violation = simulate(seed, steps=1000).violation
        if violation:
            assert violation.startswith(("durability", "no error reaches the top", "WAL rules")), violation
            return
    pytest.fail(f"not found in {len(SEEDS)} seeds")
