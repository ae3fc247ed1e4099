"""Requests that delete very many keys: slice by slice, one revision, invisible until it is whole, and exactly once over any crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvserver.apply import AppliedResult, Applier, Store
from kvserver.errors import RequestTimeoutError
from kvserver.mvcc import LEASE, LEASE_KEY, META, TABLES, Allowance, RangeTooLargeError, Snapshot, execute_range
from kvserver.mvcc.integrity import CrossCheck
from kvserver.mvcc.unfinished import UnfinishedMismatchError
from kvserver.mvcc.write import SLICE_KEYS
from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvserver.types import Index, Term

LONG = b"key-" + b"l" * 600
KEYS = [b"key-%05d" % number for number in range(5 * SLICE_KEYS)] + [LONG + b"%d" % number for number in range(SLICE_KEYS + 6)]
ALL = DeleteRangeRequest(key=b"key-", range_end=b"key.")
REVOKE = LeaseRevokeRequest(ID=7)
EVERYTHING = RangeRequest(key=b"\x00", range_end=b"\x00")
VARIANTS = [
    EVERYTHING,
    RangeRequest(key=b"\x00", range_end=b"\x00", count_only=True),
    RangeRequest(key=b"\x00", range_end=b"\x00", sort_order=RangeRequest.DESCEND, limit=7),
    RangeRequest(key=b"\x00", range_end=b"\x00", limit=3),
    RangeRequest(key=KEYS[0]),
    RangeRequest(key=KEYS[-1]),
    RangeRequest(key=b"new"),
]

OpenMachine = Callable[..., Awaitable[Any]]


def put_all(machine: Any, lease: int = 0) -> None:
    if lease:
        machine.apply(LeaseGrantRequest(ID=lease, TTL=60))
    for at in range(0, len(KEYS), 100):
        request = TxnRequest()
        for key in KEYS[at : at + 100]:
            request.success.add().request_put.CopyFrom(PutRequest(key=key, value=b"v" + key[-4:], lease=lease))
        machine.apply(request)
    machine.apply(PutRequest(key=KEYS[1], value=b"again", lease=lease))
    machine.apply(DeleteRangeRequest(key=KEYS[2]))
    machine.apply(PutRequest(key=KEYS[2], value=b"a new life", lease=lease))
    machine.apply(PutRequest(key=b"other", value=b"stays"))


def big_txn() -> TxnRequest:
    """Puts before, between and behind two large deletions, one of them in a nested transaction."""
    ops = [
        RequestOp(request_put=PutRequest(key=b"new", value=b"1")),
        RequestOp(request_delete_range=DeleteRangeRequest(key=KEYS[0], range_end=KEYS[150])),
        RequestOp(request_range=RangeRequest(key=b"key-", range_end=b"key.", count_only=True)),
        RequestOp(
            request_txn=TxnRequest(
                compare=[Compare(key=KEYS[1], target=Compare.VERSION, result=Compare.EQUAL, version=2)],
                success=[
                    RequestOp(request_delete_range=DeleteRangeRequest(key=KEYS[150], range_end=b"key.")),
                    RequestOp(request_put=PutRequest(key=b"newer", value=b"2")),
                ],
                failure=[RequestOp(request_put=PutRequest(key=b"wrong"))],
            )
        ),
    ]
    exists = Compare(key=KEYS[0], target=Compare.CREATE, result=Compare.GREATER, create_revision=0)
    return TxnRequest(compare=[exists], success=ops, failure=[RequestOp(request_put=PutRequest(key=b"wrong"))])


def apply_slice(machine: Any, data: bytes) -> AppliedResult | None:
    applied: AppliedResult | None = machine.applier.apply_slice(Index(machine.store.applied_index + 1), Term(1), data)
    return applied


def tables(store: Store) -> list[Any]:
    reader = store._engine.reader
    return [list(reader.iterate(table)) for table in range(len(TABLES))]


def answers(store: Store) -> list[bytes]:
    """What ranges answer, by themselves and within a transaction that reads."""
    asked = TxnRequest(
        compare=[Compare(key=KEYS[0], target=Compare.VERSION, result=Compare.EQUAL, version=1)],
        success=[RequestOp(request_range=request) for request in VARIANTS],
    )
    found = [store.range(request) for request in VARIANTS]
    within = store.mvcc.read_txn(asked, store.mvcc.snapshot())
    return [each.SerializeToString(deterministic=True) for each in (*found, within)]


def contradictions(state: Snapshot) -> list[str]:
    found: list[str] = []
    check = CrossCheck(found.append)
    while check.run_slice(state, 1_000):
        pass
    return found


@pytest.mark.parametrize("request_", [ALL, big_txn()], ids=["delete_range", "txn"])
async def test_readers_see_the_state_before_until_the_last_slice(open_machine: OpenMachine, request_: Any) -> None:
    machine = await open_machine()
    put_all(machine)
    store = machine.store
    before, revision, index = answers(store), store.current_revision, store.applied_index
    hash_before = (await store.hash_kv()).hash
    data = machine.encode(request_)
    slices = 0
    while (applied := apply_slice(machine, data)) is None:
        slices += 1
        assert answers(store) == before
        assert (store.current_revision, store.applied_index) == (revision, index)
        assert (await store.read(EVERYTHING)).SerializeToString() == store.range(EVERYTHING).SerializeToString()
        if slices % 2:
            await store.commit()
        assert (await store.hash_kv()).hash == hash_before
        view, state = store.read_view()
        with view:
            assert contradictions(state) == []
    assert slices >= 4
    assert (store.current_revision, store.applied_index) == (revision + 1, index + 1)
    if isinstance(applied.result, DeleteRangeResponse):
        assert applied.result.deleted == len(KEYS)
        assert [kv.key for kv in store.range(EVERYTHING).kvs] == [b"other"]
    else:
        assert isinstance(applied.result, TxnResponse)
        first, counted, nested = applied.result.responses[1], applied.result.responses[2], applied.result.responses[3]
        assert first.response_delete_range.deleted == 150
        assert counted.response_range.count == len(KEYS) - 150
        assert nested.response_txn.responses[0].response_delete_range.deleted == len(KEYS) - 150
        assert [kv.key for kv in store.range(EVERYTHING).kvs] == [b"new", b"newer", b"other"]
    old = store.range(RangeRequest(key=b"\x00", range_end=b"\x00", revision=revision))
    old.header.revision = revision
    assert old.SerializeToString(deterministic=True) == before[0]
    assert contradictions(store.mvcc.snapshot()) == []


@pytest.mark.parametrize("request_", [ALL, big_txn(), REVOKE], ids=["delete_range", "txn", "revoke"])
async def test_a_crash_after_any_slice_ends_in_the_same_bytes(open_machine: OpenMachine, request_: Any) -> None:
    """The process ends after each slice in turn, with what was committed by then; the log gives it the entry again."""
    lease = request_.ID if isinstance(request_, LeaseRevokeRequest) else 0
    whole = await open_machine("whole")
    put_all(whole, lease)
    data = whole.encode(request_)
    assert apply_slice(whole, data) is None
    while apply_slice(whole, data) is None:
        pass
    await whole.reopen()
    assert not whole.store.mvcc.is_unfinished
    expected = tables(whole.store)
    assert {key for key, _ in expected[META]} <= {b"format", b"state", b"conf_state", b"membership", b"kinds"}  # nothing is left of it
    assert (expected[LEASE], expected[LEASE_KEY]) == ([], [])
    slices = 4 if isinstance(request_, TxnRequest) else 5
    for durable in range(slices + 1):
        machine = await open_machine(f"crash{durable}", interval_s=600)
        put_all(machine, lease)
        await machine.flush()
        before = answers(machine.store)
        for _ in range(durable):
            assert apply_slice(machine, data) is None
        await machine.store.commit()
        if durable < slices:
            assert apply_slice(machine, data) is None  # buffered only: lost
        await machine.reopen(commit=False)
        assert machine.store.mvcc.is_unfinished == (durable > 0)
        assert machine.store.applied_index == whole.store.applied_index - 1
        assert answers(machine.store) == before
        assert contradictions(machine.store.mvcc.snapshot()) == []
        while (applied := apply_slice(machine, data)) is None:
            pass
        assert isinstance(applied.result, RequestTimeoutError) == (durable > 0)  # what it had deleted before is not known any more
        assert not machine.store.mvcc.is_unfinished
        assert tables(machine.store) == expected, durable


async def test_a_compaction_that_runs_between_two_slices_disturbs_nothing(open_machine: OpenMachine) -> None:
    """The removal that an earlier entry began goes on meanwhile, up to the revision before the one that is being written."""
    quiet, busy = await open_machine("quiet"), await open_machine("busy")
    for machine in (quiet, busy):
        put_all(machine)
        revision = machine.store.current_revision
        machine.store._removal.pause()
        machine.apply(CompactionRequest(revision=revision))
    before = answers(busy.store)
    data = busy.encode(ALL)
    compactor = busy.store.mvcc.compactor
    while apply_slice(busy, data) is None:
        compactor.run_slice(100)
        busy.store._engine.end_entry(busy.store.applied_index)
        assert answers(busy.store) == before
    quiet.apply_data(data)
    for machine in (quiet, busy):
        while machine.store.mvcc.compactor.run_slice(100):
            pass
    assert tables(quiet.store) == tables(busy.store)
    assert contradictions(busy.store.mvcc.snapshot()) == []


async def test_another_entry_than_the_one_that_was_begun_is_refused(open_machine: OpenMachine) -> None:
    machine = await open_machine()
    put_all(machine)
    assert apply_slice(machine, machine.encode(ALL)) is None
    await machine.store.commit()
    await machine.reopen(commit=False)
    for data in (machine.encode(PutRequest(key=b"a")), machine.encode(big_txn()), b""):
        with pytest.raises(UnfinishedMismatchError):
            machine.applier.apply_slice(Index(machine.store.applied_index + 1), Term(1), data)
        await machine.reopen(commit=False)


async def test_the_write_buffer_never_holds_more_than_a_slice_beyond_its_bound(open_machine: OpenMachine) -> None:
    bound = 200_000
    machine = await open_machine(commit_count=200, commit_bytes=50_000, max_buffer_bytes=bound)
    for at in range(0, 3_000, 100):
        request = TxnRequest()
        for number in range(at, at + 100):
            request.success.add().request_put.CopyFrom(PutRequest(key=b"key-%05d" % number, value=b"v" * 50))
        machine.apply(request)
        await machine.flush()
    data, highest = machine.encode(ALL), 0
    while apply_slice(machine, data) is None:
        highest = max(highest, machine.store.buffered_bytes)
        if not machine.store.has_room:
            await machine.store.wait_room()
    assert highest < bound + 300_000
    assert machine.store.range(RangeRequest(key=b"key-", range_end=b"key.", count_only=True)).count == 0


async def test_a_slice_of_long_keys_ends_with_its_bytes(open_machine: OpenMachine) -> None:
    machine = await open_machine()
    for number in range(8):
        machine.apply(PutRequest(key=b"key-" + b"k" * 40_000 + b"%d" % number))
    slices = 1
    data = machine.encode(ALL)
    while apply_slice(machine, data) is None:
        slices += 1
    assert slices == 4
    assert machine.store.range(EVERYTHING).count == 0


HALF = DeleteRangeRequest(key=KEYS[0], range_end=KEYS[150], prev_kv=True)
NEEDS_THE_OLD = {
    "delete prev_kv": DeleteRangeRequest(key=b"key-", range_end=b"key.", prev_kv=True),
    "put ignore_value": PutRequest(key=KEYS[200], ignore_value=True, lease=7),
    "put ignore_lease": PutRequest(key=KEYS[200], value=b"new", ignore_lease=True),
    "put ignore both": PutRequest(key=KEYS[200], ignore_value=True, ignore_lease=True),
    "put prev_kv": PutRequest(key=KEYS[200], value=b"new", prev_kv=True),
}
"""What reads the keys as they were, behind the commit of a slice: the values are records of the file by then."""


def reading_request(kind: str) -> Any:
    """The deletion as it is; a put behind a large deletion, between two others, and once more in a nested transaction."""
    request = NEEDS_THE_OLD[kind]
    if isinstance(request, DeleteRangeRequest):
        return request
    rest = DeleteRangeRequest(key=KEYS[210], range_end=b"key.", prev_kv=True)
    nested = TxnRequest(success=[RequestOp(request_delete_range=rest), RequestOp(request_range=EVERYTHING), RequestOp(request_put=request)])
    nested.success[-1].request_put.key = KEYS[201]
    return TxnRequest(success=[RequestOp(request_delete_range=HALF), RequestOp(request_put=request), RequestOp(request_txn=nested)])


@pytest.mark.parametrize("kind", NEEDS_THE_OLD)
async def test_what_reads_old_values_answers_the_same_when_every_slice_is_committed(open_machine: OpenMachine, kind: str) -> None:
    whole, committed, follower = await open_machine("whole"), await open_machine("committed"), await open_machine("follower")
    follower.applier = Applier(follower.store, lambda proposal: None)
    for machine in (whole, committed, follower):
        put_all(machine, lease=7)
        await machine.store.commit()
    data = whole.encode(reading_request(kind))
    expected = whole.apply_data(data).result
    for machine in (committed, follower):
        slices = 1
        while (applied := apply_slice(machine, data)) is None:
            slices += 1
            await machine.store.commit()
        assert slices >= 4
        assert tables(machine.store) == tables(whole.store)
        if machine is committed:
            assert applied.result == expected
    assert "prev_kv" in str(expected)
    assert committed.corrupt == follower.corrupt == []


@pytest.mark.parametrize("kind", NEEDS_THE_OLD)
async def test_what_reads_old_values_is_finished_after_a_crash_behind_any_slice(open_machine: OpenMachine, kind: str) -> None:
    whole = await open_machine("whole")
    put_all(whole, lease=7)
    data = whole.encode(reading_request(kind))
    slices = 0
    while apply_slice(whole, data) is None:
        slices += 1
    for durable in range(1, slices + 1):
        machine = await open_machine(f"crash{durable}", interval_s=600)
        put_all(machine, lease=7)
        for _ in range(durable):
            assert apply_slice(machine, data) is None
            await machine.store.commit()
        await machine.reopen(commit=False)
        while apply_slice(machine, data) is None:
            await machine.store.commit()
        assert tables(machine.store) == tables(whole.store), durable
        assert machine.corrupt == []


async def test_deleted_keys_count_as_looked_at_while_an_entry_is_applied_in_part(
    open_machine: OpenMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest revision is read through the history then, where every key that was deleted before is met and none is answered."""
    machine = await open_machine()
    put_all(machine)
    machine.apply(ALL)
    for number in range(2 * SLICE_KEYS):
        machine.apply(PutRequest(key=b"other%04d" % number))
    data = machine.encode(DeleteRangeRequest(key=b"other", range_end=b"p"))
    assert apply_slice(machine, data) is None
    first = RangeRequest(key=b"key-", range_end=b"p", limit=1)
    looked_at: list[bytes] = []
    at = Snapshot._at

    def counting(state: Snapshot, key: bytes, *rest: Any) -> Any:
        looked_at.append(key)
        return at(state, key, *rest)

    monkeypatch.setattr(Snapshot, "_at", counting)
    for request in (
        first,
        RangeRequest(key=b"key-", range_end=b"key.", limit=1),
        RangeRequest(key=b"key-", range_end=b"key.", count_only=True),
    ):
        looked_at.clear()
        with pytest.raises(RangeTooLargeError):
            execute_range(machine.store.snapshot(Allowance(keys=100)), request)
        assert len(looked_at) == 100
    found = await machine.store.read(first)
    assert ([kv.key for kv in found.kvs], found.count, found.more) == ([b"other"], 1 + 2 * SLICE_KEYS, True)
    compared = TxnRequest(compare=[Compare(key=b"key-", range_end=b"key.", target=Compare.VERSION, result=Compare.EQUAL)])
    with pytest.raises(RangeTooLargeError):
        machine.store.mvcc.read_txn(compared, machine.store.snapshot(Allowance(keys=100)))
    assert (await machine.store.read_txn(compared)).succeeded


async def test_long_deleted_keys_count_as_looked_at(machine: Any) -> None:
    """They stay among the others until they are compacted."""
    for number in range(20):
        machine.apply(PutRequest(key=LONG + b"%02d" % number))
    machine.apply(DeleteRangeRequest(key=b"key-", range_end=b"key."))
    assert execute_range(machine.store.snapshot(Allowance(keys=20)), EVERYTHING).count == 0
    with pytest.raises(RangeTooLargeError):
        execute_range(machine.store.snapshot(Allowance(keys=19)), EVERYTHING)
