"""What is refused before it is proposed."""

from __future__ import annotations

import pytest

from kvserver.errors import (
    DeterministicError,
    DuplicateKeyError,
    EmptyKeyError,
    InvalidSortOptionError,
    KeyNotFoundError,
    LeaseProvidedError,
    TooManyOpsError,
    ValueProvidedError,
)
from kvserver.mvcc.check import check_delete, check_put, check_range, check_txn, range_bounds
from kvserver.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest


def put(key: bytes) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key))


def delete(key: bytes, range_end: bytes = b"") -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=range_end))


def txn(*success: RequestOp, failure: tuple[RequestOp, ...] = ()) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(success=success, failure=failure))


def refused(request: TxnRequest, limit: int = 128) -> type[DeterministicError] | None:
    try:
        check_txn(request, max_txn_ops=limit)
    except DeterministicError as error:
        return type(error)
    return None


def test_single_requests_are_refused_with_the_documented_errors() -> None:
    for check, request, error in (
        (check_range, RangeRequest(), EmptyKeyError),
        (check_range, RangeRequest(key=b"a", sort_order=7), InvalidSortOptionError),  # type: ignore[arg-type]
        (check_range, RangeRequest(key=b"a", sort_target=9), InvalidSortOptionError),  # type: ignore[arg-type]
        (check_put, PutRequest(), EmptyKeyError),
        (check_put, PutRequest(key=b"a", value=b"v", ignore_value=True), ValueProvidedError),
        (check_put, PutRequest(key=b"a", lease=1, ignore_lease=True), LeaseProvidedError),
        (check_delete, DeleteRangeRequest(), EmptyKeyError),
    ):
        with pytest.raises(error):
            check(request)  # type: ignore[operator]
    check_put(PutRequest(key=b"a", ignore_value=True, ignore_lease=True))


def test_budget_is_the_longest_list_and_what_is_nested_gets_the_rest() -> None:
    wide = TxnRequest(success=[put(b"%d" % number) for number in range(4)])
    assert refused(wide, 4) is None
    assert refused(wide, 3) is TooManyOpsError
    nested = TxnRequest(success=[txn(put(b"a"), put(b"b"))], failure=[put(b"c")])
    assert refused(nested, 3) is None
    assert refused(nested, 2) is TooManyOpsError
    compares = TxnRequest(compare=[Compare(key=b"a")] * 5)
    assert refused(compares, 5) is None
    assert refused(compares, 4) is TooManyOpsError


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ([put(b"a"), put(b"a")], DuplicateKeyError),
        ([put(b"a"), put(b"b")], None),
        ([put(b"a"), delete(b"a")], DuplicateKeyError),
        ([delete(b"a"), put(b"a")], DuplicateKeyError),
        ([delete(b"a", b"c"), put(b"b")], DuplicateKeyError),
        ([delete(b"a", b"c"), put(b"c")], None),
        ([delete(b"a", b"\x00"), put(b"zzz")], DuplicateKeyError),
        ([delete(b"b", b"c"), delete(b"a", b"z"), delete(b"c", b"d"), put(b"y")], DuplicateKeyError),
        ([delete(b"c", b"a"), put(b"b")], None),
        ([delete(b"a"), delete(b"a")], None),
        ([txn(put(b"a"), failure=(put(b"a"),))], None),
        ([txn(put(b"a")), txn(put(b"a"))], DuplicateKeyError),
        ([txn(put(b"a")), txn(failure=(put(b"a"),))], DuplicateKeyError),
        ([txn(put(b"a")), put(b"a")], DuplicateKeyError),
        ([txn(delete(b"a")), put(b"a")], DuplicateKeyError),
        ([txn(delete(b"a")), txn(put(b"a"))], DuplicateKeyError),
        ([txn(delete(b"a"), failure=(put(b"a"),))], None),
        ([delete(b"a", b"c"), txn(put(b"b"))], DuplicateKeyError),
        ([put(b"")], EmptyKeyError),
        ([RequestOp()], KeyNotFoundError),
    ],
)
def test_overlaps_within_one_branch_are_refused(ops: list[RequestOp], error: type[DeterministicError] | None) -> None:
    assert refused(TxnRequest(success=ops)) is error
    assert refused(TxnRequest(failure=ops)) is error


def test_success_and_failure_may_share_keys() -> None:
    assert refused(TxnRequest(success=[put(b"a")], failure=[put(b"a"), delete(b"b")])) is None


def test_empty_key_of_a_compare_is_refused() -> None:
    assert refused(TxnRequest(compare=[Compare()])) is EmptyKeyError


def test_range_end_means_one_key_everything_or_a_half_open_range() -> None:
    assert range_bounds(b"a", b"") == (b"a", b"a\x00")
    assert range_bounds(b"a", b"\x00") == (b"a", None)
    assert range_bounds(b"a", b"c") == (b"a", b"c")
    assert range_bounds(b"\x00", b"\x00") == (b"\x00", None)
