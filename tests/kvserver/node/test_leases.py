"""The leader's keeper over a real store: who is revoked, when, and after whose word; renewing before, during and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import CorruptError, NoLeaderError, NotLeaderError, RequestError, RequestTimeoutError
from kvserver.logs import Logger
from kvserver.node import leases as leases_module
from kvserver.node.leases import LeaseKeeper
from kvserver.pb.rpc_pb2 import LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest
from kvserver.types import ClusterId, ConfState, Index, LeaseId, Member, NodeId, Term

TERM = Term(5)
FOREVER = 3600
EXTEND_S = 0.0


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


class FakeMember:
    """A store whose proposals are applied at once, in entries of the term in force; leadership and the quorum do as they are told."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        one = NodeId(1)
        self.store.bootstrap(ClusterId(1), {one: Member(id=one)}, ConfState(voters=(one,)))
        self.applier = Applier(self.store)
        self.is_leader = True
        self.term = TERM
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.confirmation: RequestError | None = None
        self.asked_quorum = asyncio.Event()
        self.applies = asyncio.Event()
        self.applies.set()
        self.proposals_end = asyncio.Event()
        self.proposals_end.set()
        self.proposed: list[tuple[CommandKind, Any]] = []
        self.failures: list[RequestError] = []
        self.on_proposed = asyncio.Event()

    def apply(self, kind: CommandKind, request: Any) -> Any:
        index = Index(self.store.applied_index + 1)
        return self.applier.apply_entry(
            index, self.term, commands.encode(kind, ProposalId(NodeId(1), 1, index), request.SerializeToString())
        ).result

    def grant(self, lease: int, ttl_s: int, *keys: bytes) -> LeaseId:
        self.apply(CommandKind.LEASE_GRANT, LeaseGrantRequest(ID=lease, TTL=ttl_s))
        for key in keys:
            self.apply(CommandKind.PUT, PutRequest(key=key, lease=lease))
        return LeaseId(lease)

    async def wait_linearizable(self, deadline_s: float) -> None:
        await self.wait_confirmed(deadline_s)
        await self.applies.wait()

    async def wait_confirmed(self, deadline_s: float) -> None:
        assert deadline_s > asyncio.get_running_loop().time()
        self.asked_quorum.set()
        await self.confirms.wait()
        if self.confirmation is not None:
            raise self.confirmation

    async def propose(self, kind: CommandKind, request: Any, *, deadline_s: float) -> Any:
        self.proposed.append((kind, request))
        self.on_proposed.set()
        await self.applies.wait()
        await self.proposals_end.wait()
        if self.failures:
            raise self.failures.pop(0)
        result = self.apply(kind, request)
        if isinstance(result, RequestError):
            raise result
        return result

    @property
    def keys(self) -> list[bytes]:
        return [kv.key for kv in self.store.range(RangeRequest(key=b"\x00", range_end=b"\x00")).kvs]


def keeper_of(member: FakeMember) -> LeaseKeeper:
    keeper = LeaseKeeper(
        store=member.store,
        leadership=member,
        reads=member,
        proposals=member,
        extend_s=EXTEND_S,
        attempt_timeout_s=5.0,
        log=Logger(SilentOutput()),
    )
    member.store.on_lease = keeper.note_lease
    return keeper


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "CHECK_S", 0.002)
    monkeypatch.setattr(leases_module, "RETRY_S", 0.01)
    monkeypatch.setattr(leases_module, "SLICE", 3)


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[FakeMember]:
    made = FakeMember(tmp_path / "db")
    yield made
    await made.store.close(commit=False)


@pytest.fixture
async def keeper(member: FakeMember) -> AsyncIterator[LeaseKeeper]:
    made = keeper_of(member)
    yield made
    made.stop()


def soon(delay_s: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + delay_s


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the keeper works on its own clock
            await asyncio.sleep(0.001)


async def rounds(count: int = 20) -> None:
    """Long enough for that many looks of the keeper."""
    await asyncio.sleep(count * leases_module.CHECK_S)


async def test_leases_of_the_store_expire_under_a_new_leader_with_their_keys(member: FakeMember, keeper: LeaseKeeper) -> None:
    for lease in range(-5, 0):
        member.grant(lease, 0, b"k%d" % lease)
    member.grant(9, FOREVER, b"kept")
    keeper.note_leader(leads=True, term=TERM)
    await until(lambda: member.keys == [b"kept"])
    assert [lease for lease, _ in member.store.leases.leases()] == [9]
    assert {kind for kind, _ in member.proposed} == {CommandKind.LEASE_EXPIRE}
    assert {request.term for _, request in member.proposed} == {TERM}
    assert keeper.known_count == 1


async def test_lease_granted_under_this_leader_expires(member: FakeMember, keeper: LeaseKeeper) -> None:
    keeper.note_leader(leads=True, term=TERM)
    await rounds(2)
    member.grant(1, 0, b"k")
    await until(lambda: member.keys == [])


async def test_follower_revokes_nothing_and_keeps_nothing_in_memory(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.is_leader = False
    keeper.note_leader(leads=False, term=TERM)
    member.grant(1, 0, b"k")
    await rounds()
    assert (member.proposed, keeper.known_count) == ([], 0)
    with pytest.raises(NotLeaderError):
        await keeper.renew([LeaseId(1)], soon())


async def test_nothing_is_revoked_before_a_quorum_has_confirmed_the_leader(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.confirms.clear()
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.asked_quorum.wait()
    await rounds()
    assert member.proposed == []
    member.confirms.set()
    await until(lambda: member.keys == [])


async def test_no_revoke_while_no_quorum_answers_and_all_of_them_afterwards(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.confirmation = NoLeaderError()
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.asked_quorum.wait()
    await rounds()
    assert member.proposed == []
    member.confirmation = None
    await until(lambda: member.keys == [])


@pytest.mark.parametrize("change", ["deposed", "next term"])
async def test_leader_that_lost_its_term_while_it_waited_for_the_quorum_revokes_nothing(
    member: FakeMember, keeper: LeaseKeeper, change: str
) -> None:
    """A round that began under one leader may be answered by the next one: the answer alone proves nothing."""
    member.confirms.clear()
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.asked_quorum.wait()
    if change == "deposed":
        member.is_leader = False
    else:
        member.term = Term(TERM + 1)
    member.confirms.set()
    await rounds()
    assert member.proposed == []
    with pytest.raises(NotLeaderError):
        await keeper.renew([LeaseId(1)], soon())


async def test_new_term_begins_with_the_whole_ttl_of_every_lease(member: FakeMember, keeper: LeaseKeeper) -> None:
    keeper.note_leader(leads=True, term=TERM)
    lease = member.grant(1, 1, b"k")
    await asyncio.sleep(0.6)
    member.term = Term(TERM + 1)
    keeper.note_leader(leads=True, term=member.term)
    await asyncio.sleep(0.6)
    assert member.keys == [b"k"]
    assert await keeper.remaining_s(lease, soon()) == 0
    await until(lambda: member.keys == [])
    assert [request.term for _, request in member.proposed] == [TERM + 1]


async def test_expiry_proposed_under_an_old_term_has_no_effect_and_is_not_repeated_by_it(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.applies.clear()
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    (_, request) = member.proposed[0]
    member.is_leader, member.term = False, Term(TERM + 1)
    keeper.note_leader(leads=False, term=member.term)
    assert isinstance(member.apply(CommandKind.LEASE_EXPIRE, request), RequestError)
    assert member.keys == [b"k"]
    await rounds()
    assert len(member.proposed) == 1


async def test_renewed_lease_lives_on_though_its_first_time_is_over(member: FakeMember, keeper: LeaseKeeper) -> None:
    keeper.note_leader(leads=True, term=TERM)
    lease = member.grant(1, 1, b"k")
    for _ in range(4):
        await asyncio.sleep(0.4)
        assert await keeper.renew([lease], soon()) == [1]
    assert (member.keys, member.proposed) == ([b"k"], [])


async def test_lease_that_was_not_taken_up_yet_can_be_renewed_and_asked_about(member: FakeMember, keeper: LeaseKeeper) -> None:
    lease = member.grant(7, FOREVER)
    keeper.note_leader(leads=True, term=TERM)
    assert keeper.known_count == 0
    assert await keeper.renew([lease, LeaseId(8)], soon()) == [FOREVER, None]
    assert await keeper.settle([lease, LeaseId(8)], soon()) == [FOREVER, 0]
    assert await keeper.remaining_s(lease, soon()) in (FOREVER - 1, FOREVER)
    assert await keeper.remaining_s(LeaseId(8), soon()) is None


async def test_who_renews_a_lease_whose_revoke_is_on_its_way_hears_what_became_of_it(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.proposals_end.clear()
    lease, other = member.grant(1, 0), member.grant(2, FOREVER)
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    assert await keeper.renew([lease, other], soon()) == [None, FOREVER]
    assert await keeper.settle([lease, other], soon(0.02)) == [None, FOREVER]
    renewing = asyncio.create_task(keeper.settle([lease], soon()))
    await rounds()
    assert not renewing.done()
    member.proposals_end.set()
    assert await renewing == [0]


async def test_revoke_that_takes_long_is_waited_for_no_longer_than_others_may_be_held_up(
    member: FakeMember, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "SETTLE_S", 0.02)
    member.proposals_end.clear()
    lease = member.grant(1, 0)
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    async with asyncio.timeout(5):
        assert await keeper.settle([lease, LeaseId(3)], soon(60)) == [None, 0]


async def test_leases_are_renewed_and_live_while_an_entry_is_applied_for_longer_than_their_time(
    member: FakeMember, keeper: LeaseKeeper
) -> None:
    lease = member.grant(1, 1, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await rounds(2)
    member.applies.clear()
    for _ in range(5):
        assert await keeper.renew([lease, LeaseId(9)], soon(0.2)) == [1, None]
        await asyncio.sleep(0.3)
    unknown = asyncio.create_task(keeper.settle([LeaseId(9)], soon()))
    await rounds()
    assert not unknown.done(), "it may be in what is not applied"
    member.applies.set()
    assert await unknown == [0]
    assert (member.keys, member.proposed) == ([b"k"], [])


async def test_time_in_which_no_quorum_answered_is_given_back_once(member: FakeMember, keeper: LeaseKeeper) -> None:
    lease, lost = member.grant(1, 1, b"k"), member.grant(2, 1, b"lost")
    keeper.note_leader(leads=True, term=TERM)
    await rounds(2)
    member.confirms.clear()
    renewing = asyncio.create_task(keeper.renew([lease], soon()))
    await asyncio.sleep(1.6)
    renewing.cancel()  # its client comes again when it hears of it
    member.confirms.set()
    await rounds()
    assert member.proposed == []
    assert await keeper.renew([lease], soon()) == [1]
    await until(lambda: member.keys == [b"k"])
    assert [request.id for _, request in member.proposed] == [lost]


async def test_who_waits_for_a_revoke_when_the_reign_ends_hears_that(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.proposals_end.clear()
    lease = member.grant(1, 0)
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    renewing = asyncio.create_task(keeper.settle([lease], soon()))
    await rounds()
    keeper.note_leader(leads=False, term=Term(TERM + 1))
    with pytest.raises(NotLeaderError):
        await renewing


async def test_revoke_that_failed_is_tried_again_and_the_lease_can_be_renewed_until_then(
    member: FakeMember, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "RETRY_S", 0.2)
    member.failures = [RequestTimeoutError()]
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    await rounds()
    assert await keeper.settle([LeaseId(1)], soon()) == [0]  # its TTL
    assert member.keys == [b"k"]
    await until(lambda: member.keys == [])
    assert len(member.proposed) == 2


async def test_lease_revoked_by_a_client_is_forgotten(member: FakeMember, keeper: LeaseKeeper) -> None:
    keeper.note_leader(leads=True, term=TERM)
    lease = member.grant(1, FOREVER)
    assert keeper.known_count == 1
    member.apply(CommandKind.LEASE_REVOKE, LeaseRevokeRequest(ID=lease))
    assert keeper.known_count == 0
    assert await keeper.settle([lease], soon()) == [0]


async def test_revokes_under_way_are_bounded(member: FakeMember, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "BATCH", 4)
    member.applies.clear()
    for lease in range(1, 11):
        member.grant(lease, 0, b"k%d" % lease)
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    await rounds()
    assert len(member.proposed) == 4
    member.applies.set()
    await until(lambda: member.keys == [])
    assert len(member.proposed) == 10


async def test_stopped_keeper_revokes_nothing_and_takes_up_no_reign(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    keeper.stop()
    keeper.note_leader(leads=True, term=Term(TERM + 1))
    await rounds()
    assert (member.proposed, member.keys) == ([], [b"k"])


async def test_revoke_that_the_corrupt_alarm_refused_is_not_repeated_every_moment(member: FakeMember, keeper: LeaseKeeper) -> None:
    member.failures = [CorruptError() for _ in range(100)]
    member.grant(1, 0, b"k")
    keeper.note_leader(leads=True, term=TERM)
    await member.on_proposed.wait()
    await rounds(50)
    assert len(member.proposed) == 1
