"""What a write answers: measured and given room before it is proposed, refused there if it is too much."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from kvserver import errors
from kvserver.api.write_answers import SINGLE_KEYS, may_answer_much
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, DeleteRangeResponse, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse

ROOM = (1 << 20) - (256 << 10)  # what the fixture has for large answers


def range_of(key: bytes = b"k", range_end: bytes = b"", **fields: Any) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, range_end=range_end, **fields))


PUT = RequestOp(request_put=PutRequest(key=b"p"))
BIG = TxnRequest(success=[PUT, range_of(range_end=b"l")])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (TxnRequest(success=[PUT]), False),
        (TxnRequest(success=[PUT], failure=[range_of()]), False),
        (TxnRequest(success=[PUT] + [range_of(b"%d" % n) for n in range(SINGLE_KEYS)]), False),
        (TxnRequest(success=[PUT] + [range_of(b"%d" % n) for n in range(SINGLE_KEYS + 1)]), True),
        (TxnRequest(success=[PUT, range_of(range_end=b"l", count_only=True)]), False),
        (BIG, True),
        (TxnRequest(failure=[RequestOp(request_txn=BIG)]), True),
        (TxnRequest(success=[RequestOp(request_delete_range=DeleteRangeRequest(key=b"k", range_end=b"l"))]), False),
        (TxnRequest(success=[RequestOp(request_delete_range=DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True))]), True),
        (TxnRequest(success=[RequestOp(request_put=PutRequest(key=b"%d" % n, prev_kv=True)) for n in range(SINGLE_KEYS + 1)]), True),
        (DeleteRangeRequest(key=b"k", range_end=b"l"), False),
        (DeleteRangeRequest(key=b"k", prev_kv=True), False),
        (DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True), True),
    ],
)
def test_only_what_may_answer_many_values_is_measured(request_: Any, expected: bool) -> None:
    assert may_answer_much(request_) is expected


@pytest.mark.parametrize(
    ("method", "request_", "response"),
    [("Txn", BIG, TxnResponse()), ("DeleteRange", DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True), DeleteRangeResponse())],
)
async def test_an_answer_that_would_be_larger_than_all_answers_may_be_is_refused_unproposed(
    services: Any, method: str, request_: Message, response: Message
) -> None:
    services.cluster.response = response
    services.cluster.measured_bytes = ROOM // 2
    await services.call("KV", method, request_)
    assert services.cluster.steps == ["measure_write", "propose"]
    services.cluster.asked.clear()
    services.cluster.measured_bytes += 1
    with pytest.raises(errors.AnswerTooLargeError):
        await services.call("KV", method, request_)
    assert services.cluster.asked == [("measure_write", ROOM // 2)]


async def test_a_large_answer_of_a_write_waits_for_room_before_it_is_proposed(services: Any) -> None:
    import asyncio

    from tests.kvserver.api.conftest import FakeCall

    services.cluster.response = TxnResponse()
    services.cluster.measured_bytes = 390_000
    first, second = FakeCall(), FakeCall()
    txn = services.api.unary["KV", "Txn"]
    holding = asyncio.ensure_future(txn(BIG, first))
    waiting = asyncio.ensure_future(txn(BIG, second))
    for _ in range(10):
        await asyncio.sleep(0)
    assert holding.done()
    assert not waiting.done()
    assert services.cluster.steps.count("propose") == 1
    for callback in first.over:
        callback()
    await waiting
    assert services.cluster.steps.count("propose") == 2
