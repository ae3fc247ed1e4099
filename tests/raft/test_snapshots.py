"""Snapshots: when a leader sends them, what they do to replication, and when a member takes them."""

from __future__ import annotations

import pytest

from raft import InvalidMessageError, MemoryStorage, Message, SnapshotTemporarilyUnavailableError, StateType
from raft.types import ConfState, Index, NodeId, Snapshot, Term
from tests.raft.kit import Member, T, conf_state, kinds, leader, member, network, of_kind, snapshot_at, storage_with


class SlowStorage(MemoryStorage):
    """A storage whose snapshot is not ready yet."""

    is_ready = False

    def snapshot(self) -> Snapshot:
        """Nothing yet, or the real one."""
        if not self.is_ready:
            raise SnapshotTemporarilyUnavailableError
        return super().snapshot()


def snapshotting_leader() -> Member:
    """Leader of (1 2) whose log begins behind 11 and whose follower needs a snapshot."""
    storage = storage_with(conf_state([1, 2]), start=11)
    found = Member(1, storage)
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 2)
    found.step(T.HEARTBEAT_RESP, 2)
    sent = found.step(T.APP_RESP, 2, index=Index(11), reject=True, reject_hint=Index(0))
    assert kinds(sent) == [T.SNAP]
    assert str(found.progress(2)) == "StateSnapshot match=0 next=12 paused pendingSnap=11"
    return found


def test_member_behind_the_log_gets_a_snapshot_and_then_nothing() -> None:
    found = snapshotting_leader()
    found.propose(b"a")
    assert of_kind(found.step(T.HEARTBEAT_RESP, 2), T.APP) == []


def test_failed_snapshot_is_tried_again_after_a_heartbeat_response() -> None:
    found = snapshotting_leader()
    found.raw.report_snapshot(NodeId(2), False)
    assert str(found.progress(2)) == "StateProbe match=0 next=1 paused"
    assert kinds(found.step(T.HEARTBEAT_RESP, 2)) == [T.SNAP]


def test_delivered_snapshot_is_followed_by_a_probe_behind_it() -> None:
    found = snapshotting_leader()
    found.raw.report_snapshot(NodeId(2), True)
    assert str(found.progress(2)) == "StateProbe match=0 next=12 paused"
    found.step(T.APP_RESP, 2, index=Index(11))
    assert found.progress(2).state.value == "StateReplicate"


def test_any_acknowledgement_that_reaches_the_log_ends_the_snapshot_state() -> None:
    found = snapshotting_leader()
    found.propose(b"a")
    (message,) = found.step(T.APP_RESP, 2, index=Index(11))
    assert (message.type, len(message.entries)) == (T.APP, 2)
    assert found.progress(2).state.value == "StateReplicate"


def test_acknowledgement_below_the_log_leaves_the_snapshot_under_way() -> None:
    found = snapshotting_leader()
    assert found.step(T.APP_RESP, 2, index=Index(5)) == []
    assert str(found.progress(2)) == "StateSnapshot match=5 next=12 paused pendingSnap=11"


def test_no_snapshot_for_a_member_that_was_not_heard_from() -> None:
    found = leader(check_quorum=True)
    for node in (2, 3):
        found.step(T.APP_RESP, node, index=Index(1))
    for _ in range(2):
        found.tick(10)
        found.step(T.HEARTBEAT_RESP, 3)
    found.propose(b"a")
    found.step(T.APP_RESP, 3, index=Index(2))
    found.storage.create_snapshot(Index(2), conf_state([1, 2, 3]), b"")
    found.storage.compact(Index(2))
    found.raw.report_unreachable(NodeId(2))
    assert str(found.progress(2)) == "StateProbe match=1 next=2 inactive"
    assert {each.to for each in found.propose(b"b")} == {3}
    assert found.log.has("ignore sending snapshot to 2 since it is not recently active")
    assert kinds(found.step(T.HEARTBEAT_RESP, 2)) == [T.SNAP]


def test_snapshot_that_is_not_ready_is_asked_for_again() -> None:
    storage = SlowStorage()
    storage.apply_snapshot(snapshot_at(11, 1, conf_state([1, 2])))
    found = Member(1, storage)
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 2)
    assert found.step(T.APP_RESP, 2, index=Index(11), reject=True, reject_hint=Index(0)) == []
    storage.is_ready = True
    assert kinds(found.step(T.HEARTBEAT_RESP, 2)) == [T.SNAP]


def test_snapshot_replaces_log_and_configuration() -> None:
    found = member(3, [1, 2, 3], terms=[1, 1])
    state = conf_state([1, 2, 3], [4])
    sent = found.step(T.SNAP, 1, term=Term(2), snapshot=snapshot_at(11, 2, state))
    assert [(each.type, each.index) for each in sent] == [(T.APP_RESP, 11)]
    assert (found.raw.commit_index, found.raw.last_index, found.raw.applied_index) == (11, 11, 11)
    assert found.raw.tracker_config.conf_state() == state
    assert [each.metadata.index for each in found.snapshots] == [11]


def test_answer_to_a_snapshot_waits_until_it_is_installed() -> None:
    found = member(1, async_storage_writes=True)
    snapshot = snapshot_at(11, 1, conf_state([1, 2, 3]))
    found.raw.step(Message(type=T.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(1), snapshot=snapshot))
    (append,) = found.raw.ready().messages
    assert (append.type, append.snapshot) == (T.STORAGE_APPEND, snapshot)
    assert kinds(append.responses) == [T.APP_RESP, T.STORAGE_APPEND_RESP]
    assert found.raw.applied_index == 0
    found.raw.step(append.responses[1])
    assert found.raw.applied_index == 11


@pytest.mark.parametrize(("index", "term"), [(1, 1), (2, 1)])
def test_snapshot_at_or_below_the_commit_index_is_ignored(index: int, term: int) -> None:
    found = member(1, terms=[1, 1, 1])
    found.step(T.HEARTBEAT, 2, commit=Index(2))
    (answer,) = found.step(T.SNAP, 2, snapshot=snapshot_at(index, term, conf_state([1, 2, 3])))
    assert (answer.index, found.raw.last_index, found.snapshots) == (2, 3, [])


def test_snapshot_of_another_history_below_the_commit_index_is_ignored() -> None:
    found = member(1, terms=[1, 1, 1])
    found.step(T.HEARTBEAT, 2, commit=Index(3))
    (answer,) = found.step(T.SNAP, 2, term=Term(3), snapshot=snapshot_at(2, 3, conf_state([1, 2, 3])))
    assert (answer.index, found.raw.commit_index, found.raw.last_index, found.snapshots) == (3, 3, 3, [])


def test_snapshot_that_the_log_contains_only_moves_the_commit_index() -> None:
    found = member(1, terms=[1, 1, 1])
    (answer,) = found.step(T.SNAP, 2, snapshot=snapshot_at(2, 1, conf_state([1, 2, 3])))
    assert (answer.index, found.raw.commit_index, found.raw.last_index, found.snapshots) == (2, 2, 3, [])
    assert found.log.has("fast-forwarded commit")


def test_snapshot_of_another_history_replaces_the_log() -> None:
    found = member(1, terms=[1, 1, 1])
    found.step(T.SNAP, 2, term=Term(3), snapshot=snapshot_at(2, 3, conf_state([1, 2, 3])))
    assert (found.raw.last_index, found.raw.commit_index) == (2, 2)


def test_snapshot_without_this_member_is_ignored() -> None:
    found = member(1)
    (answer,) = found.step(T.SNAP, 2, term=Term(1), snapshot=snapshot_at(11, 1, conf_state([2, 3, 4])))
    assert (answer.index, found.raw.last_index) == (0, 0)
    assert found.log.has("it is not in the ConfState")


@pytest.mark.parametrize(
    "state",
    [
        conf_state([2, 3], [1]),
        ConfState(voters=(NodeId(2),), voters_outgoing=(NodeId(1), NodeId(2)), auto_leave=True),
        ConfState(voters=(NodeId(2),), voters_outgoing=(NodeId(1), NodeId(2)), learners_next=(NodeId(1),)),
    ],
)
def test_snapshot_restores_learners_and_joint_configurations(state: ConfState) -> None:
    found = member(1)
    found.step(T.SNAP, 2, term=Term(1), snapshot=snapshot_at(11, 1, state))
    assert found.raw.tracker_config.conf_state() == state


def test_voter_can_become_a_learner_by_snapshot_and_then_does_not_campaign() -> None:
    found = member(1)
    found.step(T.SNAP, 2, term=Term(1), snapshot=snapshot_at(11, 1, conf_state([2, 3], [1])))
    assert found.tick(50) == []


def test_snapshot_with_an_impossible_configuration_is_refused_before_it_changes_anything() -> None:
    found = member(1, terms=[1])
    impossible = ConfState(voters=(NodeId(1), NodeId(2)), learners=(NodeId(1),))
    for snapshot in (snapshot_at(11, 1, impossible), snapshot_at(11, 9, conf_state([1, 2, 3]))):
        with pytest.raises(InvalidMessageError):
            found.step(T.SNAP, 2, snapshot=snapshot)
        assert (found.raw.last_index, found.raw.commit_index) == (1, 0)


def test_laggard_catches_up_by_snapshot_and_entries() -> None:
    net = network(3)
    net.campaign(1)
    net.isolate(3)
    for number in range(10):
        net.propose(1, b"%d" % number)
    net[1].storage.create_snapshot(Index(8), None, b"state")
    net[1].storage.compact(Index(8))
    net.heal()
    net.tick(1, 2)
    assert [each.metadata.index for each in net[3].snapshots] == [8]
    assert net[3].applied_data == [b"7", b"8", b"9"]
    assert str(net[1].progress(3)) == "StateReplicate match=11 next=12"


def test_proposals_of_a_member_with_a_snapshot_under_way_go_to_the_leader() -> None:
    found = leader([1, 2])
    assert found.raw.state is StateType.LEADER
    follower = member(2, [1, 2])
    follower.step(T.SNAP, 1, term=Term(1), snapshot=snapshot_at(5, 1, conf_state([1, 2])))
    (message,) = follower.propose(b"x")
    assert (message.type, message.to) == (T.PROP, 1)
