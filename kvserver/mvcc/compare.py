"""The guards of transactions.

Rules: a compare with a range_end must hold for every key of the range. A range without keys is compared as one key with all numbers 0,
except that a compare of values fails, because a missing value equals none.

Source: etcd's apply.go (applyCompare), whose treatment of a missing or mismatched operand (zero, empty) is kept.
"""

from __future__ import annotations

from kvserver.mvcc.check import range_bounds
from kvserver.mvcc.found import Found
from kvserver.mvcc.read import Snapshot
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import Compare

_MISSING = Found(b"", bytes(16), 0, 0, 0)


def holds(state: Snapshot, compare: Compare) -> bool:
    """Whether the compare is true in the newest state. Raises CorruptError."""
    lo, hi = range_bounds(compare.key, compare.range_end)
    if compare.range_end:
        found = state.scan(lo, hi, state.revision)
    else:
        one = state.find(lo, state.revision)
        found = iter(() if one is None else (one,))
    missing = True
    for each in found:
        missing = False
        if not _holds_for(state, compare, each):
            return False
    if not missing:
        return True
    return compare.target != Compare.VALUE and _holds_for(state, compare, _MISSING)


def _holds_for(state: Snapshot, compare: Compare, found: Found) -> bool:
    match compare.target:
        case Compare.VERSION:
            sign = _sign(found.version, compare.version)
        case Compare.CREATE:
            sign = _sign(found.create_revision, compare.create_revision)
        case Compare.MOD:
            sign = _sign(found.mod_revision, compare.mod_revision)
        case Compare.LEASE:
            sign = _sign(found.lease, compare.lease)
        case Compare.VALUE:
            kv = KeyValue()
            state.load(found.revision, kv)
            sign = (kv.value > compare.value) - (kv.value < compare.value)
        case _:
            sign = 0
    match compare.result:
        case Compare.EQUAL:
            return sign == 0
        case Compare.NOT_EQUAL:
            return sign != 0
        case Compare.GREATER:
            return sign > 0
        case Compare.LESS:
            return sign < 0
        case _:
            return True


def _sign(left: int, right: int) -> int:
    return (left > right) - (left < right)
