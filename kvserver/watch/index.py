"""Which watchers a key concerns.

Purpose: `WatcherIndex` answers that for one key among many watchers; `KeyedChanges` the reverse, which of a piece of history's changes
concern one watcher.

Theory of operation
- Watchers of single keys stand in a dict: one lookup, however many there are.
- Ranges [lo, hi) (`hi` None: to the end) are kept once each, with the set of their watchers, ordered by `lo`, in chunks of at most
  `CHUNK_RANGES`. Each chunk knows the greatest end in it. A key lies only in ranges whose `lo` is not behind it, so the chunks behind its
  place are never looked at, and of those in front only the ones whose greatest end is behind the key.
- So a lookup costs one comparison per chunk in front and a walk through the chunks that may hold a match: about the square root of the
  number of ranges where they are disjoint (prefixes mostly are), and never more than one step per distinct range.

Invariants: no chunk is empty; `lo` ascends over all chunks; a range without watchers is not kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from kvserver.watch.changes import Change

__all__ = ["KeyRange", "KeyedChanges", "WatcherIndex"]

CHUNK_RANGES: Final = 128

_Watcher = TypeVar("_Watcher")


class KeyRange(NamedTuple):
    """The keys in [lo, hi); `hi` None: to the end. A single key is [key, key + zero byte)."""

    lo: bytes
    hi: bytes | None

    @property
    def is_point(self) -> bool:
        """It holds one key."""
        return self.hi is not None and len(self.hi) == len(self.lo) + 1 and self.hi[-1] == 0 and self.hi.startswith(self.lo)

    def has(self, key: bytes) -> bool:
        """Whether the key lies in it."""
        return self.lo <= key and (self.hi is None or key < self.hi)


class _Chunk(Generic[_Watcher]):
    """Ranges that follow each other by `lo`. `end` is the greatest `hi`, None: one has no end."""

    __slots__ = ("end", "ranges")

    def __init__(self, ranges: list[tuple[bytes, bytes | None, dict[_Watcher, None]]]) -> None:
        self.ranges = ranges
        self.end: bytes | None = b""
        self.measure()

    def measure(self) -> None:
        """Find the greatest end anew."""
        end: bytes | None = b""
        for _, hi, _ in self.ranges:
            if hi is None:
                end = None
                break
            if end is not None and hi > end:
                end = hi
        self.end = end


class WatcherIndex(Generic[_Watcher]):
    """Watchers by what they watch."""

    def __init__(self) -> None:
        self._points: dict[bytes, dict[_Watcher, None]] = {}
        self._ranges: dict[KeyRange, dict[_Watcher, None]] = {}
        self._chunks: list[_Chunk[_Watcher]] = []
        self._firsts: list[bytes] = []  # the first `lo` of each chunk

    def __bool__(self) -> bool:
        return bool(self._points or self._ranges)

    def add(self, watcher: _Watcher, keys: KeyRange) -> None:
        """Enter a watcher; it must not be there."""
        if keys.is_point:
            self._points.setdefault(keys.lo, {})[watcher] = None
            return
        watchers = self._ranges.get(keys)
        if watchers is None:
            watchers = self._ranges[keys] = {}
            self._insert(keys, watchers)
        watchers[watcher] = None

    def remove(self, watcher: _Watcher, keys: KeyRange) -> None:
        """Take a watcher out; it must be there."""
        if keys.is_point:
            watchers = self._points[keys.lo]
            del watchers[watcher]
            if not watchers:
                del self._points[keys.lo]
            return
        watchers = self._ranges[keys]
        del watchers[watcher]
        if not watchers:
            del self._ranges[keys]
            self._delete(keys)

    def find(self, key: bytes) -> Iterator[_Watcher]:
        """The watchers of a key, each once. The index must not change meanwhile."""
        watchers = self._points.get(key)
        if watchers is not None:
            yield from watchers
        for chunk in self._chunks[: bisect_right(self._firsts, key)]:
            if chunk.end is not None and chunk.end <= key:
                continue
            for lo, hi, found in chunk.ranges:
                if lo > key:
                    break
                if hi is None or key < hi:
                    yield from found

    def _insert(self, keys: KeyRange, watchers: dict[_Watcher, None]) -> None:
        if not self._chunks:
            self._chunks.append(_Chunk([]))
            self._firsts.append(keys.lo)
        at = max(0, bisect_right(self._firsts, keys.lo) - 1)
        chunk = self._chunks[at]
        insort(chunk.ranges, (keys.lo, keys.hi, watchers), key=_lo)
        if chunk.end is not None and (keys.hi is None or keys.hi > chunk.end):
            chunk.end = keys.hi
        self._firsts[at] = chunk.ranges[0][0]
        if len(chunk.ranges) > CHUNK_RANGES:
            half = len(chunk.ranges) // 2
            behind = _Chunk(chunk.ranges[half:])
            del chunk.ranges[half:]
            chunk.measure()
            self._chunks.insert(at + 1, behind)
            self._firsts.insert(at + 1, behind.ranges[0][0])

    def _delete(self, keys: KeyRange) -> None:
        at = max(0, bisect_left(self._firsts, keys.lo) - 1)  # equal `lo`s may stand in several chunks
        while True:
            chunk = self._chunks[at]
            position = bisect_left(chunk.ranges, keys.lo, key=_lo)
            while position < len(chunk.ranges) and chunk.ranges[position][0] == keys.lo and chunk.ranges[position][1] != keys.hi:
                position += 1
            if position < len(chunk.ranges) and chunk.ranges[position][0] == keys.lo:
                break
            at += 1
        del chunk.ranges[position]
        if not chunk.ranges:
            del self._chunks[at], self._firsts[at]
            return
        self._firsts[at] = chunk.ranges[0][0]
        if keys.hi is None or keys.hi == chunk.end:
            chunk.measure()


def _lo(item: tuple[bytes, bytes | None, object]) -> bytes:
    return item[0]


class KeyedChanges:
    """A piece of history, by key."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._by_key: dict[bytes, list[tuple[int, Change]]] = {}
        for place in enumerate(changes):
            self._by_key.setdefault(place[1].key, []).append(place)
        self._keys = sorted(self._by_key)

    def find(self, keys: KeyRange) -> Sequence[Change]:
        """The changes of keys in the range, in their order."""
        if keys.is_point:
            return [change for _, change in self._by_key.get(keys.lo, ())]
        first = bisect_left(self._keys, keys.lo)
        last = len(self._keys) if keys.hi is None else bisect_left(self._keys, keys.hi, first)
        places = [place for key in self._keys[first:last] for place in self._by_key[key]]
        places.sort(key=_place)
        return [change for _, change in places]


def _place(item: tuple[int, Change]) -> int:
    return item[0]
