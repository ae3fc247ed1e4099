"""A row of the file that isn't what was written is refused, and so is a row that is missed because of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.storage import DamagedRowError, LayeredReader
from kvserver.storage.seal import is_sound, seal

KEYS = [b"k%02d" % number for number in range(0, 40, 2)]


class Raw:
    """A file with sealed rows in table 1, and a way to damage them behind the seal's back."""

    def __init__(self, path: Path) -> None:
        self.env = lmdb.open(str(path), subdir=False, max_dbs=2)
        self.dbs = [self.env.open_db(b"zero"), self.env.open_db(b"one")]
        self.told: list[tuple[int, bytes, str]] = []
        with self.env.begin(write=True) as txn:
            for key in KEYS:
                txn.put(key, seal(1, key, b"value of " + key), db=self.dbs[1])

    def replace(self, old: bytes, key: bytes, stored: Callable[[bytes], bytes] = lambda stored: stored) -> None:
        """Give a row another key and other stored bytes, as flipped bits would."""
        with self.env.begin(write=True) as txn:
            kept = txn.get(old, db=self.dbs[1])
            txn.delete(old, db=self.dbs[1])
            txn.put(key, stored(kept), db=self.dbs[1])

    def reader(self) -> LayeredReader:
        return LayeredReader(self.env, self.dbs, (), lambda *damage: self.told.append(damage))


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Raw]:
    made = Raw(tmp_path / "db")
    yield made
    made.env.close()


def refuses(raw: Raw, read: Callable[[LayeredReader], Any]) -> None:
    reader = raw.reader()
    try:
        with pytest.raises(DamagedRowError):
            read(reader)
        assert raw.told
    finally:
        reader.close()


@given(table=st.integers(0, 5), key=st.binary(min_size=1, max_size=60), value=st.binary(max_size=200), bit=st.integers(0))
def test_every_flipped_bit_of_a_row_breaks_its_seal(table: int, key: bytes, value: bytes, bit: int) -> None:
    stored = seal(table, key, value)
    assert is_sound(table, key, stored)
    row = bytearray(key + stored)
    bit %= 8 * len(row)
    row[bit // 8] ^= 1 << bit % 8
    assert not is_sound(table, bytes(row[: len(key)]), bytes(row[len(key) :]))
    assert not is_sound(table ^ 1, key, stored)
    assert not is_sound(table, key + stored[:1], stored[1:]), "the boundary between key and value has moved"


def test_sound_rows_are_read_and_absent_keys_are_absent(raw: Raw) -> None:
    reader = raw.reader()
    assert [key for key, _ in reader.iterate(1)] == KEYS
    assert [key for key, _ in reader.iterate(1, b"k05", b"k21", reverse=True)] == [b"k%02d" % n for n in range(20, 5, -2)]
    assert reader.get(1, b"k04") == b"value of k04"
    assert bytes(reader.get_view(1, b"k04") or b"") == b"value of k04"
    for absent in (b"a", b"k05", b"k05x", b"z"):
        assert reader.get(1, absent) is None
    assert (reader.count(1), reader.count(1, b"k01", b"k09"), reader.count(1, b"x"), reader.count(0)) == (20, 4, 0, 0)
    reader.close()
    assert raw.told == []


@pytest.mark.parametrize(
    "read",
    [
        lambda reader: reader.get(1, b"k10"),
        lambda reader: reader.get_view(1, b"k10"),
        lambda reader: list(reader.iterate(1, b"k08", b"k14")),
        lambda reader: list(reader.iterate(1, b"k08", b"k14", reverse=True)),
        lambda reader: list(reader.iterate_views(1)),
    ],
)
def test_damaged_value_is_refused_by_every_way_of_reading(raw: Raw, read: Callable[[LayeredReader], Any]) -> None:
    raw.replace(b"k10", b"k10", lambda stored: b"V" + stored[1:])
    refuses(raw, read)
    assert raw.told[0][:2] == (1, b"k10")


@pytest.mark.parametrize("moved", [b"k11", b"k0y", b"k1", b"zzz", b"a"])
def test_key_that_can_not_be_found_because_it_is_damaged_is_not_absent(raw: Raw, moved: bytes) -> None:
    """With the damaged key where the search for the right one ends: that is where a flip within a page leaves it."""
    raw.replace(b"k10", moved)
    with raw.env.begin() as txn:
        cursor = txn.cursor(raw.dbs[1])
        neighbours = {b""}
        if cursor.set_range(b"k10"):
            neighbours.add(cursor.key())
            if cursor.prev():
                neighbours.add(cursor.key())
    if moved in neighbours:
        refuses(raw, lambda reader: reader.get(1, b"k10"))
    refuses(raw, lambda reader: list(reader.iterate(1)))


def test_both_ends_of_a_range_are_checked(raw: Raw) -> None:
    raw.replace(b"k10", b"k11")
    refuses(raw, lambda reader: list(reader.iterate(1, b"k12", b"k20")))
    refuses(raw, lambda reader: list(reader.iterate(1, b"k04", b"k11")))
    refuses(raw, lambda reader: list(reader.iterate(1, b"k04", b"k11", reverse=True)))
    refuses(raw, lambda reader: reader.count(1, b"k12", b"k20"))
    refuses(raw, lambda reader: reader.count(1, b"k04", b"k11"))


def test_row_of_another_table_is_refused(raw: Raw) -> None:
    with raw.env.begin(write=True) as txn:
        txn.put(b"k10", seal(0, b"k10", b"value of k10"), db=raw.dbs[1])
    refuses(raw, lambda reader: reader.get(1, b"k10"))
