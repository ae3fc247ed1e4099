"""What a start found, compared with what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import rmtree

from kvserver.errors import KvError
from kvserver.testing.faults import CrashStates, Disk, Tree, write_tree
from kvserver.testing.faults.operations import Note, Operation
from raft.types import Entry
from tests.durability.io.history import History, Promise
from tests.durability.io.member import Opened, boot, content_of
from tests.wal.life import State
from wal import Files, OsFiles, WalError

FOUNDED = Promise(0, 1)
STORE_FILES = frozenset({"db", "db-lock"})


def judge(opened: Opened, history: History, promise: Promise) -> State:
    """Which of the allowed states was found. Raises AssertionError: something promised is lost, or something is there that never was."""
    window, store, hard_state = opened.origin.window, opened.store, opened.origin.hard_state
    first, last = window.first_index(), window.last_index()
    applied = store.applied_index
    found = list(window.entries(first, last + 1, 1 << 40)) if last >= first else []
    assert first <= applied + 1, f"the log begins at {first}, the store is at {applied}"
    assert hard_state.commit <= max(history.highest_commit(promise), 1), "a commit index that never was"
    assert applied <= last, f"the store is at {applied}, the log ends at {last}"
    assert content_of(store) == history.content(applied), f"the store is not what entries 2 to {applied} make of it"
    for state in history.allowed(promise):
        if is_state(state, first, last, found) and hard_state == booted(state, hard_state.commit):
            return state
    allowed = [(state.last_index, state.last_term, state.hard_state) for state in history.allowed(promise)]
    raise AssertionError(f"found a log of [{first}, {last}], {hard_state}, store at {applied}; promised was one of {allowed[:3]}")


def is_state(state: State, first: int, last: int, found: list[Entry]) -> bool:
    """Whether the readable log is this state's, seen from `first` on."""
    skipped = first - 1 - state.start.index
    return skipped >= 0 and last == state.last_index and found == list(state.entries[skipped:])


def booted(state: State, commit: int) -> object:
    """The hard state that a start makes of this one, with what it knows to be committed."""
    return state.boots_as(max(commit, state.hard_state.commit))


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A moment of a recorded life: behind which operation, what is promised there, and what a power loss may leave."""

    position: int
    promise: Promise
    disk: Disk

    @property
    def states(self) -> CrashStates:
        """Listed when asked for: most points are left out."""
        return CrashStates(self.disk)


def crash_points(journal: Sequence[Operation], *, disk: Disk | None = None, promise: Promise = FOUNDED) -> Iterator[CrashPoint]:
    """Every moment at which the disk differs from the moment before, under the strictest promise made while it looks so.

    A point is to be used before the next one is asked for. `disk` is what the journal begins with; it is changed.
    """
    disk = disk or Disk()
    for position, operation in enumerate(journal):
        disk.apply(operation)
        if isinstance(operation, Note):
            continue
        answered, written, following = promise.answered, promise.written, position + 1
        while following < len(journal) and isinstance(journal[following], Note):
            promise = journal[following].remark
            answered = max(answered, promise.answered)
            following += 1
        written = max(written, answered + 1)
        yield CrashPoint(position, Promise(answered, written), disk)


async def check_tree(tree: Tree, root: Path, history: History, promise: Promise, *, files: Files | None = None) -> State:
    """Put the tree below `root`, start a member there, and judge; then remove it. Raises whatever the start raises, or AssertionError."""
    write_tree(tree, root)
    opened = await boot(root, files or OsFiles())
    try:
        state = judge(opened, history, promise)
        assert sorted(path.name for path in opened.directory.snap.iterdir() if path.name not in STORE_FILES) == [], "leftovers"
    finally:
        await opened.close()
    rmtree(root)
    return state


async def count_sound_states(
    journal: Sequence[Operation], root: Path, history: History, *, per_point: int, seed: int, every: int = 1, offset: int = 0
) -> int:
    """Check up to `per_point` states of every so many moments; how many there were. Raises AssertionError with position and cause."""
    count = 0
    for number, point in enumerate(crash_points(journal)):
        if number % every != offset:
            continue
        states = point.states
        for selection in states.selections(per_point, Random(seed * 1_000_003 + point.position)):
            try:
                await check_tree(states.build(selection), root / f"state-{count}", history, point.promise)
            except (AssertionError, KvError, WalError, OSError) as error:
                what = type(journal[point.position]).__name__
                raise AssertionError(f"power lost behind operation {point.position} ({what}), selection {selection}: {error}") from error
            count += 1
    return count
