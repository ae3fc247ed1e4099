"""The quota's formula: what etcd charges, and when it fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.apply import LEASE_COST_BYTES, fits, put_cost_bytes, txn_cost_bytes
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.storage.files import map_size_bytes

PUTS = st.builds(PutRequest, key=st.binary(max_size=9), value=st.binary(max_size=30))
LEAVES = st.one_of(
    st.builds(lambda put: RequestOp(request_put=put), PUTS),
    st.just(RequestOp(request_range=RangeRequest(key=b"a"))),
    st.just(RequestOp(request_delete_range=DeleteRangeRequest(key=b"a"))),
    st.just(RequestOp()),
)


def _txns(ops: st.SearchStrategy[RequestOp]) -> st.SearchStrategy[TxnRequest]:
    return st.builds(TxnRequest, success=st.lists(ops, max_size=4), failure=st.lists(ops, max_size=4))


OPS = st.recursive(LEAVES, lambda inner: st.builds(lambda txn: RequestOp(request_txn=txn), _txns(inner)), max_leaves=8)


def run_of(request: TxnRequest, choices: list[bool]) -> list[PutRequest]:
    """The puts of one way that the transaction may take."""
    puts = []
    for op in request.success if (choices.pop() if choices else True) else request.failure:
        if op.HasField("request_put"):
            puts.append(op.request_put)
        elif op.HasField("request_txn"):
            puts += run_of(op.request_txn, choices)
    return puts


def test_costs_are_etcds() -> None:
    assert put_cost_bytes(PutRequest()) == 256
    assert put_cost_bytes(PutRequest(key=b"abc", value=b"x" * 1000)) == 1259
    put = RequestOp(request_put=PutRequest(key=b"ab"))
    assert txn_cost_bytes(TxnRequest()) == 0
    assert txn_cost_bytes(TxnRequest(success=[put, put], failure=[put])) == 2 * 258
    assert txn_cost_bytes(TxnRequest(failure=[put])) == 258
    assert LEASE_COST_BYTES == 64


@given(_txns(OPS), st.lists(st.booleans(), max_size=12))
def test_a_transaction_is_charged_for_the_dearest_way_it_may_take(request: TxnRequest, choices: list[bool]) -> None:
    assert sum(map(put_cost_bytes, run_of(request, list(choices)))) <= txn_cost_bytes(request)


@given(_txns(OPS))
def test_a_transaction_costs_nothing_exactly_if_no_put_is_in_it(request: TxnRequest) -> None:
    assert (txn_cost_bytes(request) == 0) == (b"request_put" not in str(request).encode())


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 24), st.integers(1, 1 << 40))
def test_a_write_fits_below_the_quota_only(used: int, cost: int, quota: int) -> None:
    fitting = fits(used_bytes=used, cost_bytes=cost, quota_bytes=quota)
    assert fitting == (cost == 0 or used + cost < quota)
    assert fits(used_bytes=used, cost_bytes=cost, quota_bytes=-quota)


@given(st.integers(1, 50), st.lists(st.integers(1, 10_000), max_size=60))
def test_admitted_writes_alone_never_reach_the_quota(quota_kib: int, costs: list[int]) -> None:
    used = 0
    for cost in costs:
        if fits(used_bytes=used, cost_bytes=cost, quota_bytes=quota_kib * 1024):
            used += cost
    assert used < quota_kib * 1024


@pytest.mark.parametrize("quota", [-1, 1 << 20, 2 << 30])
@pytest.mark.parametrize("file", [0, 12345, 9 << 30, 3 << 40])
def test_the_map_has_room_above_quota_and_file(quota: int, file: int) -> None:
    size = map_size_bytes(quota_bytes=quota, file_bytes=file)
    assert size >= max(quota, file) + (1 << 30)
    assert size % 65536 == 0
