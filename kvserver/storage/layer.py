"""One layer of the write buffer: the changes of one batch, in memory, readable in key order.

Purpose: writers put and delete in O(1); readers that iterate pay for the order, and only for what came since the last time.

Rules
- One writer (the event loop). Once a layer is sealed it is never written again and may be read by any thread.
- A deletion is stored as None, so that it hides what older layers and the file hold.
- `size_bytes` counts keys and values plus `ENTRY_OVERHEAD_BYTES` each: what the interpreter spends on two bytes objects, a dict slot and
  two list slots. It is an estimate from above (measured: 150 to 230 bytes per entry of small keys).
"""

from __future__ import annotations

from bisect import insort
from threading import Lock
from typing import Final

ENTRY_OVERHEAD_BYTES: Final = 230

ABSENT: Final = bytes(bytearray(b"absent"))
"""What `dict.get` answers for a key that a layer doesn't know; compared by identity, so no stored value can be mistaken for it."""

_INSORT_MAX: Final = 8


class Layer:
    """Changes to several tables; tables are numbered as the engine numbers them."""

    __slots__ = ("_fresh", "_lock", "_ordered", "count", "mark", "size_bytes", "tables")

    def __init__(self, tables: int) -> None:
        self.tables: list[dict[bytes, bytes | None]] = [{} for _ in range(tables)]
        self.size_bytes = 0
        self.count = 0
        self.mark = 0
        self._fresh: list[list[bytes]] = [[] for _ in range(tables)]
        self._ordered: list[list[bytes]] = [[] for _ in range(tables)]
        self._lock = Lock()

    def set(self, table: int, key: bytes, value: bytes | None) -> None:
        """Store `value` (None: a deletion) under `key`; the last one wins."""
        items = self.tables[table]
        length = 0 if value is None else len(value)
        old = items.get(key, ABSENT)
        if old is ABSENT:
            self.size_bytes += len(key) + length + ENTRY_OVERHEAD_BYTES
            self.count += 1
            self._fresh[table].append(key)
        else:
            self.size_bytes += length - (0 if old is None else len(old))
        items[key] = value

    def ordered_keys(self, table: int) -> list[bytes]:
        """All keys of `table` that this layer changes, ascending. The list is the layer's: not to be changed nor kept across a write."""
        if not self._fresh[table]:
            return self._ordered[table]
        with self._lock:
            fresh, ordered = self._fresh[table], self._ordered[table]
            if len(fresh) <= _INSORT_MAX and ordered:
                for key in fresh:
                    insort(ordered, key)
            elif fresh:
                ordered = ordered + fresh
                ordered.sort()
                self._ordered[table] = ordered
            self._fresh[table] = []
            return ordered

    def frozen_copy(self) -> Layer:
        """What this layer holds now, for a reader on another thread."""
        copy = Layer(0)
        copy.tables = [dict(items) for items in self.tables]
        copy._fresh = [list(keys) for keys in self._fresh]
        copy._ordered = [list(keys) for keys in self._ordered]
        copy.size_bytes, copy.count, copy.mark = self.size_bytes, self.count, self.mark
        return copy
