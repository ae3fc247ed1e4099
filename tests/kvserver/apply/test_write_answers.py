"""Answers of applied writes: nobody's but the proposer's is built, within its bound, and the changes are the same either way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from threading import current_thread, main_thread
from typing import Any

import pytest

from kvserver.apply import Applier
from kvserver.errors import AppliedAnswerTooLargeError
from kvserver.mvcc import TABLES, Allowance, execute_range
from kvserver.mvcc.read import Snapshot
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse

OpenMachine = Callable[..., Awaitable[Any]]
VALUE = b"v" * 50_000
RANGE = RequestOp(request_range=RangeRequest(key=b"k", range_end=b"l"))
TXN = TxnRequest(
    success=[
        RequestOp(request_put=PutRequest(key=b"k0", value=b"new", prev_kv=True)),
        RANGE,
        RANGE,
        RequestOp(request_delete_range=DeleteRangeRequest(key=b"k2", range_end=b"k5", prev_kv=True)),
    ]
)


def fill(machine: Any) -> None:
    for number in range(10):
        machine.apply(PutRequest(key=b"k%d" % number, value=VALUE))


def tables(machine: Any) -> list[Any]:
    return [list(machine.store._engine.reader.iterate(table)) for table in range(len(TABLES))]


async def test_a_member_where_nobody_waits_reads_no_value_and_makes_the_same_changes(
    open_machine: OpenMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, follower = await open_machine("origin"), await open_machine("follower")
    follower.applier = Applier(follower.store, lambda proposal: None)
    for machine in (origin, follower):
        fill(machine)
    answered = origin.apply(TXN)
    assert isinstance(answered, TxnResponse)
    assert [len(each.response_range.kvs) for each in answered.responses[1:3]] == [10, 10]
    assert len(answered.responses[3].response_delete_range.prev_kvs) == 3
    reads: list[bytes] = []
    record = Snapshot.record

    def counting(state: Snapshot, revision: bytes) -> memoryview:
        reads.append(revision)
        return record(state, revision)

    monkeypatch.setattr(Snapshot, "record", counting)
    ignored = follower.apply(TXN)
    assert reads == []
    assert isinstance(ignored, TxnResponse)
    assert ignored.ByteSize() < 200
    again = PutRequest(key=b"k9", value=b"x", prev_kv=True)
    assert origin.apply(again).prev_kv.value == VALUE
    reads.clear()
    assert not follower.apply(again).HasField("prev_kv")
    assert reads == []
    assert tables(origin) == tables(follower)


@pytest.mark.parametrize(
    "request_", [TXN, DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True), TxnRequest(success=[RANGE, RANGE, *TXN.success[:1]])]
)
async def test_an_answer_beyond_its_bound_is_not_built_and_the_write_is_applied(open_machine: OpenMachine, request_: Any) -> None:
    origin, follower = await open_machine("origin"), await open_machine("follower")
    follower.applier = Applier(follower.store, lambda proposal: None)
    given: list[Allowance] = []

    def room(proposal: Any) -> Allowance:
        given.append(Allowance(limit_bytes=300_000))
        return given[-1]

    origin.applier = Applier(origin.store, room)
    for machine in (origin, follower):
        fill(machine)
    revision = origin.store.current_revision
    assert isinstance(origin.apply(request_), AppliedAnswerTooLargeError)
    assert given[-1].used_bytes > 300_000
    follower.apply(request_)
    assert origin.store.current_revision == revision + 1
    assert tables(origin) == tables(follower)


@pytest.mark.parametrize("request_", [TXN, DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True)])
async def test_what_is_measured_is_what_the_answer_costs(open_machine: OpenMachine, request_: Any) -> None:
    machine = await open_machine()
    given: list[Allowance] = []

    def room(proposal: Any) -> Allowance:
        given.append(Allowance())
        return given[-1]

    machine.applier = Applier(machine.store, room)
    fill(machine)
    measured = await machine.store.measure(request_, 1 << 30)
    assert await machine.store.measure(request_, 100_000) > 100_000
    machine.apply(request_)
    changed = 2 * len(VALUE)  # the first put of the transaction makes one value small for both ranges
    assert given[-1].used_bytes <= measured <= given[-1].used_bytes + changed + 100  # and the records are some bytes shorter


async def test_measuring_a_range_of_very_many_keys_leaves_the_loop(open_machine: OpenMachine) -> None:
    machine = await open_machine()
    for number in range(700):
        machine.apply(PutRequest(key=b"k%03d" % number, value=b"v"))
    measured = await machine.store.measure(DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True), 1 << 30)
    assert measured == sum(384 + len(machine.store.mvcc.snapshot().record(found.revision)) for found in all_found(machine))


async def test_measuring_builds_no_answer_on_the_loop_or_on_a_thread(open_machine: OpenMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await open_machine()
    for number in range(700):
        machine.apply(PutRequest(key=b"k%03d" % number, value=b"v"))
    built: list[tuple[bool, int]] = []

    def noting(state: Snapshot, request: RangeRequest) -> RangeResponse:
        response = execute_range(state, request)
        built.append((current_thread() is main_thread(), len(response.kvs)))
        return response

    monkeypatch.setattr(import_module("kvserver.mvcc.measure"), "execute_range", noting)
    few = RequestOp(request_range=RangeRequest(key=b"k0", range_end=b"k1"))
    many_keys = RequestOp(request_range=RangeRequest(key=b"k", range_end=b"l", keys_only=True))
    assert await machine.store.measure(TxnRequest(success=[few]), 1 << 30) > 100 * 384
    assert await machine.store.measure(TxnRequest(success=[RANGE, many_keys]), 1 << 30) > 2 * 700 * 384
    assert await machine.store.measure(TxnRequest(success=[RANGE]), 1_000) > 1_000
    assert built == [(True, 0), (False, 0), (False, 0), (False, 0)]


def all_found(machine: Any) -> list[Any]:
    state = machine.store.mvcc.snapshot()
    return list(state.scan(b"k", b"l", state.revision))
