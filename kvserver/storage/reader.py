"""Reading through the write buffer: newest layer first, then the file.

Purpose: one consistent state of all tables, as point reads, as iteration in both directions, and as counts.

Rules
- Bounds are half-open, [lo, hi); `lo=b""` means from the first key, `hi=None` up to the last.
- An iterator must be used up before the next write to a layer that it reads (the engine's own reader); a ReadView's layers never change.
- A sealed layer that is being committed may be in the file already when a transaction begins; reading it twice gives the same.
- Every row that comes from the file is checked against its seal (seal.py) before it is handed out. Where something is *not* found, the
  rows on both sides of the gap are checked, and that they lie on their sides: a search that a damaged key has led astray ends next to that
  key, one that a damaged branch page has led astray ends between keys that don't enclose what is sought. So it is with both ends of an
  iteration and of a count. What fails, and every error of LMDB itself, is a DamagedRowError, and `on_damage` is told first.

Caveats: a pointer between pages that leads to a page of an older state, with sound rows in order, shows in no single read: the walk
over the pages (pages.py), at start, offline and periodically, is what finds it. The rows within a count are not read, only counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn, Protocol, cast

import google_crc32c
import lmdb

from kvserver.storage.errors import DamagedRowError
from kvserver.storage.layer import ABSENT, Layer
from kvserver.storage.seal import MAX_KEY_BYTES, RESIDUE, SEAL_BYTES, SEEDS

OnDamage = Callable[[int, bytes, str], None]
"""Told the table's number, the key and what is wrong; from any thread."""

_extend = google_crc32c.extend
_DAMAGE: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.CursorFullError, lmdb.InvalidError, lmdb.BadTxnError)
"""What LMDB answers when it notices by itself that a page is wrong (the last one: to every read of the transaction afterwards)."""


def ignore_damage(table: int, key: bytes, reason: str) -> None:
    """For readers whose owner hears of damage by the exception alone."""
    del table, key, reason


class Reader(Protocol):
    """One consistent state of the store's tables, as mvcc needs it. Every method may raise DamagedRowError."""

    def get(self, table: int, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def get_view(self, table: int, key: bytes) -> memoryview | None:
        """As `get`, without a copy of a large value."""
        ...

    def iterate(self, table: int, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys in [lo, hi) with their values, ascending or descending."""
        ...

    def iterate_views(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> Iterator[tuple[bytes, memoryview]]:
        """As `iterate`, ascending, without a copy of large values."""
        ...

    def count(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> int:
        """How many keys lie in [lo, hi)."""
        ...


class LayeredReader:
    """A Reader over buffer layers (newest first) and one read transaction of the file, which it owns.

    A table that the file doesn't have (`dbs` holds None) is an empty one.

    `renews`: after a page that can't be read it goes on in a new transaction, as LMDB refuses everything in the old one. For the reader of
    the newest state only: another one would see a later state than its layers belong to. `path`: what the file is called in errors, where
    that is not the name it was opened by.
    """

    __slots__ = ("_dbs", "_env", "_layers", "_on_damage", "_path", "_probes", "_renews", "_txn")

    def __init__(
        self,
        env: lmdb.Environment,
        dbs: Sequence[Any],
        layers: tuple[Layer, ...],
        on_damage: OnDamage = ignore_damage,
        txn: Any = None,
        *,
        renews: bool = False,
        path: str = "",
    ) -> None:
        self._env = env
        self._path = path or env.path()
        self._dbs = dbs
        self._layers = layers
        self._on_damage = on_damage
        self._renews = renews
        self._txn = env.begin() if txn is None else txn
        self._probes: list[Any] = [None] * len(dbs)

    def with_layers(self, layers: tuple[Layer, ...]) -> LayeredReader:
        """The same state of the file under other layers; the transaction is shared and this reader must not be used again."""
        return LayeredReader(self._env, self._dbs, layers, self._on_damage, self._txn, renews=self._renews, path=self._path)

    def close(self) -> None:
        """End the transaction; the reader is of no use afterwards."""
        self._txn.abort()

    @property
    def file_txn_id(self) -> int:
        """Which committed state of the file this is; its pages stay as they are until `close`."""
        return int(self._txn.id())

    def stored(self, table: int, key: bytes) -> bytes | None:
        """What the file holds under `key`, seal and all, unchecked: for telling another format from damage."""
        return cast("bytes | None", self._txn.get(key, None, self._dbs[table]))

    def get(self, table: int, key: bytes) -> bytes | None:
        """See Reader."""
        for layer in self._layers:
            value = layer.tables[table].get(key, ABSENT)
            if value is not ABSENT:
                return value
        stored = self._find(table, key)
        return None if stored is None else stored[:-SEAL_BYTES]

    def get_view(self, table: int, key: bytes) -> memoryview | None:
        """See Reader."""
        for layer in self._layers:
            value = layer.tables[table].get(key, ABSENT)
            if value is not ABSENT:
                return None if value is None else memoryview(value)
        stored = self._find(table, key)
        return None if stored is None else memoryview(stored)[:-SEAL_BYTES]

    def iterate(self, table: int, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        base = self._walk_back(table, lo, hi) if reverse else self._walk(table, lo, hi)
        return self._merged(table, base, lo, hi, reverse=reverse)

    def iterate_views(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> Iterator[tuple[bytes, memoryview]]:
        """See Reader."""
        base = self._walk_views(table, lo, hi)
        merged = cast("Iterator[tuple[bytes, bytes | memoryview]]", self._merged(table, cast("Any", base), lo, hi, reverse=False))
        return ((key, memoryview(value)) for key, value in merged)

    def count(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> int:
        """See Reader."""
        total = self._count(table, lo, hi)
        for key in self._changed_keys(table, lo, hi):
            in_file = self._find(table, key) is not None
            total += (self.get(table, key) is not None) - in_file
        return total

    # --- the file ------------------------------------------------------------------------------------------------------------------------

    def _find(self, table: int, key: bytes) -> bytes | None:
        """The stored bytes of a key, checked; None only if that is checked too."""
        db = self._dbs[table]
        if db is None:
            return None
        try:
            stored: bytes | None = self._txn.get(key, None, db)
            if stored is None:
                self._confirm_absent(table, key)
                return None
        except _DAMAGE as error:
            self._give_up(table, key, f"can't be read: {error}")
        if _extend(_extend(SEEDS[table][len(key)], key), stored) != RESIDUE:
            self._reject(table, key, "fails its checksum")
        return stored

    def _confirm_absent(self, table: int, key: bytes) -> None:
        """Check the rows on both sides of a key that was not found."""
        cursor = self._probes[table]
        if cursor is None:
            cursor = self._probes[table] = self._txn.cursor(self._dbs[table])
        if cursor.set_range(key):
            if self._checked_key(table, cursor) <= key:
                self._reject(table, cursor.key(), f"stands behind the place of {key[:40].hex()}, where it doesn't belong")
            before = cursor.prev()
        else:
            before = cursor.last()
        if before and self._checked_key(table, cursor) >= key:
            self._reject(table, cursor.key(), f"stands before the place of {key[:40].hex()}, where it doesn't belong")

    def _checked_key(self, table: int, cursor: Any) -> bytes:
        """The key of the row that the cursor stands on, checked."""
        key: bytes = cursor.key()
        if len(key) > MAX_KEY_BYTES or _extend(_extend(SEEDS[table][len(key)], key), cursor.value()) != RESIDUE:
            self._reject(table, key, "fails its checksum")
        return key

    def _seek(self, table: int, cursor: Any, lo: bytes) -> bool:
        """Stand on the first row at or behind `lo`, having checked the one before it; False if there is none."""
        if not lo:
            return bool(cursor.first())
        found = bool(cursor.set_range(lo))
        if cursor.prev() if found else cursor.last():
            if self._checked_key(table, cursor) >= lo:
                self._reject(table, cursor.key(), f"stands before the place of {lo[:40].hex()}, where it doesn't belong")
            return bool(cursor.next())
        return found and bool(cursor.first())

    def _rows(self, table: int, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Stored rows in [lo, hi), checked, with both ends."""
        if self._dbs[table] is None:
            return
        seeds = SEEDS[table]
        try:
            cursor = self._txn.cursor(self._dbs[table])
            if not self._seek(table, cursor, lo):
                return
            last: bytes | None = None
            floor = lo
            for key, stored in cursor.iternext():
                if len(key) > MAX_KEY_BYTES or _extend(_extend(seeds[len(key)], key), stored) != RESIDUE:
                    self._reject(table, key, "fails its checksum")
                if key < floor or key == last:
                    self._reject(table, key, "is out of order")
                if hi is not None and key >= hi:
                    return
                last = floor = key
                yield key, stored
        except _DAMAGE as error:
            self._give_up(table, lo, f"or one behind it can't be read: {error}")

    def _walk(self, table: int, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for key, stored in self._rows(table, lo, hi):
            yield key, stored[:-SEAL_BYTES]

    def _walk_views(self, table: int, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, memoryview]]:
        for key, stored in self._rows(table, lo, hi):
            yield key, memoryview(stored)[:-SEAL_BYTES]

    def _walk_back(self, table: int, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        if self._dbs[table] is None:
            return
        seeds = SEEDS[table]
        try:
            cursor = self._txn.cursor(self._dbs[table])
            if hi is None or not cursor.set_range(hi):
                found = cursor.last()
            else:
                if self._checked_key(table, cursor) < hi:
                    self._reject(table, cursor.key(), f"stands behind the place of {hi[:40].hex()}, where it doesn't belong")
                found = cursor.prev()
            if not found:
                return
            last = hi
            for key, stored in cursor.iterprev():
                if len(key) > MAX_KEY_BYTES or _extend(_extend(seeds[len(key)], key), stored) != RESIDUE:
                    self._reject(table, key, "fails its checksum")
                if last is not None and key >= last:
                    self._reject(table, key, "is out of order")
                if key < lo:
                    return
                last = key
                yield key, stored[:-SEAL_BYTES]
        except _DAMAGE as error:
            self._give_up(table, lo, f"or one behind it can't be read: {error}")

    def _count(self, table: int, lo: bytes, hi: bytes | None) -> int:
        """Rows in [lo, hi): both ends are checked, and of the whole table that it is as long as its tree says."""
        if self._dbs[table] is None:
            return 0
        try:
            cursor = self._txn.cursor(self._dbs[table])
            if not self._seek(table, cursor, lo):
                return 0
            total = 0
            if hi is None:
                for _ in cursor.iternext(values=False):
                    total += 1
                if not lo and total != self._txn.stat(self._dbs[table])["entries"]:
                    self._reject(table, b"", f"or another is missing: {total} rows are there, the tree's head says otherwise")
                return total
            for key in cursor.iternext(values=False):
                if key >= hi:
                    self._checked_key(table, cursor)
                    break
                total += 1
        except _DAMAGE as error:
            self._give_up(table, lo, f"or one behind it can't be read: {error}")
        return total

    def _give_up(self, table: int, key: bytes, reason: str) -> NoReturn:
        """A page can't be read."""
        if self._renews:
            self._txn.abort()
            self._txn = self._env.begin()
            self._probes = [None] * len(self._dbs)
        self._reject(table, key, reason)

    def _reject(self, table: int, key: bytes, reason: str) -> NoReturn:
        self._on_damage(table, key, reason)
        raise DamagedRowError(self._path, table, key, reason)

    # --- the layers over it --------------------------------------------------------------------------------------------------------------

    def _changed_keys(self, table: int, lo: bytes, hi: bytes | None) -> list[bytes]:
        """Keys in the bounds that any layer changes, ascending, each once."""
        slices = []
        for layer in self._layers:
            if not layer.tables[table]:
                continue
            ordered = layer.ordered_keys(table)
            first = bisect_left(ordered, lo) if lo else 0
            last = len(ordered) if hi is None else bisect_left(ordered, hi, first)
            if first < last:
                slices.append(ordered[first:last])
        if len(slices) < 2:
            return slices[0] if slices else []
        return sorted(set().union(*slices))

    def _merged(
        self, table: int, base: Iterator[tuple[bytes, bytes]], lo: bytes, hi: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        changed = self._changed_keys(table, lo, hi)
        if not changed:
            return base
        if reverse:
            changed = changed[::-1]
        return self._merge(table, base, changed, reverse=reverse)

    def _merge(
        self, table: int, base: Iterator[tuple[bytes, bytes]], changed: list[bytes], *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        position, end = 0, len(changed)
        for key, value in base:
            while position < end and (changed[position] > key if reverse else changed[position] < key):
                buffered = self.get(table, changed[position])
                if buffered is not None:
                    yield changed[position], buffered
                position += 1
            if position < end and changed[position] == key:
                continue
            yield key, value
        for key in changed[position:]:
            buffered = self.get(table, key)
            if buffered is not None:
                yield key, buffered
