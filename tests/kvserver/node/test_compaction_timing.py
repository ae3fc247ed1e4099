"""*When* the log window is compacted: real drivers, in virtual time (driver_cluster.py).

Once per turn of the loop in which the applied index, the durable index or a peer's match moved, a deadline of the rule passed, or the role
or the configuration changed; and never for nothing. `test_timing_planted.py` plants mistakes: a failure's text begins with the promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from kvserver.node.compaction import DOWN_MEMBER_BUDGET_S, SLACK_ENTRIES, WindowLimits
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PIN_AFTER_SUCCESS_S
from raft.confchange import ConfChange, ConfChangeType
from raft.messages import Message, MessageType
from raft.types import Index, NodeId
from tests.kvserver.node.driver_cluster import COMMIT_S, LINK_S, TICK_S, Cluster, Member, Proposal, cluster_of, run, virtual_loop

GRACE_S = 10.0
SMALL = WindowLimits(max_entries=300, max_bytes=1 << 30, grace_s=GRACE_S)
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def virtual(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in virtual time."""

    @wraps(scenario)
    def test() -> None:
        run(scenario)

    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would find the coroutine function
    return test


async def behind(cluster: Cluster, entries: int) -> Member:
    """Member 1 leads and holds so many entries for member 3, which is cut off but active; the other members are up to date."""
    leader = await cluster.lead(1)
    cluster.cut.add(THREE)
    leader.write(entries)
    await cluster.settle(0.5)
    assert leader.window.entry_count >= entries, "held: they are needed"
    return leader


def is_slack(member: Member) -> bool:
    return member.window.entry_count < SLACK_ENTRIES


@virtual
async def test_the_window_is_compacted_in_the_turn_in_which_the_store_has_committed() -> None:
    async with cluster_of(1) as cluster:
        leader = await cluster.lead(1)
        leader.holds_commits = True
        leader.write(150)
        await cluster.settle(0.55)
        assert leader.compactions == [], "what is safe: nothing is durable"
        leader.commit()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [made.floor for made in leader.compactions] == [leader.driver.applied_index], "durable moved: compacted at once"
        await cluster.settle()


@virtual
async def test_the_window_is_compacted_in_the_turn_in_which_raft_hears_of_the_apply() -> None:
    """The store may have committed what was applied before raft hears of it: the queue applies in slices, outside of any turn."""
    async with cluster_of(1) as cluster:
        leader = await cluster.lead(1)
        leader.commits_at_once = True
        leader.has_room = False
        leader.write(150)
        applied = leader.driver.wait_applied(Index(150))
        await applied
        at_s = virtual_loop().now_s
        await cluster.settle(0.5)
        assert leader.floor >= 150, "applied moved: compacted"
        assert leader.compactions[0].at_s == at_s, "applied moved: compacted at once, not with the next tick"


@virtual
async def test_the_window_is_compacted_in_the_turn_in_which_a_peer_has_caught_up() -> None:
    async with cluster_of(3) as cluster:
        leader = await behind(cluster, 200)
        applied, before = leader.driver.applied_index, len(leader.compactions)
        cluster.cut.clear()
        await cluster.wait_until(lambda: leader.driver.match_index(THREE) == leader.window.last_index())
        caught_up_s = cluster.arrived[THREE, ONE]
        await cluster.settle()
        assert is_slack(leader), "a match moved: compacted"
        assert leader.driver.applied_index == applied, "nothing was written"
        assert leader.compactions[before].at_s <= caught_up_s, "a match moved: compacted at once"


@virtual
async def test_an_idle_cluster_frees_its_windows_within_a_second_after_the_last_member_caught_up() -> None:
    async with cluster_of(3, learners=1) as cluster:
        leader = await behind(cluster, 200)
        applied = leader.driver.applied_index
        cluster.cut.clear()
        await cluster.wait_until(lambda: leader.driver.match_index(THREE) == leader.window.last_index())
        await cluster.settle(1.0)
        held = {member.id: member.window.entry_count for member in cluster.members.values()}
        assert max(held.values()) < SLACK_ENTRIES, f"idle windows are freed: {held}"
        assert leader.driver.applied_index == applied, "nothing was written"


@virtual
async def test_a_follower_compacts_when_its_leaders_floor_rises_though_nothing_is_written() -> None:
    async with cluster_of(3) as cluster:
        leader = await behind(cluster, 200)
        follower = cluster[2]
        assert follower.floor == leader.floor, "a follower keeps what its leader does"
        applied, made = follower.driver.applied_index, len(follower.compactions)
        cluster.cut.clear()
        await cluster.settle()
        assert follower.driver.applied_index == applied, "nothing was written"
        assert follower.floor == leader.floor, "the leader's floor rose: the follower compacts"
        lateness_s = follower.compactions[made].at_s - leader.compactions[-1].at_s
        assert 0 < lateness_s <= TICK_S + 2 * LINK_S, "the leader's floor rose: the follower compacts with the next heartbeat"


@virtual
async def test_the_grace_of_a_silent_peer_ends_though_nothing_else_happens() -> None:
    """It needs more than half a cap, so that it has no budget beyond its grace."""
    async with cluster_of(3, limits=SMALL) as cluster:
        leader = await behind(cluster, 200)
        silent_since_s = leader.book.last_contact_s(THREE)
        await cluster.settle(GRACE_S + 1.0)
        assert is_slack(leader), "a deadline passed: the grace"
        late_s = leader.compactions[-1].at_s - silent_since_s - GRACE_S
        assert 0.0 <= late_s <= 2 * TICK_S, f"a deadline passed: the grace, {late_s} s late"


@virtual
async def test_the_budget_of_a_silent_voter_ends_though_nothing_else_happens() -> None:
    async with cluster_of(3, limits=SMALL, tick_s=1.0) as cluster:
        leader = cluster[1]
        leader.driver.campaign()
        await cluster.settle(2.0)
        cluster.cut.add(THREE)
        leader.write(120)
        await cluster.settle(60.0)
        assert leader.window.entry_count >= 120, "a silent voter has a budget"
        silent_since_s = leader.book.last_contact_s(THREE)
        await cluster.settle(DOWN_MEMBER_BUDGET_S)
        assert is_slack(leader), "a deadline passed: the budget"
        late_s = leader.compactions[-1].at_s - silent_since_s - DOWN_MEMBER_BUDGET_S
        assert 0.0 <= late_s <= 2.0, f"a deadline passed: the budget, {late_s} s late"


async def pinned(cluster: Cluster) -> Member:
    """Member 1 leads; member 3 needs a snapshot, which is under way, and is cut off again."""
    leader = await behind(cluster, 200)
    await cluster.settle(GRACE_S + 1.0)
    leader.write(SLACK_ENTRIES)
    await cluster.settle()
    assert leader.floor > 200, "nothing is held for nobody"
    cluster.cut.clear()
    await cluster.wait_until(lambda: bool(leader.snapshots))
    cluster.cut.add(THREE)
    return leader


@virtual
async def test_a_pin_ends_its_time_after_delivery_though_nothing_else_happens() -> None:
    async with cluster_of(3, limits=SMALL) as cluster:
        leader = await pinned(cluster)
        leader.write(150)
        await cluster.settle(GRACE_S + 2.0)
        assert leader.window.entry_count >= 150, "a pin holds"
        delivered_s = virtual_loop().now_s
        leader.driver.report_snapshot(THREE, delivered=True)
        await cluster.settle(PIN_AFTER_SUCCESS_S + 1.0)
        assert is_slack(leader), "a deadline passed: the pin"
        late_s = leader.compactions[-1].at_s - delivered_s - PIN_AFTER_SUCCESS_S
        assert 0.0 <= late_s <= 2 * TICK_S, f"a deadline passed: the pin, {late_s} s late"


@virtual
async def test_what_a_pin_held_goes_in_the_turn_in_which_its_snapshot_failed() -> None:
    async with cluster_of(3, limits=SMALL) as cluster:
        leader = await pinned(cluster)
        leader.write(150)
        await cluster.settle(GRACE_S + 2.05)
        failed_s = virtual_loop().now_s
        leader.driver.report_snapshot(THREE, delivered=False)
        await cluster.settle()
        assert leader.compactions[-1].at_s == failed_s, "a pin ended: compacted at once"


@virtual
async def test_what_was_held_for_a_peer_goes_in_the_turn_in_which_its_removal_is_applied() -> None:
    async with cluster_of(3) as cluster:
        leader = await behind(cluster, 200)
        leader.driver.propose(Proposal(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=THREE)))
        await cluster.wait_until(lambda: THREE not in leader.conf_state.voters)
        removed_s = cluster.arrived[TWO, ONE]
        await cluster.settle(0.5)
        assert is_slack(leader), "the configuration changed: compacted"
        assert leader.compactions[-1].at_s == removed_s, "the configuration changed: compacted at once"


@virtual
async def test_a_new_leader_waits_one_grace_for_those_it_has_not_heard_from_and_then_acts() -> None:
    async with cluster_of(3, limits=SMALL) as cluster:
        old = await behind(cluster, 200)
        await cluster.settle(GRACE_S / 2)
        old.driver.transfer_leader(TWO)
        await cluster.settle()
        new, elected_s = cluster[2], virtual_loop().now_s - 1.0
        assert new.driver.is_leader
        await cluster.settle(GRACE_S - 2.0)
        assert new.window.entry_count >= 200, "a new leader waits: one grace"
        await cluster.settle(3.0)
        assert is_slack(new), "a deadline passed: the grace of a new leader"
        assert 0.0 <= new.compactions[-1].at_s - elected_s - GRACE_S <= 1.0, "a new leader waits: one grace, no more"


@virtual
async def test_what_a_pin_held_goes_when_leadership_is_lost() -> None:
    async with cluster_of(3, limits=SMALL) as cluster:
        old = await pinned(cluster)
        old.write(150)
        await cluster.settle(GRACE_S + 2.0)
        assert old.window.entry_count >= 150, "a pin holds"
        old.driver.transfer_leader(TWO)
        await cluster.settle()
        assert cluster[2].driver.is_leader
        assert old.book.pins == {}, "the role changed: pins end"
        await cluster.settle(GRACE_S + 1.0)
        assert is_slack(old), "the role changed: compacted as a follower"
        assert is_slack(cluster[2]), "a deadline passed: the grace of a new leader"


@virtual
async def test_a_follower_forgets_the_floor_of_the_leader_before() -> None:
    """The new leader's store is behind, so that it holds more: what it could send stays, on every member."""
    async with cluster_of(3) as cluster:
        leader = await cluster.lead(1)
        cluster[2].holds_commits = cluster[3].holds_commits = True
        leader.write(200)
        await cluster.settle()
        assert leader.floor > 100, "the first leader compacts"
        leader.driver.transfer_leader(TWO)
        await cluster.settle()
        assert cluster[2].driver.is_leader
        cluster[3].commit()
        await cluster.settle()
        assert (cluster[2].floor, cluster[3].floor) == (0, 0), "a leader's floor ends with it: the new one still holds everything"
        cluster[2].commit()
        await cluster.settle()
        assert cluster[3].floor == cluster[2].floor > 100, "the leader's floor rose: the follower compacts"


@virtual
async def test_floors_never_move_back_while_leaders_change() -> None:
    async with cluster_of(3, learners=1, limits=SMALL) as cluster:
        leader = await cluster.lead(1)
        floors = dict.fromkeys(cluster.members, 0)
        for turn in range(24):
            leader.write(70)
            cluster.cut = {NodeId(4)} if turn % 4 == 1 else set()
            if turn % 2:
                successor = leader.id % 3 + 1
                leader.driver.transfer_leader(NodeId(successor))
                await cluster.settle()
                leader = cluster[successor]
                assert leader.driver.is_leader
            await cluster.settle(0.3)
            for member in cluster.members.values():
                assert member.floor >= floors[member.id], "floors never move back: in no window"
                floors[member.id] = member.floor
        await cluster.settle(GRACE_S)
        assert all(map(is_slack, cluster.members.values())), "nothing is held for nobody"
        assert len({tuple(member.applied) for member in cluster.members.values()}) == 1, "every follower catches up"


@virtual
async def test_a_floor_that_was_overtaken_does_not_count() -> None:
    async with cluster_of(2) as cluster:
        leader = await cluster.lead(1)
        follower = cluster[2]
        cluster.cut.add(TWO)
        for floor in (40, 70, 60):
            follower.driver.step(Message(type=MessageType.HEARTBEAT, to=TWO, from_=ONE, term=leader.driver.term), Index(floor))
        assert follower.driver.leader_floor == 70, "floors never move back: nor the one that was heard"


@virtual
async def test_an_idle_member_weighs_nothing() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.lead(1)
        leader.write(250)
        await cluster.settle()
        asked = {member.id: len(member.decisions) for member in cluster.members.values()}
        made = {member.id: len(member.compactions) for member in cluster.members.values()}
        await cluster.settle(60.0)
        assert {member.id: len(member.decisions) for member in cluster.members.values()} == asked, "no busy work: the rule is not asked"
        assert {member.id: len(member.compactions) for member in cluster.members.values()} == made, "no busy work: nothing is compacted"


@virtual
async def test_a_window_that_is_held_is_weighed_once_a_turn_and_left_alone() -> None:
    async with cluster_of(3) as cluster:
        leader = await behind(cluster, 200)
        made, asked = len(leader.compactions), len(leader.decisions)
        await cluster.settle(5.0)
        assert len(leader.compactions) == made, "no busy work: nothing can go"
        per_tick = (len(leader.decisions) - asked) / (5.0 / TICK_S)
        assert 1.0 <= per_tick <= 3.0, f"no busy work: a tick and two heartbeats' answers are three turns at most, not {per_tick}"


@virtual
async def test_many_inputs_of_one_turn_are_weighed_once() -> None:
    async with cluster_of(3) as cluster:
        leader = await behind(cluster, 200)
        asked, turn = len(leader.decisions), virtual_loop().turns
        answer = Message(type=MessageType.HEARTBEAT_RESP, to=ONE, from_=TWO, term=leader.driver.term)
        for _ in range(50):
            leader.driver.step(answer, Index(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(leader.decisions) - asked <= virtual_loop().turns - turn <= 3, "once per turn: whatever came in"


@virtual
async def test_a_burst_is_compacted_at_most_once_for_each_commit_of_the_store() -> None:
    async with cluster_of(1) as cluster:
        leader = await cluster.lead(1)
        for _ in range(100):
            leader.write(30)
            await cluster.settle(0.01)
        await cluster.settle()
        assert leader.driver.applied_index >= 3000
        assert is_slack(leader), "nothing is held for nobody"
        assert len(leader.compactions) <= 1.0 / COMMIT_S + 2, "no busy work: only what became safe can go"


@virtual
async def test_slow_writes_are_compacted_by_the_slack_and_not_one_by_one() -> None:
    async with cluster_of(1) as cluster:
        leader = await cluster.lead(1)
        for _ in range(60):
            leader.write(5)
            await cluster.settle(2 * COMMIT_S)
        assert leader.durable_index > 300
        assert len(leader.compactions) == 3, "no busy work: less than the slack is left alone"


@virtual
async def test_beyond_the_caps_even_less_than_the_slack_goes_with_the_next_tick() -> None:
    async with cluster_of(1, limits=WindowLimits(max_entries=50, max_bytes=1 << 30)) as cluster:
        leader = await cluster.lead(1)
        leader.write(40)
        await cluster.settle()
        assert leader.floor == 0, "no busy work: less than the slack is left alone"
        leader.holds_commits = True
        leader.write(30)
        await cluster.settle(2 * TICK_S)
        assert leader.window.entry_count <= 50, "a deadline passed: the caps are kept at every tick"


@pytest.mark.parametrize("where", ["compact", "first_index"])
def test_a_failing_compaction_is_fatal(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether deciding fails or dropping: the member ends, with the error, and does nothing any more."""

    async def scenario() -> None:
        async with cluster_of(1) as cluster:
            leader = await cluster.lead(1)
            leader.holds_commits = True
            leader.write(150)
            await cluster.settle()

            def broken(self: LogWindow, *_: Any) -> int:
                raise RuntimeError("broken window")

            monkeypatch.setattr(LogWindow, where, broken)
            leader.commit()
            await asyncio.sleep(1.0)
            assert [str(error) for error in leader.fatal] == ["broken window"], "a failing compaction is fatal: once"
            applied = len(leader.applied)
            leader.write(1)
            await asyncio.sleep(1.0)
            assert len(leader.applied) == applied, "a failing compaction is fatal: nothing follows"
            assert len(leader.fatal) == 1

    run(scenario)
