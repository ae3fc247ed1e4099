"""Reading through the write buffer: newest layer first, then the file.

Purpose: one consistent state of all tables, as point reads, as iteration in both directions, and as counts.

Rules
- Bounds are half-open, [lo, hi); `lo=b""` means from the first key, `hi=None` up to the last.
- An iterator must be used up before the next write to a layer that it reads (the engine's own reader); a ReadView's layers never change.
- Values read with `iterate_raw` may be memoryviews into the file's map: they die with the reader's transaction.
- A sealed layer that is being committed may be in the file already when a transaction begins; reading it twice gives the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import lmdb

from kvserver.storage.layer import ABSENT, Layer


class Reader(Protocol):
    """One consistent state of the store's tables, as mvcc needs it."""

    def get(self, table: int, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def iterate(self, table: int, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys in [lo, hi) with their values, ascending or descending."""
        ...

    def iterate_raw(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> Iterator[tuple[bytes, bytes | memoryview]]:
        """As `iterate`, ascending, without copying large values out of the file."""
        ...

    def count(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> int:
        """How many keys lie in [lo, hi)."""
        ...


class LayeredReader:
    """A Reader over buffer layers (newest first) and one read transaction of the file, which it owns."""

    __slots__ = ("_dbs", "_env", "_layers", "_raw_txn", "_txn")

    def __init__(self, env: lmdb.Environment, dbs: Sequence[Any], layers: tuple[Layer, ...], txn: Any = None, raw_txn: Any = None) -> None:
        self._env = env
        self._dbs = dbs
        self._layers = layers
        self._txn = env.begin() if txn is None else txn
        self._raw_txn = env.begin(buffers=True) if raw_txn is None else raw_txn

    def with_layers(self, layers: tuple[Layer, ...]) -> LayeredReader:
        """The same state of the file under other layers; the transaction is shared and this reader must not be used again."""
        return LayeredReader(self._env, self._dbs, layers, self._txn, self._raw_txn)

    def close(self) -> None:
        """End the transactions; the reader is of no use afterwards."""
        self._txn.abort()
        self._raw_txn.abort()

    def get(self, table: int, key: bytes) -> bytes | None:
        """See Reader."""
        for layer in self._layers:
            value = layer.tables[table].get(key, ABSENT)
            if value is not ABSENT:
                return value
        return cast("bytes | None", self._txn.get(key, None, self._dbs[table]))

    def iterate(self, table: int, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        base = _walk(self._txn.cursor(self._dbs[table]), lo, hi, reverse=reverse)
        return cast("Iterator[tuple[bytes, bytes]]", self._merged(table, base, lo, hi, reverse=reverse))

    def iterate_raw(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> Iterator[tuple[bytes, bytes | memoryview]]:
        """See Reader."""
        base = ((bytes(key), value) for key, value in _walk_raw(self._raw_txn.cursor(self._dbs[table]), lo, hi))
        return self._merged(table, base, lo, hi, reverse=False)

    def count(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> int:
        """See Reader."""
        txn, db = self._txn, self._dbs[table]
        total = _count(txn.cursor(db), lo, hi) if (lo or hi is not None) else int(txn.stat(db)["entries"])
        keys = self._changed_keys(table, lo, hi)
        for key in keys:
            in_file = txn.get(key, None, db) is not None
            total += (self.get(table, key) is not None) - in_file
        return total

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
        self, table: int, base: Iterator[tuple[bytes, bytes | memoryview]], lo: bytes, hi: bytes | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes | memoryview]]:
        changed = self._changed_keys(table, lo, hi)
        if not changed:
            return base
        if reverse:
            changed = changed[::-1]
        return self._merge(table, base, changed, reverse=reverse)

    def _merge(
        self, table: int, base: Iterator[tuple[bytes, bytes | memoryview]], changed: list[bytes], *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes | memoryview]]:
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


def _walk(cursor: Any, lo: bytes, hi: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    if not reverse:
        if not (cursor.set_range(lo) if lo else cursor.first()):
            return
        for key, value in cursor.iternext():
            if hi is not None and key >= hi:
                return
            yield key, value
        return
    if hi is None or not cursor.set_range(hi):
        found = cursor.last()
    else:
        found = cursor.prev()
    if not found:
        return
    for key, value in cursor.iterprev():
        if key < lo:
            return
        yield key, value


def _walk_raw(cursor: Any, lo: bytes, hi: bytes | None) -> Iterator[tuple[memoryview, memoryview]]:
    if not (cursor.set_range(lo) if lo else cursor.first()):
        return
    for key, value in cursor.iternext():
        if hi is not None and bytes(key) >= hi:
            return
        yield key, value


def _count(cursor: Any, lo: bytes, hi: bytes | None) -> int:
    if not (cursor.set_range(lo) if lo else cursor.first()):
        return 0
    total = 0
    if hi is None:
        for _ in cursor.iternext(values=False):
            total += 1
        return total
    for key in cursor.iternext(values=False):
        if key >= hi:
            break
        total += 1
    return total
