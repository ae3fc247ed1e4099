"""The log seen without opening it: everything that is there, damage marked and read past, and the verdict of a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.types import Entry, EntryType, HardState, Index, NodeId, Term
from wal import DamagedError, LostEntriesError, Metadata, Wal, WalMissingError
from wal.inspect import Damage, Event, RecordSeen, SegmentEnd, SegmentStart, TornTail, inspect_log, list_log, verdict
from wal.record import RecordType

OWN = Metadata(0xC1, 0x51)
LAST = 60


@pytest.fixture
def log(tmp_path: Path) -> Path:
    directory = tmp_path / "wal"
    wal = Wal.create(directory, OWN, segment_size_bytes=4096)
    for number in range(1, LAST + 1):
        entry = Entry(term=Term(1 + number // 40), index=Index(number), type=EntryType.NORMAL, data=b"%d" % number * 30)
        wal.save([entry], HardState(term=entry.term, vote=NodeId(7), commit=Index(number - 1)), sync=True)
    wal.close()
    return directory


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def of_type(events: list[Event], kind: type) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def records(directory: Path) -> list[RecordSeen]:
    return [event for event in inspect_log(directory) if isinstance(event, RecordSeen)]


def snapshot_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_sound_log_is_shown_whole_and_nothing_is_touched(log: Path) -> None:
    (log / "half.tmp").write_bytes(b"left by a crash")
    before = snapshot_of(log)
    events = list(inspect_log(log))
    entries = [event for event in records(log) if event.type == RecordType.ENTRY]
    assert [(event.index, event.term) for event in entries] == [(n, 1 + n // 40) for n in range(1, LAST + 1)]
    starts, ends = of_type(events, SegmentStart), of_type(events, SegmentEnd)
    assert len(starts) == len(ends) >= 3
    assert [event.follows for event in starts] == [None] + [True] * (len(starts) - 1)  # type: ignore[union-attr]
    assert [event.is_sealed for event in ends] == [True] * (len(ends) - 1) + [False]  # type: ignore[union-attr]
    assert sum(event.entries for event in ends) == LAST  # type: ignore[union-attr]
    assert of_type(events, Damage) == of_type(events, TornTail) == []
    judged = verdict(log, applied_index=Index(50), applied_term=Term(2))
    assert judged.refusal is None
    assert judged.torn is None
    assert judged.hard_state == HardState(term=Term(2), vote=NodeId(7), commit=Index(LAST - 1))
    assert (judged.first_index, judged.last_index, judged.last_term) == (1, LAST, 2)
    assert snapshot_of(log) == before
    assert list_log(log)[1] == ["half.tmp", "spare"]


@pytest.mark.parametrize("segment", [0, 1, -1])
@pytest.mark.parametrize("place", ["header", "payload"])
def test_damage_is_marked_and_read_past(log: Path, segment: int, place: str) -> None:
    path = list_log(log)[0][segment]
    inside = [event for event in records(log) if event.path == path and event.type == RecordType.ENTRY]
    victim, following = inside[1], inside[2]
    flip(path, victim.offset_bytes + (9 if place == "header" else 60))
    events = list(inspect_log(log))
    (damage,) = of_type(events, Damage)
    assert isinstance(damage, Damage)
    assert (damage.path, damage.offset_bytes, damage.last_index) == (path, victim.offset_bytes, victim.index - 1)  # type: ignore[operator]
    assert damage.next_offset_bytes is not None
    assert victim.offset_bytes < damage.next_offset_bytes <= following.offset_bytes
    seen = [event.index for event in events if isinstance(event, RecordSeen) and event.type == RecordType.ENTRY]
    assert seen == [n for n in range(1, LAST + 1) if n != victim.index]
    refusal = verdict(log).refusal
    assert isinstance(refusal, DamagedError)
    assert (refusal.path, refusal.offset_bytes) == (path, victim.offset_bytes)


def test_verdict_has_the_very_text_of_a_start(log: Path) -> None:
    path = list_log(log)[0][1]
    victim = next(event for event in records(log) if event.path == path and event.type == RecordType.ENTRY)
    flip(path, victim.offset_bytes + 70)
    with pytest.raises(DamagedError) as raised:
        Wal.open(log, OWN, lambda entry: None, applied_index=Index(0))
    assert str(verdict(log).refusal) == str(raised.value)


def test_torn_tail_is_told_from_damage(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    wal = Wal.create(directory, OWN, segment_size_bytes=65_536)
    for number in range(1, 6):
        entry = Entry(term=Term(1), index=Index(number), type=EntryType.NORMAL, data=bytes([number]) * 2_000)
        wal.save([entry], HardState(term=Term(1), vote=NodeId(7), commit=Index(number - 1)), sync=True)
    (path,) = list_log(directory)[0]
    last = [event for event in records(directory) if event.type == RecordType.ENTRY][-1]
    content = bytearray(path.read_bytes())
    content[last.offset_bytes + 1_024 :] = bytes(len(content) - last.offset_bytes - 1_024)
    path.write_bytes(content)
    events = list(inspect_log(directory))
    (torn,) = of_type(events, TornTail)
    assert isinstance(torn, TornTail)
    assert (torn.offset_bytes, torn.last_index) == (last.offset_bytes, 4)
    assert of_type(events, Damage) == []
    judged = verdict(directory)
    assert judged.refusal is None
    assert judged.torn is not None
    assert str(last.offset_bytes) in judged.torn
    assert isinstance(verdict(directory, applied_index=Index(5)).refusal, LostEntriesError)
    wal.close()


def test_damaged_header_and_foreign_file_are_marked_and_the_others_shown(log: Path) -> None:
    paths = list_log(log)[0]
    flip(paths[1], 40)
    events = list(inspect_log(log))
    assert [event.path for event in of_type(events, Damage)] == [paths[1]]  # type: ignore[union-attr]
    assert {event.path for event in of_type(events, SegmentEnd)} == {paths[0], *paths[2:]}  # type: ignore[union-attr]
    paths[1].write_bytes(b"")
    assert [event.reason for event in inspect_log(log) if isinstance(event, Damage)] == ["the segment file is empty"]
    assert verdict(log).refusal is not None


def test_segment_of_another_log_shows_in_its_link(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    wal = Wal.create(other, OWN, segment_size_bytes=4096)
    for number in range(1, LAST + 1):
        entry = Entry(term=Term(1 + number // 40), index=Index(number), type=EntryType.NORMAL, data=bytes(len(b"%d" % number * 30)))
        wal.save([entry], HardState(term=entry.term, vote=NodeId(7), commit=Index(number - 1)), sync=True)
    wal.close()
    twin = next(path for path in list_log(other)[0][1:] if (log / path.name).exists())
    (log / twin.name).write_bytes(twin.read_bytes())
    links = [event.follows for event in inspect_log(log) if isinstance(event, SegmentStart)]
    assert False in links
    assert verdict(log).refusal is not None


def test_missing_log_is_said(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", tmp_path):
        with pytest.raises(WalMissingError):
            list(inspect_log(directory))
        assert isinstance(verdict(directory).refusal, WalMissingError)
