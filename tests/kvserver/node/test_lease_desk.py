"""The desk: here or at the leader, together, again until the deadline."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from kvserver.errors import (
    CorruptError,
    NoLeaderError,
    NotLeaderError,
    RequestError,
    RequestTimeoutError,
    StoppedError,
    TooManyRequestsError,
)
from kvserver.node import lease_desk as desk_module
from kvserver.node.forwarding import ForwardKind
from kvserver.node.lease_desk import LeaseDesk
from kvserver.peer import PeerNotConnectedError, PeerRequestRefusedError
from kvserver.types import LeaseId, NodeId

SELF, OTHER = NodeId(1), NodeId(2)


class FakeCluster:
    """Leadership, the keeper here, and the way to a leader elsewhere, whose answers come from a desk of its own if it is set."""

    def __init__(self) -> None:
        self.leader_id = SELF
        self.ttls = {LeaseId(7): 60, LeaseId(-3): 5}
        self.batches: list[list[int]] = []
        self.asked = asyncio.Event()
        self.failures: list[RequestError] = []
        self.free = asyncio.Event()
        self.free.set()
        self.unsettled: set[LeaseId] = set()
        self.settled = asyncio.Event()
        self.settling: list[list[int]] = []
        self.remote: LeaseDesk | None = None
        self.sent: list[tuple[NodeId, int, bytes, float]] = []
        self.send_failures: list[Exception] = []
        self.raw_answer: bytes | None = None

    @property
    def is_leader(self) -> bool:
        return self.leader_id == SELF

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]:
        self.batches.append(list(leases))
        self.asked.set()
        await self.free.wait()
        if self.failures:
            raise self.failures.pop(0)
        return [None if lease in self.unsettled else self.ttls.get(lease, 0) for lease in leases]

    async def settle(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]:
        self.settling.append(list(leases))
        await self.settled.wait()
        return [None if lease in self.unsettled else self.ttls.get(lease, 0) for lease in leases]

    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None:
        if self.failures:
            raise self.failures.pop(0)
        return self.ttls[lease] - 1 if lease in self.ttls else None

    async def send(self, leader: NodeId, kind: int, payload: bytes, *, timeout_s: float) -> bytes:
        self.sent.append((leader, kind, payload, timeout_s))
        if self.send_failures:
            raise self.send_failures.pop(0)
        if self.raw_answer is not None:
            return self.raw_answer
        assert self.remote is not None
        return await self.remote.answer(ForwardKind(kind), payload, timeout_s)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "PAUSE_S", 0.002)


@pytest.fixture
async def cluster() -> FakeCluster:
    return FakeCluster()


def desk_of(cluster: FakeCluster) -> LeaseDesk:
    return LeaseDesk(leading=cluster, keeper=cluster, send=cluster.send)


def follower(cluster: FakeCluster) -> tuple[LeaseDesk, FakeCluster]:
    """A desk on a follower, and the leader that it asks."""
    leader = FakeCluster()
    cluster.leader_id = OTHER
    cluster.remote = desk_of(leader)
    return desk_of(cluster), leader


def soon(delay_s: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + delay_s


IDS = [LeaseId(7), LeaseId(8), LeaseId(-3)]


async def test_leader_answers_by_itself(cluster: FakeCluster) -> None:
    desk = desk_of(cluster)
    assert await desk.renew(IDS, soon()) == [60, 0, 5]
    assert [await desk.remaining_s(lease, soon()) for lease in IDS] == [59, None, 4]
    assert cluster.sent == []


async def test_follower_has_the_leader_answer(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    assert await desk.renew(IDS, soon()) == [60, 0, 5]
    assert [await desk.remaining_s(lease, soon()) for lease in IDS] == [59, None, 4]
    assert leader.batches == [IDS]
    assert {(to, kind) for to, kind, _, _ in cluster.sent} == {(OTHER, ForwardKind.LEASE_RENEW), (OTHER, ForwardKind.LEASE_REMAINING)}
    assert cluster.batches == []


async def test_renewals_that_come_meanwhile_share_the_next_request(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.free.clear()
    tasks = [asyncio.create_task(desk.renew([LeaseId(7)], soon()))]
    await leader.asked.wait()
    tasks += [asyncio.create_task(desk.renew([LeaseId(7), LeaseId(8)], soon())) for _ in range(50)]
    await asyncio.sleep(0)
    leader.free.set()
    assert await asyncio.gather(*tasks) == [[60], *[[60, 0]] * 50]
    assert [len(batch) for batch in leader.batches] == [1, 100]


async def test_batches_are_bounded(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "BATCH", 10)
    desk, leader = follower(cluster)
    assert await desk.renew([LeaseId(7)] * 25, soon()) == [60] * 25
    assert [len(batch) for batch in leader.batches] == [10, 10, 5]


@pytest.mark.parametrize("error", [NotLeaderError, RequestTimeoutError, NoLeaderError])
async def test_what_fails_is_asked_again(cluster: FakeCluster, error: type[RequestError]) -> None:
    desk, leader = follower(cluster)
    leader.failures = [error(), error()]
    assert await desk.renew([LeaseId(7)], soon()) == [60]
    leader.failures = [error(), error()]
    assert await desk.remaining_s(LeaseId(7), soon()) == 59


async def test_renewal_that_takes_long_holds_up_no_other(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.unsettled = {LeaseId(7), LeaseId(9)}
    late = [asyncio.create_task(desk.renew([LeaseId(lease), LeaseId(-3)], soon())) for lease in (7, 9)]
    async with asyncio.timeout(5):
        while not leader.settling:  # noqa: ASYNC110 - it comes by way of the desk's own task
            await asyncio.sleep(0.001)
        assert await desk.renew([LeaseId(-3), LeaseId(8)], soon()) == [5, 0]
        assert not any(task.done() for task in late)
        leader.unsettled = {LeaseId(9)}  # which stays where it is asked about again
        leader.settled.set()
        assert await late[0] == [60, 5]
        leader.unsettled = set()
        assert await late[1] == [0, 5]
    assert leader.settling[0] == [7, 9]
    assert leader.batches == [[7, -3, 9, -3], [-3, 8]]


async def test_renewal_that_takes_long_hears_of_its_deadline_and_of_the_stop(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.unsettled = {LeaseId(7)}
    with pytest.raises(RequestTimeoutError):
        await desk.renew([LeaseId(7)], soon(0.02))
    waiting = asyncio.create_task(desk.renew([LeaseId(7)], soon()))
    await asyncio.sleep(0.01)
    desk.stop()
    with pytest.raises(StoppedError):
        await waiting


async def test_lost_connections_and_foreign_answers_are_asked_again(cluster: FakeCluster) -> None:
    desk, _ = follower(cluster)
    cluster.send_failures = [PeerNotConnectedError(OTHER), PeerRequestRefusedError("UnknownKind", "what?")]
    assert await desk.renew([LeaseId(7)], soon()) == [60]
    assert len(cluster.sent) == 3
    for answer in (b"", b"\x00" * 7, b"\x00" * 16):
        cluster.raw_answer = answer
        with pytest.raises(RequestTimeoutError):
            await desk.remaining_s(LeaseId(7), soon(0.01))


async def test_leader_that_comes_is_asked(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    cluster.leader_id = NodeId(0)
    waiting = asyncio.create_task(desk.renew([LeaseId(7)], soon()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    cluster.leader_id = OTHER
    assert await waiting == [60]
    assert leader.batches == [[7]]


async def test_deadline_ends_the_wait_and_says_whether_there_is_a_leader(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.free.clear()
    with pytest.raises(RequestTimeoutError):
        await desk.renew([LeaseId(7)], soon(0.01))
    cluster.leader_id = NodeId(0)
    for asking in (desk.renew([LeaseId(7)], soon(0.01)), desk.remaining_s(LeaseId(7), soon(0.01))):
        with pytest.raises(NoLeaderError):
            await asking


async def test_damage_is_an_answer(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.failures = [CorruptError()]
    with pytest.raises(CorruptError):
        await desk.renew([LeaseId(7), LeaseId(8)], soon())
    leader.failures = [CorruptError()]
    with pytest.raises(CorruptError):
        await desk.remaining_s(LeaseId(7), soon())
    assert await desk.renew([LeaseId(7)], soon()) == [60]


async def test_who_waits_at_the_stop_hears_it_and_so_does_who_comes(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.free.clear()
    waiting = asyncio.create_task(desk.renew([LeaseId(7)], soon()))
    await asyncio.sleep(0)
    desk.stop()
    with pytest.raises(StoppedError):
        await waiting
    with pytest.raises(StoppedError):
        await desk.renew([LeaseId(7)], soon())


async def test_too_many_that_wait_are_refused(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_WAITING", 3)
    cluster.free.clear()
    desk = desk_of(cluster)
    waiting = asyncio.create_task(desk.renew([LeaseId(7)] * 3, soon()))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequestsError):
        await desk.renew([LeaseId(7)], soon())
    cluster.free.set()
    assert await waiting == [60, 60, 60]


@pytest.mark.parametrize("payload", [b"", b"\x00" * 9, struct.pack(">1001q", *range(1001))])
async def test_question_that_names_no_leases_or_too_many_is_malformed(cluster: FakeCluster, payload: bytes) -> None:
    with pytest.raises(ValueError, match="leases"):
        await desk_of(cluster).answer(ForwardKind.LEASE_RENEW, payload, 1.0)


async def test_member_that_does_not_lead_refuses_by_name(cluster: FakeCluster) -> None:
    cluster.failures = [NotLeaderError()]
    with pytest.raises(PeerRequestRefusedError) as refused:
        await desk_of(cluster).answer(ForwardKind.LEASE_RENEW, struct.pack(">q", 7), 1.0)
    assert refused.value.code == "NotLeaderError"


async def test_caller_that_leaves_costs_nothing(cluster: FakeCluster) -> None:
    desk, leader = follower(cluster)
    leader.free.clear()
    first: Any = asyncio.create_task(desk.renew([LeaseId(7)], soon()))
    gone = [asyncio.create_task(desk.renew([LeaseId(8)], soon())) for _ in range(10)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    leader.free.set()
    assert await first == [60]
    assert [len(batch) for batch in leader.batches] in ([1], [11])
