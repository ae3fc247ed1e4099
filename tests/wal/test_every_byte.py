"""Every byte of a known log: cut there, and each bit flipped. Nothing that was saved is lost or changed without a word.

The log is about 12 KB in three segments: entries from empty to several sectors, saves of one and of many, commit-only saves, an
overwrite. Judged:
- a cut in the newest segment gives exactly the records that are whole before it (or a refusal, if that is inside the segment's header);
- a cut in an older one is refused, unless only its seal is hit: then nothing is lost;
- a flipped bit gives the exact log or a refusal; a shorter log only if what is missing lies in the last batch (torn looks the same).

What no reader can decide is counted, and the counts are asserted (docs/architecture/wal.md, "What no reader can decide"): the cuts that
leave a shorter log, and, in a second log whose last save holds a blank sector, the flips that look like a torn write. All of them lose what
was saved only when neither the commit nor the applied index covers it: `tests/durability/damage/test_every_byte_boot.py`.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter

import pytest

from raft.types import Index
from wal import WalError
from wal.log import Wal
from wal.reader import read_log
from wal.record import RecordType

DIRECTORY = "/wal"


class Known:
    """The log, its files' bytes, and what the newest segment holds up to each of its records."""

    def __init__(self, kit):
        self.kit = kit
        disk = kit.SimDisk(4)
        self.directory = kit.Path(DIRECTORY)
        wal = Wal.create(self.directory, kit.METADATA, files=disk, segment_size_bytes=4096)
        self._fill(wal)
        self.disk = disk
        folder = disk.find(self.directory)
        self.names = sorted(name for name in folder.names if name.endswith(".wal"))
        self.data = {name: bytes(folder.names[name].content) for name in self.names}
        self.exact = self.read()
        self._find_records(wal)

    def _fill(self, wal):
        kit = self.kit
        wal.save(kit.entries(1, 1), kit.state(), sync=True)
        for index in range(2, 24, 2):
            wal.save(kit.entries(index, index + 1, size=index * 9), kit.state(commit=index - 1), sync=True)
            wal.save([], kit.state(commit=index), sync=False)
        wal.save([kit.entry(24, data=b""), kit.entry(25)], None, sync=True)
        wal.save(kit.entries(24, 26, term=2, size=500), kit.state(term=2, vote=3, commit=23), sync=True)
        wal.save(kit.entries(27, 29, term=2, size=250), kit.state(term=2, vote=3, commit=26), sync=True)
        wal.save(kit.entries(30, 33, term=2, size=120), kit.state(term=2, vote=3, commit=29), sync=True)
        for index in range(34, 46, 3):
            wal.save(kit.entries(index, index + 2, term=2, size=120), kit.state(term=2, vote=3, commit=index - 4), sync=True)
        wal.save(kit.entries(46, 48, term=2, size=70), kit.state(term=2, vote=3, commit=43), sync=True)

    def _find_records(self, wal):
        """Ends of the newest segment's records and the log after each; where its last batch begins."""
        self.used_bytes = wal.segments()[-1].used_bytes
        data = self.data[self.names[-1]]
        self.ends = []
        self.headers = []
        last_batch = None
        offset = 16
        while offset < self.used_bytes:
            length = int.from_bytes(data[offset : offset + 4], "little")
            batch = data[offset + 8 : offset + 16]
            if batch != last_batch:
                last_batch, self.last_batch_start = batch, offset
            self.headers.append((offset, self.last_batch_start))
            offset += 32 + length + (-length % 8)
            self.ends.append(offset)
        assert offset == self.used_bytes
        assert data[self.ends[0] + 4] == RecordType.ENTRY
        self.after = []
        for end in self.ends:
            self.put(self.names[-1], data[:end])
            self.after.append(self.read())
        self.put(self.names[-1], data)

    def put(self, name, data):
        self.disk.find(self.directory / name).content = data

    def read(self):
        """What a process would find: the entries that stand and the hard state."""
        sink = self.kit.Collector()
        result = read_log(self.disk, self.directory, self.kit.METADATA, sink)
        return [(entry.index, entry.term, entry.data) for entry in sink.entries], result.state.hard_state

    def verdict(self, name, data):
        """`read` with one file's content replaced: "refused", "exact", or how many of the newest segment's records are there."""
        self.put(name, data)
        try:
            found = self.read()
        except WalError:
            return "refused"
        finally:
            self.disk.operations.clear()
            self.put(name, self.data[name])
        if found == self.exact:
            return "exact"
        assert found in self.after, "a log that never was"
        return self.after.index(found) + 1


@pytest.fixture(scope="module")
def known(kit):
    return Known(kit)


def judge_cut(known, name, size_bytes):
    result = known.verdict(name, known.data[name][:size_bytes])
    newest = known.names[-1]
    if name != newest:
        assert result == ("exact" if size_bytes >= len(known.data[name]) - 32 else "refused")
    elif size_bytes >= known.used_bytes:
        assert result == "exact"
    else:
        whole = bisect_right(known.ends, size_bytes)
        assert result == ("refused" if whole == 0 else whole), size_bytes
    return result


def judge_flip(known, name, bit):
    data = bytearray(known.data[name])
    data[bit // 8] ^= 1 << bit % 8
    result = known.verdict(name, bytes(data))
    if name != known.names[-1]:
        assert result == ("refused" if bit // 8 < len(data) - 32 else "exact"), bit
    elif isinstance(result, int):
        assert bit // 8 >= known.last_batch_start
        assert known.ends[result - 1] >= known.last_batch_start
    elif result == "exact":
        assert bit // 8 >= known.used_bytes
    return result


def sample(name, count, total):
    return random.Random(name).sample(range(total), count)


def test_known_log_is_worth_the_test(known):
    assert len(known.names) == 3
    assert 10_000 < sum(map(len, known.data.values())) < 13_000
    assert known.used_bytes > 2_000
    entries, hard_state = known.exact
    assert [index for index, _, _ in entries] == list(range(1, 49))
    assert hard_state == known.kit.state(term=2, vote=3, commit=43)
    assert hard_state.commit < Index(46)


def test_sampled_cuts_lose_only_what_was_cut(known):
    seen = [judge_cut(known, name, size) for name in known.names for size in sample(name, 250, len(known.data[name]))]
    assert {"refused", "exact"} < set(seen)


def test_cuts_round_each_record_of_the_newest_segment(known):
    for end in known.ends:
        for size in range(end - 9, end + 34):
            judge_cut(known, known.names[-1], size)


def test_sampled_bit_flips_change_nothing_silently(known):
    for name in known.names:
        for bit in sample(name, 500, len(known.data[name]) * 8):
            judge_flip(known, name, bit)


def test_no_bit_flip_in_the_last_batch_passes_for_a_torn_tail_here(known):
    """These values hold no zeros, so even in the last batch a flip is told from a torn write."""
    bits = random.Random(7).sample(range(known.last_batch_start * 8, known.used_bytes * 8), 800)
    assert {judge_flip(known, known.names[-1], bit) for bit in bits} == {"refused"}


def mutate(rng, data):
    """Overwrite, blank, move or copy up to three stretches."""
    damaged = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        length = rng.choice([1, 4, 8, 64, 512, 1024])
        start = rng.randrange(len(damaged))
        start -= start % rng.choice([1, 8, 512])
        source = rng.randrange(len(damaged))
        source -= source % 8
        replacement = rng.choice([bytes(length), rng.randbytes(length), bytes(damaged[source : source + length])])
        damaged[start : start + len(replacement)] = replacement
    return bytes(damaged)


def test_any_mutation_is_refused_or_loses_only_the_last_batch_with_a_header(known):
    """Batches whose every header was wiped out are not there for any reader."""
    for name in known.names:
        rng = random.Random(name)
        for case in range(400):
            damaged = mutate(rng, known.data[name])
            result = known.verdict(name, damaged)
            if name != known.names[-1]:
                assert result in ("refused", "exact"), case
            elif isinstance(result, int):
                first_lost, _ = known.headers[result]
                later = [offset for offset, batch_start in known.headers if batch_start > first_lost]
                assert all(damaged[offset : offset + 32] != known.data[name][offset : offset + 32] for offset in later), case


def is_silent(known, result):
    """Whether something that a sync had covered is gone without a word: entries, or the term and vote."""
    if not isinstance(result, int):
        return False
    entries, hard_state = known.after[result - 1]
    exact_entries, exact_state = known.exact
    return entries != exact_entries or (hard_state.term, hard_state.vote) != (exact_state.term, exact_state.vote)


def tally(known, results):
    """How many cases were refused, exact, shorter without a loss, and shorter with one."""
    counts = Counter("silent" if is_silent(known, result) else "shorter" if isinstance(result, int) else result for result in results)
    return {kind: counts[kind] for kind in ("refused", "exact", "shorter", "silent")}


CUT_COUNTS = [
    {"refused": 4064, "exact": 32, "shorter": 0, "silent": 0},
    {"refused": 3912, "exact": 32, "shorter": 0, "silent": 0},
    {"refused": 64, "exact": 944, "shorter": 40, "silent": 3048},
]
FLIP_COUNTS = [
    {"refused": 32512, "exact": 256, "shorter": 0, "silent": 0},
    {"refused": 31296, "exact": 256, "shorter": 0, "silent": 0},
    {"refused": 28672, "exact": 4096, "shorter": 0, "silent": 0},
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", range(3))
def test_every_cut(known, which):
    name = known.names[which]
    counts = tally(known, (judge_cut(known, name, size) for size in range(len(known.data[name]))))
    print(name, "cuts:", counts)
    assert counts == CUT_COUNTS[which]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", range(3))
def test_every_bit_flip(known, which):
    name = known.names[which]
    counts = tally(known, (judge_flip(known, name, bit) for bit in range(len(known.data[name]) * 8)))
    print(name, "flips:", counts)
    assert counts == FLIP_COUNTS[which]


class Blank(Known):
    """A log whose last save holds a blank sector: one value with zeros in it, one without before it, one behind it."""

    def _fill(self, wal):
        kit = self.kit
        wal.save(kit.entries(1, 2, size=100), kit.state(), sync=True)
        zeros = kit.entry(4, data=b"x" * 40 + bytes(1040) + b"y" * 40)
        wal.save([*kit.entries(3, 3, size=60), zeros, *kit.entries(5, 5, size=60)], kit.state(commit=2), sync=True)


@pytest.fixture(scope="module")
def blank(kit):
    return Blank(kit)


BLANK_FLIP_COUNTS = {"refused": 9952, "exact": 0, "shorter": 0, "silent": 5088}


def flips_beside_a_blank_sector(blank, bits):
    """Flip these bits; every one that no reader can decide lies in the record that holds a blank sector, behind its header's checksum."""
    (name,) = blank.names
    records = zip((start for start, _ in blank.headers), blank.ends, strict=True)
    begin, end = next((start, end) for start, end in records if end - start > 1_000)
    results = {bit: judge_flip(blank, name, bit) for bit in bits}
    assert all(begin + 28 <= bit // 8 < end for bit, result in results.items() if is_silent(blank, result))
    return tally(blank, results.values())


def test_sampled_flips_beside_a_blank_sector_look_torn_only_in_that_record(blank):
    counts = flips_beside_a_blank_sector(blank, sample("blank", 800, blank.used_bytes * 8))
    assert counts["silent"] > 0
    assert counts["refused"] > 0


@pytest.mark.slow
def test_every_flip_beside_a_blank_sector_looks_torn_only_in_that_record(blank):
    counts = flips_beside_a_blank_sector(blank, range(blank.used_bytes * 8))
    print("flips beside a blank sector:", counts)
    assert counts == BLANK_FLIP_COUNTS


def test_sector_that_the_disk_blanks_in_the_last_batch_looks_torn(blank):
    """The other way to the same state; before the last batch it is damage."""
    (name,) = blank.names
    seen = Counter()
    for sector in range(0, blank.used_bytes, 512):
        data = bytearray(blank.data[name])
        data[sector : sector + 512] = bytes(512)
        result = blank.verdict(name, bytes(data))
        assert isinstance(result, str) or blank.ends[result - 1] >= blank.last_batch_start
        seen["silent" if is_silent(blank, result) else result] += 1
    assert seen["silent"] >= 2
    assert seen["refused"] >= 1
