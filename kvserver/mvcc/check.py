"""Whether a request may be proposed at all: what can be told from the request alone.

Rules: pure functions; each raises the documented DeterministicError or returns None. The api calls them before it proposes; apply relies on
them for everything but empty keys (an empty key can't be stored, so apply checks that itself).

Source: etcd's v3rpc/key.go for the order in which errors are found, which clients can observe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from kvserver.errors import (
    DuplicateKeyError,
    EmptyKeyError,
    InvalidSortOptionError,
    KeyNotFoundError,
    LeaseProvidedError,
    TooManyOpsError,
    ValueProvidedError,
)
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest

_SORT_ORDERS = frozenset(RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(RangeRequest.SortTarget.values())


def check_range(request: RangeRequest) -> None:
    """Raises EmptyKeyError, InvalidSortOptionError."""
    if not request.key:
        raise EmptyKeyError
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise InvalidSortOptionError


def check_put(request: PutRequest) -> None:
    """Raises EmptyKeyError, ValueProvidedError, LeaseProvidedError."""
    if not request.key:
        raise EmptyKeyError
    if request.ignore_value and request.value:
        raise ValueProvidedError
    if request.ignore_lease and request.lease:
        raise LeaseProvidedError


def check_delete(request: DeleteRangeRequest) -> None:
    """Raises EmptyKeyError."""
    if not request.key:
        raise EmptyKeyError


def check_txn(request: TxnRequest, *, max_txn_ops: int) -> None:
    """Check a transaction and everything nested in it.

    Each level may use max(compares, success operations, failure operations) of `max_txn_ops`; what is nested in it gets the rest.

    Raises:
        TooManyOpsError, DuplicateKeyError (a put meets a put or a deletion of the same key), and those of the operations.
    """
    _check_ops(request, max_txn_ops)
    _check_overlaps(request.success)
    _check_overlaps(request.failure)


def _check_ops(request: TxnRequest, max_txn_ops: int) -> None:
    used = max(len(request.compare), len(request.success), len(request.failure))
    if used > max_txn_ops:
        raise TooManyOpsError
    for compare in request.compare:
        if not compare.key:
            raise EmptyKeyError
    for op in request.success:
        _check_op(op, max_txn_ops - used)
    for op in request.failure:
        _check_op(op, max_txn_ops - used)


def _check_op(op: RequestOp, max_txn_ops: int) -> None:
    match op.WhichOneof("request"):
        case "request_range":
            check_range(op.request_range)
        case "request_put":
            check_put(op.request_put)
        case "request_delete_range":
            check_delete(op.request_delete_range)
        case "request_txn":
            _check_ops(op.request_txn, max_txn_ops)
        case None:
            raise KeyNotFoundError  # what etcd answers to an operation that is none


class _Ranges:
    """A set of key ranges, asked whether a key lies in one; built once, asked often."""

    def __init__(self, ranges: Iterable[tuple[bytes, bytes | None]]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for lo, hi in sorted(ranges, key=lambda bounds: bounds[0]):
            if hi is not None and lo >= hi:
                continue
            if self._starts and (self._ends[-1] is None or lo <= self._ends[-1]):
                last = self._ends[-1]
                self._ends[-1] = None if last is None or hi is None else max(last, hi)
            else:
                self._starts.append(lo)
                self._ends.append(hi)

    def holds(self, key: bytes) -> bool:
        position = bisect_right(self._starts, key) - 1
        if position < 0:
            return False
        end = self._ends[position]
        return end is None or key < end


def _check_overlaps(ops: Sequence[RequestOp]) -> tuple[set[bytes], list[tuple[bytes, bytes | None]]]:
    """The keys that one branch may put and the ranges that it may delete, nested branches included."""
    deletes = [
        range_bounds(op.request_delete_range.key, op.request_delete_range.range_end) for op in ops if op.HasField("request_delete_range")
    ]
    puts: set[bytes] = set()
    for op in ops:
        if not op.HasField("request_txn"):
            continue
        puts_then, deletes_then = _check_overlaps(op.request_txn.success)
        puts_else, deletes_else = _check_overlaps(op.request_txn.failure)
        ranges = _Ranges(deletes)
        for key in puts_then | puts_else:  # only one of the two branches runs, so they may share keys
            if key in puts or ranges.holds(key):
                raise DuplicateKeyError
        puts |= puts_then | puts_else
        deletes += deletes_then + deletes_else
    ranges = _Ranges(deletes)
    for op in ops:
        if op.HasField("request_put"):
            key = op.request_put.key
            if key in puts or ranges.holds(key):
                raise DuplicateKeyError
            puts.add(key)
    return puts, deletes


def range_bounds(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """The half-open [lo, hi) that a request means: no range_end is the one key, a zero byte everything from `key` on (hi is None)."""
    if not range_end:
        return key, key + b"\x00"
    return key, None if range_end == b"\x00" else range_end
