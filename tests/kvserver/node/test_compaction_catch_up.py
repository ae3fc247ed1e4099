"""Compaction and those who are behind, in clusters of real drivers (driver_cluster.py): nobody is caught in a loop of snapshots, everybody
catches up in the end, and what is applied is the same with compaction and without it.
"""

from __future__ import annotations

import random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.node import driver
from kvserver.node.compaction import WindowLimits
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES, LogWindow
from kvserver.node.peers import PeerBook
from kvserver.node.window_keeper import WindowKeeper
from raft.confchange import ConfChange, ConfChangeType
from raft.types import NodeId
from tests.kvserver.node.driver_cluster import COMMIT_S, Cluster, Member, Proposal, cluster_of, run

TWO, THREE = NodeId(2), NodeId(3)
CAP: Final = 200
VALUE_BYTES: Final = 1_000
BY_ENTRIES: Final = WindowLimits(max_entries=CAP, max_bytes=1 << 30)
BY_BYTES: Final = WindowLimits(max_entries=1 << 30, max_bytes=CAP * (VALUE_BYTES + ENTRY_OVERHEAD_BYTES + 20))


async def _wants_snapshot(cluster: Cluster) -> Member:
    """Member 3 was away for more than the caps, and is back; its snapshot is under way."""
    leader = await cluster.lead(1)
    cluster.cut.add(THREE)
    for _ in range(4):
        leader.write(CAP, VALUE_BYTES)
        await cluster.settle(2 * COMMIT_S)
    cluster.cut.clear()
    await cluster.wait_until(lambda: bool(leader.snapshots))
    return leader


async def _write_and_deliver(cluster: Cluster, leader: Member, writes: int) -> None:
    """So many writes pass while the snapshot is under way; then it arrives."""
    for _ in range(writes // 10):
        leader.write(10, VALUE_BYTES)
        await cluster.settle(0.05)
    await cluster.settle(2 * COMMIT_S)
    leader.deliver_snapshot()
    await cluster.settle()


def _expect_one_snapshot(limits: WindowLimits, writes: int) -> None:
    async def scenario() -> None:
        async with cluster_of(3, limits=limits) as cluster:
            leader = await _wants_snapshot(cluster)
            await _write_and_deliver(cluster, leader, writes)
            assert cluster.snapshots_wanted == 1, "no loop of snapshots: entries follow the first one"
            assert cluster[3].applied == leader.applied, "every follower catches up"
            assert leader.book.pins_expired == 0, "a pin holds"

    run(scenario)


@settings(max_examples=15)
@given(st.sampled_from([BY_ENTRIES, BY_BYTES]), st.integers(0, 2 * CAP - 20))
def test_one_snapshot_is_enough_while_less_than_twice_the_cap_is_written_during_its_transfer(limits: WindowLimits, writes: int) -> None:
    _expect_one_snapshot(limits, writes)


@pytest.mark.parametrize("limits", [BY_ENTRIES, BY_BYTES])
def test_beyond_twice_the_cap_memory_is_kept_and_another_snapshot_follows(limits: WindowLimits) -> None:
    async def scenario() -> None:
        async with cluster_of(3, limits=limits) as cluster:
            leader = await _wants_snapshot(cluster)
            await _write_and_deliver(cluster, leader, 3 * CAP)
            assert leader.window.entry_count <= 2 * CAP, "a pin holds no more than twice the caps"
            assert (cluster.snapshots_wanted, leader.book.pins_expired) == (2, 1), "a pin at twice the caps ends, and is counted"
            await _write_and_deliver(cluster, leader, 0)
            assert cluster[3].applied == leader.applied, "every follower catches up"

    run(scenario)


def test_a_new_member_gets_no_snapshot_that_does_not_know_it_yet() -> None:
    """It would refuse it: the leader waits until its store has committed the change, instead of copying all of it in vain."""

    async def scenario() -> None:
        async with cluster_of(1) as cluster:
            leader = await cluster.lead(1)
            leader.write(300)
            await cluster.settle()
            assert leader.floor > 100
            leader.holds_commits = True
            leader.driver.propose(Proposal(ConfChange(type=ConfChangeType.ADD_LEARNER_NODE, node_id=TWO)))
            await cluster.settle()
            cluster.join(TWO)
            await cluster.settle(3.0)
            assert cluster.snapshots_wanted == 0, "a snapshot helps its receiver"
            assert leader.book.pins == {}
            leader.commit()
            await cluster.wait_until(lambda: bool(leader.snapshots), timeout_s=0.5)
            leader.deliver_snapshot()
            await cluster.settle()
            assert cluster[2].applied == leader.applied, "every follower catches up"
            assert cluster.snapshots_wanted == 1, "no loop of snapshots"

    run(scenario)


async def _live(seed: int, limits: WindowLimits) -> tuple[dict[NodeId, list[bytes]], int, int]:
    """One random history: writes, members cut off and back, other leaders, changes of the members. Its writes don't depend on the
    window. Returns the commands that each member applied, how many compactions there were and how many snapshots.

    Raft's own empty entries are left out: how many elections there are may depend on whether entries or a snapshot help a member.
    """
    rng = random.Random(seed)
    async with cluster_of(3, learners=1, limits=limits) as cluster:
        leader = await cluster.lead(1)
        for _ in range(30):
            match rng.choice(("write", "write", "write", "cut", "mend", "lead", "promote")):
                case "write":
                    leader.write(rng.choice((1, 20, 150)), rng.choice((0, 500)))
                case "cut":
                    cluster.cut = {rng.choice([number for number in cluster.members if number != leader.id])}
                case "mend":
                    cluster.cut = set()
                case "lead":
                    heir = cluster[leader.id % 3 + 1]
                    if not cluster.cut:
                        await _catch_up(cluster, leader)
                        leader.driver.transfer_leader(heir.id)
                        await cluster.wait_until(lambda heir=heir: heir.driver.is_leader)  # type: ignore[misc]
                        leader = heir
                case "promote":
                    kind = rng.choice((ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE))
                    leader.driver.propose(Proposal(ConfChange(type=kind, node_id=NodeId(4))))
            await cluster.settle(rng.choice((0.05, 0.3, 3.0)))
        cluster.cut = set()
        await _catch_up(cluster, leader)
        made = sum(len(member.compactions) for member in cluster.members.values())
        return {member.id: list(filter(None, member.applied)) for member in cluster.members.values()}, made, cluster.snapshots_wanted


async def _catch_up(cluster: Cluster, leader: Member) -> None:
    """Deliver what snapshots are under way, until everybody has everything."""

    def all_there() -> bool:
        while leader.snapshots:
            leader.deliver_snapshot()
        return {member.driver.applied_index for member in cluster.members.values()} == {leader.window.last_index()}

    await cluster.wait_until(all_there, step_s=0.05)
    await cluster.settle(0.5)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_applied_is_the_same_with_compaction_on_and_off(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    async def scenario() -> None:
        found.append(await _live(seed, WindowLimits(max_entries=60, max_bytes=30_000)))

    run(scenario)
    monkeypatch.setattr(WindowKeeper, "decide", lambda self, raw, **_: None)
    run(scenario)
    (small, made, snapshots), (endless, never, none) = found
    assert len({tuple(applied) for applied in (*small.values(), *endless.values())}) == 1, "the applied state is the same"
    assert (never, none) == (0, 0), "without compaction nothing is dropped, and nobody needs a snapshot"
    assert made > 0
    assert seed != 0 or snapshots > 0, "the first history is one with snapshots"


def test_finds_snapshots_for_members_that_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: as the driver was."""
    monkeypatch.setattr(driver, "_is_member", lambda node, conf_state: True)
    with pytest.raises(AssertionError, match="a snapshot helps its receiver"):
        test_a_new_member_gets_no_snapshot_that_does_not_know_it_yet()


def test_finds_a_loop_of_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: nothing is held behind a snapshot."""
    monkeypatch.setattr(PeerBook, "pin", lambda self, peer, index: None)
    with pytest.raises(AssertionError, match="no loop of snapshots"):
        _expect_one_snapshot(BY_ENTRIES, 2 * CAP - 20)


def test_finds_a_pin_that_does_not_double_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the cap cuts into what a pin holds."""
    cap_index = LogWindow.cap_index
    monkeypatch.setattr(LogWindow, "cap_index", lambda self, entries, size: cap_index(self, min(entries, CAP), size))
    with pytest.raises(AssertionError, match="no loop of snapshots"):
        _expect_one_snapshot(BY_ENTRIES, 2 * CAP - 20)
