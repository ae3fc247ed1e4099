"""Which membership change is safe now, and that a refused one is never proposed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvserver.apply import MemberChange, MemberChangeKind
from kvserver.errors import (
    BadLeaderTransfereeError,
    LearnerNotReadyError,
    MemberNotFoundError,
    MemberNotLearnerError,
    NotEnoughStartedMembersError,
    NotLeaderError,
    PeerUrlExistsError,
    TimeoutLeaderTransferError,
    TooManyLearnersError,
    UnhealthyError,
)
from kvserver.node.reconfiguration import (
    Reconfiguration,
    ReconfigurationRules,
    has_quorum_to_add,
    has_quorum_to_promote,
    has_quorum_to_remove,
)
from kvserver.types import Member, NodeId
from raft.confchange import ConfChange, ConfChangeType
from raft.types import Index


def members(*started: bool, learners: int = 0) -> dict[NodeId, Member]:
    """Voters 1.. (started or not), then started learners."""
    made = [
        Member(id=NodeId(number), name=f"m{number}" if is_started else "", peer_urls=(f"http://h{number}:1",))
        for number, is_started in enumerate(started, 1)
    ]
    made += [
        Member(id=NodeId(len(started) + number), name="l", peer_urls=(f"http://l{number}:1",), is_learner=True)
        for number in range(1, learners + 1)
    ]
    return {member.id: member for member in made}


@pytest.mark.parametrize(
    ("started", "allowed"),
    [
        ((True,), True),
        ((True, True), True),
        ((True, True, True), True),
        ((True, False), False),
        ((True, True, False), False),
        ((True, True, True, False), True),
    ],
)
def test_a_voter_may_be_added_while_a_quorum_of_the_larger_cluster_is_started(started: tuple[bool, ...], allowed: bool) -> None:
    assert has_quorum_to_add(members(*started)) is allowed


def test_removal_keeps_a_started_quorum() -> None:
    assert not has_quorum_to_remove(members(True), NodeId(1))
    assert has_quorum_to_remove(members(True, True, True), NodeId(1))
    assert not has_quorum_to_remove(members(True, True, False), NodeId(1))
    assert has_quorum_to_remove(members(True, True, False), NodeId(3))


def test_promotion_counts_the_learner_as_started() -> None:
    assert has_quorum_to_promote(members(True, learners=1), NodeId(2))
    assert has_quorum_to_promote(members(True, False, True, learners=1), NodeId(4))
    assert not has_quorum_to_promote(members(True, False, False, learners=1), NodeId(4))


class Cluster:
    """Everything that a reconfiguration asks."""

    def __init__(self, known: dict[NodeId, Member], self_id: int = 1, **rules: Any) -> None:
        self.known = known
        self.connected: dict[int, float | None] = dict.fromkeys(known, 60.0)
        self.is_leader = True
        self.leader_id = NodeId(self_id)
        self.matches: dict[int, int] = dict.fromkeys(known, 100)
        self.proposed: list[tuple[MemberChange, ConfChange]] = []
        self.asked: list[tuple[int, int]] = []
        self.transfers: list[int] = []
        self.changed = asyncio.Event()
        self.change = Reconfiguration(
            self_id=NodeId(self_id),
            cluster_token=lambda: "token",
            members=lambda: self.known,
            connected_s=self.connected.get,
            proposals=self,
            leadership=self,
            ask_leader_to_promote=self.ask,
            rules=ReconfigurationRules(**{"election_timeout_s": 0.05, **rules}),
        )

    async def propose_change(self, change: MemberChange, conf_change: ConfChange, *, deadline_s: float) -> Any:
        self.proposed.append((change, conf_change))

    async def ask(self, leader: NodeId, target: NodeId, deadline_s: float) -> None:
        self.asked.append((leader, target))

    def match_index(self, peer: NodeId) -> Index | None:
        found = self.matches.get(peer)
        return None if found is None else Index(found)

    def transfer_leader(self, to: NodeId) -> None:
        self.transfers.append(to)

    async def wait_leader_change(self) -> None:
        await self.changed.wait()
        self.changed.clear()


URLS = ["http://new:1"]


async def test_adding_proposes_raft_change_and_membership_change_together() -> None:
    cluster = Cluster(members(True, True, True))
    voter = await cluster.change.add(URLS, is_learner=False, deadline_s=9.0)
    learner = await cluster.change.add(URLS, is_learner=True, deadline_s=9.0)
    assert voter.id != learner.id
    kinds = [(change.kind, conf.type, conf.node_id == change.member.id) for change, conf in cluster.proposed]
    assert kinds == [
        (MemberChangeKind.ADD, ConfChangeType.ADD_NODE, True),
        (MemberChangeKind.ADD, ConfChangeType.ADD_LEARNER_NODE, True),
    ]


async def test_adding_is_refused_before_it_is_proposed() -> None:
    with pytest.raises(PeerUrlExistsError):
        await Cluster(members(True)).change.add(["http://h1:1"], is_learner=False, deadline_s=9.0)
    with pytest.raises(TooManyLearnersError):
        await Cluster(members(True, learners=1)).change.add(URLS, is_learner=True, deadline_s=9.0)
    with pytest.raises(NotEnoughStartedMembersError):
        await Cluster(members(True, False)).change.add(URLS, is_learner=False, deadline_s=9.0)
    unhealthy = Cluster(members(True, True, True))
    unhealthy.connected[2] = 1.0
    with pytest.raises(UnhealthyError):
        await unhealthy.change.add(URLS, is_learner=False, deadline_s=9.0)
    assert unhealthy.proposed == []
    loose = Cluster(members(True, False), strict=False)
    await loose.change.add(URLS, is_learner=False, deadline_s=9.0)
    assert len(loose.proposed) == 1


async def test_removing_protects_the_active_quorum() -> None:
    cluster = Cluster(members(True, True, True))
    with pytest.raises(MemberNotFoundError):
        await cluster.change.remove(NodeId(9), deadline_s=9.0)
    cluster.connected[3] = None
    with pytest.raises(UnhealthyError):
        await cluster.change.remove(NodeId(2), deadline_s=9.0)
    await cluster.change.remove(NodeId(3), deadline_s=9.0)
    assert [(change.kind, conf.type) for change, conf in cluster.proposed] == [(MemberChangeKind.REMOVE, ConfChangeType.REMOVE_NODE)]


async def test_promotion_needs_a_learner_in_sync_and_happens_on_the_leader() -> None:
    cluster = Cluster(members(True, learners=1))
    cluster.matches = {1: 100, 2: 89}
    with pytest.raises(LearnerNotReadyError):
        await cluster.change.promote(NodeId(2), deadline_s=9.0)
    with pytest.raises(MemberNotLearnerError):
        await cluster.change.promote(NodeId(1), deadline_s=9.0)
    cluster.matches[2] = 90
    await cluster.change.promote(NodeId(2), deadline_s=9.0)
    assert [conf.type for _, conf in cluster.proposed] == [ConfChangeType.ADD_NODE]
    cluster.is_leader, cluster.leader_id = False, NodeId(5)
    await cluster.change.promote(NodeId(2), deadline_s=9.0)
    assert (len(cluster.proposed), cluster.asked) == (1, [(5, 2)])
    with pytest.raises(NotLeaderError):
        await cluster.change.promote_here(NodeId(2), 9.0)


async def test_moving_the_leader_waits_for_the_new_one() -> None:
    cluster = Cluster(members(True, True, learners=1))
    for bad in (3, 9):
        with pytest.raises(BadLeaderTransfereeError):
            await cluster.change.move_leader(NodeId(bad))
    with pytest.raises(TimeoutLeaderTransferError):
        await cluster.change.move_leader(NodeId(2))
    moving = asyncio.get_running_loop().create_task(cluster.change.move_leader(NodeId(2)))
    await asyncio.sleep(0)
    cluster.leader_id = NodeId(2)
    cluster.changed.set()
    await moving
    await cluster.change.move_leader(NodeId(1))
    assert cluster.transfers == [2, 2]
    cluster.is_leader = False
    with pytest.raises(NotLeaderError):
        await cluster.change.move_leader(NodeId(2))
