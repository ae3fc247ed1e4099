"""The ring catches known mistakes: each is planted alone in a life of its own, and must show in some crash state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

import kvserver.snapshot.files
import wal.log
from kvserver.errors import KvError
from kvserver.node import bootstrap
from kvserver.testing.faults import Fault, RecordingFiles
from kvserver.testing.faults.operations import Operation, Rename, SyncDirectory, SyncFile
from tests.durability.io.judging import check_tree, crash_points
from tests.durability.io.member import Member
from tests.durability.io.recorded import check_ends, live
from wal import WalError
from wal.codec import encode_hard_state
from wal.record import RecordType

Patch = pytest.MonkeyPatch
FOUND = (AssertionError, KvError, WalError, OSError)
PER_POINT = 24


def forgetful(forgets: Callable[[RecordingFiles, Operation], bool]) -> Callable[[Patch], None]:
    """The member leaves out a step: the disk does not hear of it."""

    def plant(patch: Patch) -> None:
        record = RecordingFiles.record

        def recorded(files: RecordingFiles, operation: Operation) -> None:
            if not forgets(files, operation):
                record(files, operation)

        patch.setattr(RecordingFiles, "record", recorded)

    return plant


def name_of(files: RecordingFiles, number: int) -> str:
    """The present name of a file or directory; empty if it has none."""
    for node in files.disk.nodes.values():
        for name, child in getattr(node, "names", {}).items():
            if child == number:
                return name
    return ""


def no_directory_sync_after_a_cut(files: RecordingFiles, operation: Operation) -> bool:
    return isinstance(operation, SyncDirectory) and name_of(files, operation.number) == "wal"


def no_sync_of_a_new_segment(files: RecordingFiles, operation: Operation) -> bool:
    return isinstance(operation, SyncFile) and name_of(files, operation.number).endswith(".wal.tmp")


def no_sync_of_a_received_snapshot(files: RecordingFiles, operation: Operation) -> bool:
    return isinstance(operation, SyncFile) and name_of(files, operation.number).startswith(("incoming-", "received-"))


def no_directory_sync_after_receiving(files: RecordingFiles, operation: Operation) -> bool:
    if not isinstance(operation, SyncDirectory) or name_of(files, operation.number) != "snap":
        return False
    return any(isinstance(done, Rename) and done.target.startswith("received-") for done in files.journal[-2:])


def no_sync_of_entries(files: RecordingFiles, operation: Operation) -> bool:
    return isinstance(operation, SyncFile) and name_of(files, operation.number).endswith(".wal")


def releases_what_the_store_has_not_committed(patch: Patch) -> None:
    def release(member: Member) -> int:
        window = member.opened.origin.window
        window.compact(member.store.applied_index)
        return member.opened.origin.wal.release(member.store.applied_index)

    patch.setattr(Member, "release", release)
    commit = Member.commit

    async def late(member: Member, during: Callable | None = None) -> None:
        if during is None:
            member.release()
        await commit(member, during)

    patch.setattr(Member, "commit", late)


def hard_state_before_the_entries(patch: Patch) -> None:
    append_entries = wal.log.Writer.append_entries

    def swapped(writer: wal.log.Writer, entries: Sequence) -> None:
        state = writer._state.hard_state
        ahead = type(state)(term=state.term, vote=state.vote, commit=entries[-1].index)
        writer.append(RecordType.HARD_STATE, encode_hard_state(ahead))
        append_entries(writer, entries)

    patch.setattr(wal.log.Writer, "append_entries", swapped)


def trusts_an_unproven_tail(patch: Patch) -> None:
    read_log = wal.log.read_log

    def trusting(*arguments: object) -> object:
        result = read_log(*arguments)
        result.rewrite = None
        return result

    patch.setattr(wal.log, "read_log", trusting)


def cleanup_takes_received_files(patch: Patch) -> None:
    cleanup = bootstrap.cleanup

    def thorough(directory: Path, **options: object) -> list[Path]:
        kvserver.snapshot.files.remove_received(directory)
        return cleanup(directory, **options)

    patch.setattr(bootstrap, "cleanup", thorough)


@dataclass(frozen=True, slots=True)
class Planted:
    """A mistake, and the fault that it takes to show it."""

    plant: Callable[[Patch], None]
    name: str
    faults: tuple[Fault, ...] = ()
    is_slow: bool = False


FAILED_SYNC = Fault(operations=frozenset({"fdatasync"}), after=30, count=1)

PLANTED = [
    Planted(forgetful(no_directory_sync_after_a_cut), "no directory sync after a cut"),
    Planted(forgetful(no_sync_of_a_new_segment), "no sync of a new segment before it has its name"),
    Planted(forgetful(no_sync_of_a_received_snapshot), "no sync of a received snapshot"),
    Planted(forgetful(no_directory_sync_after_receiving), "marker before the received file's name is durable", is_slow=True),
    Planted(forgetful(no_sync_of_entries), "answers without a sync"),
    Planted(releases_what_the_store_has_not_committed, "releases what the store has not committed", is_slow=True),
    Planted(hard_state_before_the_entries, "commit index written before the entries"),
    Planted(trusts_an_unproven_tail, "trusts an unproven tail", (FAILED_SYNC,)),
    Planted(cleanup_takes_received_files, "cleanup takes received files"),
]


def passes(journal: Sequence[Operation]) -> Iterator[Callable[[int, int], bool]]:
    """Which crash points to look at first: those about a received snapshot, where there are few; then all, spread out."""
    names = [position for position, done in enumerate(journal) if isinstance(done, Rename) and "received-" in done.source + done.target]
    near = {position + distance for position in names for distance in range(-8, 9)}
    yield lambda number, position: position in near
    offsets = list(range(16))
    Random(5).shuffle(offsets)
    for offset in offsets:
        yield lambda number, position, offset=offset: number % len(offsets) == offset  # type: ignore[misc]


async def first_finding(home: Path, faults: Sequence[Fault]) -> str:
    """Live, and look at crash states until one is not sound; what was found, or an empty text."""
    try:
        recorded = await live(home, "life", faults=list(faults))
        if recorded.error is not None:
            for seed in range(20):
                await check_ends(recorded, home / "state", seed=seed)
    except FOUND as error:
        return f"the life itself: {error}"
    journal, history = recorded.recorder.journal, recorded.life.history
    for is_wanted in passes(journal):
        for number, point in enumerate(crash_points(journal)):
            if not is_wanted(number, point.position):
                continue
            states = point.states
            for selection in states.selections(PER_POINT, Random(point.position)):
                try:
                    await check_tree(states.build(selection), home / "state", history, point.promise)
                except FOUND as error:
                    return f"operation {point.position} ({type(journal[point.position]).__name__}): {error}"
    return ""


def _parameter(planted: Planted) -> object:
    return pytest.param(planted, id=planted.name.replace(" ", "-"), marks=[pytest.mark.slow] if planted.is_slow else [])


@pytest.mark.parametrize("planted", [_parameter(planted) for planted in PLANTED])
async def test_finds(home, monkeypatch, capsys, planted):
    planted.plant(monkeypatch)
    finding = await first_finding(home, planted.faults)
    with capsys.disabled():
        print(f"\n{planted.name}: {finding[:150]}")
    assert finding
