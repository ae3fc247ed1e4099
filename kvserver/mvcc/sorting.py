"""The order of a range's keys, within bounded memory.

Rules
- Order NONE with a target other than the key is ascending; ties keep the order of keys.
- With a limit no more keys are held than that (a heap of limit + 1): a million keys sorted by revision, of which one is wanted, hold two.
- Sorting by value holds the first `FRONT_BYTES` of each value. Where two fronts are equal both values are read again, and let go of.

Caveat: many large values that begin alike are read once for each comparison of two of them; a read that takes too long for that ends as
any other that does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from kvserver.mvcc.found import Found
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import RangeRequest

FRONT_BYTES: Final = 64
FRONT_OVERHEAD_BYTES: Final = 256
"""What a value costs while keys are sorted by it: its front, and what holds that."""

_DESCEND: Final = RangeRequest.SortOrder.DESCEND
_KEYS: Final[dict[int, Callable[[Found], Any]]] = {
    RangeRequest.SortTarget.KEY: lambda found: found.key,
    RangeRequest.SortTarget.VERSION: lambda found: found.version,
    RangeRequest.SortTarget.CREATE: lambda found: found.create_revision,
    RangeRequest.SortTarget.MOD: lambda found: found.mod_revision,
}


class Values(Protocol):
    """Where values are read."""

    def load(self, revision: bytes, into: KeyValue) -> None:
        """Read the whole KeyValue that a change left."""


def sort_overhead_bytes(request: RangeRequest) -> int:
    """What a key costs beside itself while it is sorted."""
    return 0 if request.sort_target in _KEYS else FRONT_OVERHEAD_BYTES


def ordered(found: Iterator[Found], request: RangeRequest, keep: int | None, values: Values) -> list[Found]:
    """The keys in the order that is asked for; of that the first `keep`, None: all. Raises CorruptError."""
    key = _KEYS.get(request.sort_target)
    by: Callable[[Found], Any] = key if key is not None else lambda each: _Value(values, each.revision)
    descends = request.sort_order == _DESCEND
    if keep is None:
        return sorted(found, key=by, reverse=descends)
    choose = heapq.nlargest if descends else heapq.nsmallest
    return choose(keep, found, key=by)


class _Value:
    """A value in an order, by its front; the rest is read when it matters."""

    __slots__ = ("_front", "_is_whole", "_revision", "_values")

    def __init__(self, values: Values, revision: bytes) -> None:
        self._values = values
        self._revision = revision
        value = self._read()
        self._front = value[:FRONT_BYTES]
        self._is_whole = len(value) <= FRONT_BYTES

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Value):
            return NotImplemented
        if self._front != other._front or self._is_whole != other._is_whole:
            return False
        return self._is_whole or self._revision == other._revision or self._read() == other._read()

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: _Value) -> bool:
        if self._front != other._front or (self._is_whole and other._is_whole):
            return self._front < other._front
        return self._revision != other._revision and self._read() < other._read()

    def _read(self) -> bytes:
        kv = KeyValue()
        self._values.load(self._revision, kv)
        return kv.value
