"""What a write would answer, measured before it is proposed.

Rules: an estimate by the state at hand, which is not the one that the write will meet, and without what the write itself changes: the bound
that holds is the allowance when it is applied. Nothing is built; the cost is in the allowance of `state`. An operation that would be
refused costs nothing, as refusing is not decided here.
"""

from __future__ import annotations

from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.mvcc.allowance import KEY_OVERHEAD_BYTES, Allowance
from kvserver.mvcc.check import range_bounds
from kvserver.mvcc.found import Found
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.mvcc.write import operations_that_run
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, RangeRequest, TxnRequest

__all__ = ["measure"]


def measure(state: Snapshot, request: TxnRequest | DeleteRangeRequest) -> None:
    """Charge to the allowance what the answer of `request` would cost.

    Raises:
        RangeTooLargeError: it touches more keys than the allowance has.
        CorruptError.
    """
    allowance = state.allowance
    assert allowance is not None
    if isinstance(request, DeleteRangeRequest):
        _measure_previous(state, allowance, request.key, request.range_end)
        return
    for op in operations_that_run(state, request):
        if op.HasField("request_range"):
            _measure_range(state, op.request_range)
        elif op.HasField("request_put") and op.request_put.prev_kv:
            _measure_previous(state, allowance, op.request_put.key, b"")
        elif op.HasField("request_delete_range") and op.request_delete_range.prev_kv:
            _measure_previous(state, allowance, op.request_delete_range.key, op.request_delete_range.range_end)


def _measure_range(state: Snapshot, request: RangeRequest) -> None:
    if request.key and not request.count_only:
        try:
            execute_range(state, request)
        except (CompactedError, FutureRevisionError):
            return


def _measure_previous(state: Snapshot, allowance: Allowance, key: bytes, range_end: bytes) -> None:
    if not key:
        return
    lo, hi = range_bounds(key, range_end)
    if not range_end:
        found = state.find(lo, state.revision)
        if found is not None:
            _charge(state, allowance, found)
        return
    for each in state.scan(lo, hi, state.revision):
        _charge(state, allowance, each)
        if allowance.is_exceeded:
            return


def _charge(state: Snapshot, allowance: Allowance, found: Found) -> None:
    allowance.charge(KEY_OVERHEAD_BYTES + len(state.record(found.revision)))
