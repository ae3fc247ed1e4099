"""The quota at the api: what it lets pass, what it refuses, and when it raises the alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from kvserver.api import QuotaGate
from kvserver.clock import MonotonicSeconds, SystemClock
from kvserver.commands import CommandKind
from kvserver.errors import CorruptError, EmptyKeyError, FatalError, NoSpaceError, StoppedError
from kvserver.pb import rpc_pb2

QUOTA = 10_000


@dataclass
class FakeStore:
    """Space and alarms: a commit moves the buffer into the file, minus what turns out to be nothing."""

    size_in_use_bytes: int = 0
    buffered_payload_bytes: int = 0
    vanishing_bytes: int = 0
    commit_raises: Exception | None = None
    commit_hangs: bool = False
    on_commit: Callable[[], None] = lambda: None
    commits: int = 0
    raised: list[tuple[int, float]] = field(default_factory=list)

    async def commit(self) -> None:
        self.commits += 1
        if self.commit_hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if self.commit_raises is not None:
            raise self.commit_raises
        self.size_in_use_bytes += self.buffered_payload_bytes - self.vanishing_bytes
        self.buffered_payload_bytes = 0
        self.on_commit()

    async def wait_raised(self, kind: rpc_pb2.AlarmType.ValueType, *, deadline_s: float) -> bool:
        self.raised.append((kind, deadline_s))
        return True


def gate_of(store: FakeStore, quota: int = QUOTA) -> QuotaGate:
    return QuotaGate(quota_bytes=quota, space=store, alarms=store, clock=SystemClock())


def soon(delay_s: float = 30.0) -> MonotonicSeconds:
    return MonotonicSeconds(SystemClock().monotonic_s() + delay_s)


async def test_a_write_that_fits_passes_without_looking_closer() -> None:
    store = FakeStore(size_in_use_bytes=5000, buffered_payload_bytes=4000)
    gate = gate_of(store)
    await gate.admit(999, deadline_s=soon())
    assert (store.commits, store.raised, gate.admitted_bytes) == (0, [], 999)


async def test_a_write_that_reaches_the_quota_is_refused_and_raises_the_alarm() -> None:
    store = FakeStore(size_in_use_bytes=9000)
    gate, deadline_s = gate_of(store), soon()
    with pytest.raises(NoSpaceError):
        await gate.admit(1000, deadline_s=deadline_s)
    assert store.raised == [(rpc_pb2.NOSPACE, deadline_s)]
    assert gate.admitted_bytes == 0
    await gate.admit(999, deadline_s=deadline_s)


async def test_what_is_under_way_counts_until_it_is_answered() -> None:
    gate = gate_of(FakeStore())
    await gate.admit(6000, deadline_s=soon())
    with pytest.raises(NoSpaceError):
        await gate.admit(6000, deadline_s=soon())
    gate.release(6000)
    await gate.admit(6000, deadline_s=soon())


async def test_deletions_in_the_buffer_do_not_raise_the_alarm() -> None:
    store = FakeStore(size_in_use_bytes=8000, buffered_payload_bytes=3000, vanishing_bytes=6000)
    await gate_of(store).admit(500, deadline_s=soon())
    assert (store.commits, store.raised) == (1, [])


async def test_a_write_that_is_applied_but_not_yet_answered_counts_once() -> None:
    store = FakeStore(size_in_use_bytes=1000, buffered_payload_bytes=2000, vanishing_bytes=2000)
    gate = gate_of(store)
    await gate.admit(4000, deadline_s=soon())

    def apply_and_then_answer() -> None:
        if store.commits == 1:
            store.buffered_payload_bytes, store.vanishing_bytes = 4000, 0
        else:
            gate.release(4000)

    store.on_commit = apply_and_then_answer
    await gate.admit(4900, deadline_s=soon())
    assert (store.commits, store.raised) == (2, [])


async def test_a_write_waits_while_it_is_unknown_whether_what_is_under_way_leaves_room() -> None:
    """What was applied and answered during a commit and what is not yet applied add up, though neither alone fills the store."""
    store = FakeStore(size_in_use_bytes=1000, buffered_payload_bytes=4000)
    gate = gate_of(store)
    await gate.admit(4900, deadline_s=soon())
    store.buffered_payload_bytes = store.vanishing_bytes = 200

    def apply_others_then_ours() -> None:
        if store.commits == 1:
            store.buffered_payload_bytes, store.vanishing_bytes = 4000, 0  # answered already: not admitted any more
        elif store.commits == 2:
            store.buffered_payload_bytes = 4900
            gate.release(4900)

    store.on_commit = apply_others_then_ours
    with pytest.raises(NoSpaceError):
        await gate.admit(4000, deadline_s=soon())
    assert (store.commits, len(store.raised)) == (2, 1)


@given(costs=st.lists(st.integers(1, QUOTA // 2), min_size=1, max_size=12), seed=st.integers(0, 1 << 32))
async def test_writers_of_any_sizes_fill_the_store_up_to_its_quota_and_never_beyond(costs: list[int], seed: int) -> None:
    """Writes are applied, answered and committed in any order that a member shows; a refusal means that there was no room."""
    store, order = FakeStore(), Random(seed)
    gate = gate_of(store)
    unapplied: list[int] = []
    unanswered: list[int] = []

    def move() -> None:
        for queue, done in ((unapplied, apply), (unanswered, gate.release)):
            for _ in range(order.randint(0, len(queue))):
                done(queue.pop(0))

    def apply(cost_bytes: int) -> None:
        store.buffered_payload_bytes += cost_bytes
        unanswered.append(cost_bytes)

    async def write(cost_bytes: int) -> bool:
        try:
            await gate.admit(cost_bytes, deadline_s=soon())
        except NoSpaceError:
            return False
        unapplied.append(cost_bytes)
        return True

    store.on_commit = move
    writers = [asyncio.ensure_future(write(cost_bytes)) for cost_bytes in costs]
    while not all(writer.done() for writer in writers):
        await asyncio.sleep(0)
        move()
    taken = [cost_bytes for cost_bytes, writer in zip(costs, writers, strict=True) if writer.result()]
    assert sum(taken) < QUOTA
    for cost_bytes, writer in zip(costs, writers, strict=True):
        assert writer.result() or sum(taken) + cost_bytes >= QUOTA


async def test_without_a_quota_everything_passes() -> None:
    store = FakeStore(size_in_use_bytes=1 << 50)
    await gate_of(store, quota=-1).admit(1 << 40, deadline_s=soon())
    assert (store.commits, store.raised) == (0, [])


async def test_a_full_disk_near_the_quota_refuses_without_an_alarm() -> None:
    store = FakeStore(size_in_use_bytes=9000, buffered_payload_bytes=900, commit_hangs=True)
    with pytest.raises(NoSpaceError):
        await gate_of(store).admit(500, deadline_s=soon(0.05))
    assert store.raised == []


async def test_a_store_that_failed_answers_that_the_member_stops() -> None:
    store = FakeStore(size_in_use_bytes=QUOTA, commit_raises=FatalError("the disk is gone"))
    with pytest.raises(StoppedError):
        await gate_of(store).admit(1, deadline_s=soon())
    assert store.raised == []


# --- through the services ----------------------------------------------------------------------------------------------------

PUT = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k", value=b"v"))
RANGE = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k"))
DELETE = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"k"))
NESTED_PUT = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(failure=[PUT]))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Put", rpc_pb2.PutRequest(key=b"k")),
        ("Txn", rpc_pb2.TxnRequest(success=[PUT])),
        ("Txn", rpc_pb2.TxnRequest(success=[RANGE], failure=[PUT])),
        ("Txn", rpc_pb2.TxnRequest(success=[NESTED_PUT])),
    ],
)
async def test_over_the_quota_puts_are_refused_and_nothing_is_proposed(services: Any, method: str, request_: Message) -> None:
    services.cluster.size_in_use_bytes = 1 << 20
    with pytest.raises(NoSpaceError):
        await services.call("KV", method, request_)
    assert services.cluster.asked == [("commit",), ("wait_raised", rpc_pb2.NOSPACE)]


@pytest.mark.parametrize(
    ("method", "request_", "response", "kind"),
    [
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k"), rpc_pb2.DeleteRangeResponse(), CommandKind.DELETE_RANGE),
        ("Txn", rpc_pb2.TxnRequest(success=[DELETE, RANGE]), rpc_pb2.TxnResponse(), CommandKind.TXN),
        ("Compact", rpc_pb2.CompactionRequest(revision=1), rpc_pb2.CompactionResponse(), CommandKind.COMPACT),
    ],
)
async def test_over_the_quota_what_makes_room_is_proposed(
    services: Any, method: str, request_: Message, response: Message, kind: CommandKind
) -> None:
    services.cluster.size_in_use_bytes = 1 << 30
    services.cluster.response = response
    await services.call("KV", method, request_)
    assert [(step[0], step[1]) for step in services.cluster.asked] == [("propose", kind)]


async def test_over_the_quota_reads_go_on(services: Any) -> None:
    services.cluster.size_in_use_bytes = 1 << 30
    await services.call("KV", "Range", rpc_pb2.RangeRequest(key=b"k"))
    await services.call("KV", "Txn", rpc_pb2.TxnRequest(success=[RANGE]))
    assert services.cluster.steps == ["wait_linearizable", "read_range", "wait_linearizable", "read_txn"]


async def test_a_malformed_put_raises_no_alarm(services: Any) -> None:
    services.cluster.size_in_use_bytes = 1 << 30
    with pytest.raises(EmptyKeyError):
        await services.call("KV", "Put", rpc_pb2.PutRequest())
    assert services.cluster.asked == []


@pytest.mark.parametrize("failure", [None, NoSpaceError()])
async def test_an_answered_write_is_released_whatever_the_answer(services: Any, failure: Exception | None) -> None:
    """Each of them is charged nearly the whole quota, so the second would not fit beside the first."""
    services.cluster.response = rpc_pb2.PutResponse()
    for _ in range(3):
        services.cluster.raises = failure
        call = services.call("KV", "Put", rpc_pb2.PutRequest(key=b"k", value=b"v" * 700_000))
        if failure is None:
            await call
        else:
            with pytest.raises(NoSpaceError):
                await call
    assert services.cluster.steps == ["propose"] * 3


@pytest.mark.parametrize("serializable", [True, False])
async def test_with_damaged_data_nothing_is_read(services: Any, serializable: bool) -> None:
    services.cluster.raised_alarms = [rpc_pb2.AlarmMember(memberID=2, alarm=rpc_pb2.CORRUPT)]
    request = rpc_pb2.RangeRequest(key=b"k", serializable=serializable)
    with pytest.raises(CorruptError):
        await services.call("KV", "Range", request)
    with pytest.raises(CorruptError):
        await services.call("KV", "Txn", rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=request)]))
    assert {"read_range", "read_txn"}.isdisjoint(services.cluster.steps)
