"""Configuration changes: the arithmetic against a model, and what a core does with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import (
    ConfChange,
    ConfChangeError,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    InvalidMessageError,
    Message,
    ProposalDroppedError,
    StateType,
    decode_conf_change,
    encode_conf_change,
)
from raft.confchange import apply_change, check_invariants, enter_joint, leave_joint, restore, simple
from raft.describe import parse_changes
from raft.tracker import Tracker
from raft.types import ConfState, Entry, EntryType, Index, NodeId, Term
from tests.raft.kit import Member, Network, T, conf_state, kinds, leader, member, network, of_kind, storage_with

singles = st.builds(ConfChangeSingle, type=st.sampled_from(ConfChangeType), node_id=st.integers(0, 6).map(NodeId))
single_lists = st.lists(singles, min_size=1, max_size=6)


def tracker_of(state: ConfState) -> Tracker:
    """A tracker with a configuration."""
    tracker = Tracker(10, 1 << 40)
    restore(tracker, Index(5), state)
    return tracker


class Model:
    """A configuration as roles: what a change does to one node, in the plainest words."""

    def __init__(self, voters: set[int]) -> None:
        self.voters = set(voters)
        self.outgoing: set[int] = set()
        self.learners: set[int] = set()
        self.next: set[int] = set()

    def apply(self, change: ConfChangeSingle) -> None:
        """Change one node."""
        node = int(change.node_id)
        if node == 0 or change.type is ConfChangeType.UPDATE_NODE:
            return
        is_learner = node in self.learners
        adds_learner = change.type is ConfChangeType.ADD_LEARNER_NODE
        for group in (self.voters, self.next) if adds_learner else (self.voters, self.learners, self.next):
            group.discard(node)
        if change.type is ConfChangeType.ADD_NODE:
            self.voters.add(node)
        elif adds_learner and not is_learner:
            (self.next if node in self.outgoing else self.learners).add(node)

    def leave(self) -> None:
        """Drop the outgoing half."""
        self.learners |= self.next
        self.outgoing, self.next = set(), set()

    def state(self, auto_leave: bool = False) -> ConfState:
        """As it is stored."""
        ids = [tuple(map(NodeId, sorted(group))) for group in (self.voters, self.outgoing, self.learners, self.next)]
        return ConfState(voters=ids[0], voters_outgoing=ids[1], learners=ids[2], learners_next=ids[3], auto_leave=auto_leave)


@given(st.sets(st.integers(1, 5), min_size=1), st.lists(st.tuples(st.sampled_from(["simple", "enter", "leave"]), single_lists), max_size=8))
def test_changes_equal_the_model_and_keep_the_invariants(voters: set[int], steps: list[tuple[str, list[ConfChangeSingle]]]) -> None:
    tracker, model = tracker_of(conf_state(sorted(voters))), Model(voters)
    for action, changes in steps:
        before = tracker.config
        trial = Model(model.voters)
        trial.outgoing, trial.learners, trial.next = set(model.outgoing), set(model.learners), set(model.next)
        if action == "leave":
            legal = bool(trial.outgoing)
            trial.leave()
        else:
            legal = not trial.outgoing
            trial.outgoing = set(trial.voters) if action == "enter" else set()
            for change in changes:
                trial.apply(change)
            legal = legal and bool(trial.voters) and (action == "enter" or len(trial.voters ^ model.voters) <= 1)
        try:
            if action == "leave":
                result = leave_joint(tracker, Index(5))
            elif action == "enter":
                result = enter_joint(tracker, Index(5), changes, auto_leave=False)
            else:
                result = simple(tracker, Index(5), changes)
        except ConfChangeError:
            assert not legal
            assert tracker.config == before
            continue
        assert legal
        tracker.install(*result)
        model = trial
        check_invariants(tracker.config, tracker.progress)
        assert tracker.config.conf_state() == model.state()
        restored = Tracker(10, 1 << 40)
        restore(restored, Index(5), tracker.config.conf_state())
        assert restored.config == tracker.config


ids = st.frozensets(st.integers(1, 9).map(NodeId), min_size=1, max_size=5)


@given(ids, ids, ids, ids, st.booleans())
def test_restoring_a_stored_configuration_gives_it_back(
    voters: frozenset[NodeId], outgoing: frozenset[NodeId], learners: frozenset[NodeId], demoted: frozenset[NodeId], auto_leave: bool
) -> None:
    state = ConfState(
        voters=tuple(sorted(voters)),
        voters_outgoing=tuple(sorted(outgoing)),
        learners=tuple(sorted(learners - voters - outgoing)),
        learners_next=tuple(sorted((demoted & outgoing) - voters)),
        auto_leave=auto_leave,
    )
    tracker = Tracker(10, 1 << 40)
    restore(tracker, Index(7), state)
    assert tracker.config.conf_state() == state
    plain = ConfState(voters=state.voters, learners=tuple(sorted(learners - voters)))
    tracker = Tracker(10, 1 << 40)
    restore(tracker, Index(7), plain)
    assert tracker.config.conf_state() == plain


@pytest.mark.parametrize(
    "state",
    [
        ConfState(voters=(NodeId(1),), learners=(NodeId(1),)),
        ConfState(voters=(), learners=(NodeId(1),)),
        ConfState(voters=(NodeId(1),), learners_next=(NodeId(2),)),
        ConfState(voters=(NodeId(1),), auto_leave=True),
        ConfState(voters=(NodeId(1),), voters_outgoing=(NodeId(1),), learners_next=(NodeId(3),)),
    ],
)
def test_configuration_that_no_changes_lead_to_is_refused(state: ConfState) -> None:
    with pytest.raises(ConfChangeError):
        restore(Tracker(10, 1 << 40), Index(5), state)


def test_new_member_is_probed_at_the_last_index_and_counts_as_active() -> None:
    tracker = tracker_of(conf_state([1]))
    _, progress = simple(tracker, Index(9), parse_changes("v2"))
    assert str(progress[NodeId(2)]) == "StateProbe match=0 next=9"


def test_failed_change_leaves_the_tracker_alone() -> None:
    tracker = tracker_of(conf_state([1, 2], [3]))
    with pytest.raises(ConfChangeError):
        simple(tracker, Index(9), parse_changes("v3 l2 l1"))
    check_invariants(tracker.config, tracker.progress)
    assert tracker.config.conf_state() == conf_state([1, 2], [3])


@pytest.mark.parametrize(
    ("transition", "changes", "joint", "auto_leave"),
    [
        (ConfChangeTransition.AUTO, "v2", False, False),
        (ConfChangeTransition.AUTO, "v2 l3", True, True),
        (ConfChangeTransition.JOINT_IMPLICIT, "v2", True, True),
        (ConfChangeTransition.JOINT_EXPLICIT, "v2", True, False),
    ],
)
def test_transition_decides_whether_and_how_a_joint_configuration_is_used(
    transition: ConfChangeTransition, changes: str, joint: bool, auto_leave: bool
) -> None:
    config, _ = apply_change(tracker_of(conf_state([1])), Index(1), ConfChangeV2(transition=transition, changes=parse_changes(changes)))
    assert (config.is_joint, config.auto_leave) == (joint, auto_leave)


# --- in the core ---------------------------------------------------------------------------------


def add(node: int) -> ConfChange:
    """A change that adds a voter."""
    return ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(node))


def test_one_change_at_a_time_the_next_becomes_an_empty_entry() -> None:
    found = leader()
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose_conf_change(add(4))
    found.raw.propose_conf_change(add(5))
    found.drain()
    found.step(T.APP_RESP, 2, index=Index(3))
    assert [(each.type, bool(each.data)) for each in found.applied[1:]] == [(EntryType.CONF_CHANGE, True), (EntryType.NORMAL, False)]
    assert found.log.has("possible unapplied conf change at index 2 (applied to 1)")


def test_new_leader_waits_until_everything_it_found_is_applied() -> None:
    found = leader()
    found.raw.propose_conf_change(add(4))
    found.drain()
    assert found.log.has("possible unapplied conf change") is False
    found = member(1, terms=[1, 1])
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 2)
    found.raw.propose_conf_change(add(4))
    assert found.log.has("possible unapplied conf change at index 2 (applied to 0)")


def test_change_takes_effect_when_it_is_applied() -> None:
    found = leader()
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose_conf_change(add(4))
    found.drain()
    assert 4 not in found.raw.tracker_config.voters
    found.step(T.APP_RESP, 2, index=Index(2))
    assert 4 in found.raw.tracker_config.voters


def test_two_changes_in_one_proposal_only_the_first_passes() -> None:
    found = leader([1])
    entries = []
    for node in (2, 3):
        kind, data = encode_conf_change(add(node))
        entries.append(Entry(term=Term(0), index=Index(0), type=kind, data=data))
    found.raw.step(Message(type=T.PROP, from_=NodeId(1), to=NodeId(1), entries=entries))
    assert [each.type for each in found.raw.ready().entries[-2:]] == [EntryType.CONF_CHANGE, EntryType.NORMAL]


def grown(net: Network, node: int) -> Member:
    """A member with nothing, added to the network."""
    found = Member(node, storage_with(conf_state([])), **net[1].options)
    net.members[node] = found
    return found


def test_members_are_added_and_removed_one_by_one() -> None:
    net = network(3)
    net.campaign(1)
    net.propose(1, b"a")
    new = grown(net, 4)
    net[1].raw.propose_conf_change(add(4))
    net.settle()
    net.tick(1, 2)
    assert [each.metadata.index for each in new.snapshots] == [3]
    net[1].raw.propose_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(2)))
    net.settle()
    net.propose(1, b"b")
    assert net[4].raw.tracker_config.conf_state() == conf_state([1, 3, 4])
    assert [net[node].applied_data for node in (1, 3, 4)] == [[b"a", b"b"], [b"a", b"b"], [b"b"]]


def test_learner_gets_entries_and_is_promoted() -> None:
    net = network(3)
    net.campaign(1)
    new = grown(net, 4)
    net[1].raw.propose_conf_change(ConfChange(type=ConfChangeType.ADD_LEARNER_NODE, node_id=NodeId(4)))
    net.settle()
    net.propose(1, b"a")
    net.tick(1, 2)
    assert (new.applied_data, new.raw.tracker_config.conf_state()) == ([b"a"], conf_state([1, 2, 3], [4]))
    net[1].raw.propose_conf_change(add(4))
    net.settle()
    net.campaign(4)
    assert net.leaders == [4]


def test_learner_does_not_count_for_commitment() -> None:
    net = network(3, learners=[4])
    net.campaign(1)
    net.isolate(2)
    net.isolate(3)
    net.propose(1, b"a")
    assert net[1].applied_data == []


def test_joint_configuration_commits_by_both_halves_and_is_left_automatically() -> None:
    net = network(3)
    net.campaign(1)
    for node in (4, 5):
        grown(net, node)
    net[1].raw.propose_conf_change(ConfChangeV2(changes=parse_changes("r2 r3 v4 v5")))
    net.settle()
    net.tick(1, 3)
    assert net[1].raw.tracker_config.conf_state() == conf_state([1, 4, 5])
    net.propose(1, b"a")
    assert net[4].applied_data == net[5].applied_data == [b"a"]


def test_joint_configuration_cut_off_from_one_half_commits_nothing() -> None:
    net = network(3)
    net.campaign(1)
    for node in (4, 5):
        grown(net, node)
    change = ConfChangeV2(transition=ConfChangeTransition.JOINT_EXPLICIT, changes=parse_changes("r2 r3 v4 v5"))
    net[1].raw.propose_conf_change(change)
    net.settle()
    assert net[1].raw.tracker_config.is_joint
    for away in ((2, 3), (4, 5)):
        net.heal()
        net.tick(1, 2)
        for node in away:
            net.isolate(node)
        commit = net[1].raw.commit_index
        net.propose(1, b"x")
        net.tick(1, 2)
        assert net[1].raw.commit_index == commit
    net.heal()
    net.tick(1, 2)
    net[1].raw.propose_conf_change(ConfChangeV2())
    net.settle()
    assert net[1].raw.tracker_config.conf_state() == conf_state([1, 4, 5])


def test_new_leader_leaves_the_joint_configuration_of_its_predecessor() -> None:
    net = network(5)
    net.campaign(1)
    net.on_message = lambda message: not any(entry.type is EntryType.CONF_CHANGE_V2 and not entry.data for entry in message.entries)
    net[1].raw.propose_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_IMPLICIT, changes=parse_changes("l3")))
    net.settle()
    assert net[2].raw.tracker_config.is_joint
    net.heal()
    net.isolate(1)
    net.campaign(2)
    net.settle()
    assert net[2].raw.tracker_config.conf_state() == conf_state([1, 2, 4, 5], [3])


def test_automatic_leave_waits_for_a_transfer_to_end() -> None:
    found = leader([1, 2])
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_IMPLICIT, changes=parse_changes("l3")))
    found.drain()
    found.raw.transfer_leader(NodeId(2))
    found.step(T.APP_RESP, 2, index=Index(2))
    assert found.raw.tracker_config.is_joint
    assert found.log.has("not initiating automatic transition out of joint configuration")
    found.tick(10)
    found.propose()
    found.step(T.APP_RESP, 2, index=Index(3))
    assert found.log.has("initiating automatic transition out of joint configuration")


def test_joint_configuration_is_left_once_however_many_entries_are_applied_meanwhile() -> None:
    found = leader([1, 2])
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_IMPLICIT, changes=parse_changes("l3")))
    found.propose(b"a")
    found.propose(b"b")
    found.step(T.APP_RESP, 2, index=Index(2))
    assert found.raw.last_index == 5
    found.step(T.APP_RESP, 2, index=Index(4))
    assert (found.applied_data, found.raw.last_index) == ([b"a", b"b"], 5)
    found.step(T.APP_RESP, 2, index=Index(5))
    assert (found.raw.tracker_config.conf_state(), found.raw.last_index) == (conf_state([1, 2], [3]), 5)


def test_removed_leader_leads_on_uncounted_and_takes_no_proposals() -> None:
    net = network(3)
    net.campaign(1)
    net[1].raw.propose_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(1)))
    net.settle()
    assert net[1].raw.is_leader
    with pytest.raises(ProposalDroppedError):
        net[1].raw.propose(b"x")


def test_removed_leaders_acknowledgement_to_itself_is_ignored() -> None:
    found = member(1, [1, 2], async_storage_writes=True)
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(1)))
    found.raw.step(Message(type=T.APP_RESP, from_=NodeId(1), to=NodeId(1), term=Term(1), index=Index(1)))
    assert not found.raw.has_ready()


def test_removed_leader_steps_down_if_so_configured() -> None:
    for change in ("r1", "l1"):
        net = network(3, step_down_on_removal=True)
        net.campaign(1)
        net[1].raw.propose_conf_change(ConfChangeV2(changes=parse_changes(change)))
        net.settle()
        assert (net[1].raw.state, net[1].raw.leader_id) == (StateType.FOLLOWER, 0)
        net.campaign(2)
        assert net.leaders == [2]


def test_removed_leader_needs_the_remaining_members_to_commit() -> None:
    found = leader([1, 2])
    found.step(T.APP_RESP, 2, index=Index(1))
    found.propose(b"before")
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(1)))
    assert found.raw.commit_index == 1
    found.step(T.APP_RESP, 2, index=Index(2))
    assert found.raw.commit_index == 2


def test_removal_of_the_missing_voter_commits_what_waited_for_it() -> None:
    found = leader([1, 2])
    found.propose(b"a")
    assert found.raw.commit_index == 0
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(2)))
    found.drain()
    assert found.applied_data == [b"a"]


def test_added_member_is_probed_at_once() -> None:
    found = leader([1])
    found.propose()
    found.raw.apply_conf_change(add(2))
    assert kinds(found.drain()) == [T.APP]


def test_change_that_did_not_get_into_the_log_blocks_no_other() -> None:
    found = leader([1, 2], max_uncommitted_size_bytes=20)
    found.step(T.APP_RESP, 2, index=Index(1))
    found.propose(b"x" * 18)
    with pytest.raises(ProposalDroppedError):
        found.raw.propose_conf_change(add(4))
    found.step(T.APP_RESP, 2, index=Index(2))
    found.raw.propose_conf_change(add(4))
    assert [each.type for each in found.raw.ready().entries] == [EntryType.CONF_CHANGE]


def test_validation_can_be_switched_off() -> None:
    found = leader(disable_conf_change_validation=True)
    found.raw.propose_conf_change(add(4))
    found.raw.propose_conf_change(add(5))
    assert [each.type for each in found.raw.ready().entries[-2:]] == [EntryType.CONF_CHANGE] * 2


def test_change_that_the_configuration_forbids_raises_when_applied() -> None:
    found = leader()
    with pytest.raises(ConfChangeError):
        found.raw.apply_conf_change(ConfChangeV2())
    assert found.raw.apply_conf_change(ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(0))) == conf_state([1, 2, 3])


def test_unreadable_change_is_refused() -> None:
    found = leader()
    broken = Entry(term=Term(0), index=Index(0), type=EntryType.CONF_CHANGE, data=b"\xff")
    with pytest.raises(InvalidMessageError):
        found.raw.step(Message(type=T.PROP, from_=NodeId(2), to=NodeId(1), entries=[broken]))


def test_empty_change_travels_as_data() -> None:
    found = leader([1])
    found.raw.apply_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_EXPLICIT, changes=parse_changes("l2")))
    found.raw.propose_conf_change(ConfChangeV2())
    proposed = found.raw.ready().entries[-1]
    assert decode_conf_change(proposed.type, proposed.data) == ConfChangeV2()


def test_votes_need_both_halves_while_joint() -> None:
    found = member(1)
    found.raw.apply_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_EXPLICIT, changes=parse_changes("r2 r3 v4 v5")))
    found.raw.campaign()
    assert {int(each.to) for each in of_kind(found.drain(), T.VOTE)} == {2, 3, 4, 5}
    found.step(T.VOTE_RESP, 4)
    assert not found.raw.is_leader
    found.step(T.VOTE_RESP, 2)
    assert found.raw.is_leader
