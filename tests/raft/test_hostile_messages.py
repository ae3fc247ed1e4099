"""Messages that no correct member sends: the core refuses them with its own errors and keeps its promises."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft import InvalidMessageError, Message, MessageType, RaftError, StepLocalMessageError, StepPeerNotFoundError
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, is_local_message
from raft.types import ConfState, Entry, EntryType, Index, NodeId, Snapshot, SnapshotMetadata, Term
from tests.raft.kit import Member, T, entry, leader, member

numbers = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1]))
terms = st.one_of(st.integers(0, 5), st.sampled_from([2**62, 2**63, 2**64 - 1]))
nodes = st.one_of(st.integers(0, 4), st.sampled_from([99, LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD]))
entries = st.lists(
    st.builds(Entry, term=terms.map(Term), index=numbers.map(Index), type=st.sampled_from(EntryType), data=st.binary(max_size=6)),
    max_size=3,
)
id_tuples = st.lists(st.integers(0, 4).map(NodeId), max_size=4).map(tuple)
snapshots = st.builds(
    Snapshot,
    metadata=st.builds(
        SnapshotMetadata,
        index=numbers.map(Index),
        term=terms.map(Term),
        conf_state=st.builds(
            ConfState, voters=id_tuples, voters_outgoing=id_tuples, learners=id_tuples, learners_next=id_tuples, auto_leave=st.booleans()
        ),
    ),
)
messages = st.builds(
    Message,
    type=st.sampled_from(MessageType),
    to=st.just(NodeId(1)),
    from_=nodes.map(NodeId),
    term=terms.map(Term),
    log_term=terms.map(Term),
    index=numbers.map(Index),
    entries=entries,
    commit=numbers.map(Index),
    vote=nodes.map(NodeId),
    snapshot=st.one_of(st.none(), snapshots),
    reject=st.booleans(),
    reject_hint=numbers.map(Index),
    context=st.binary(max_size=9),
)
steps = st.lists(st.one_of(messages, st.sampled_from(["tick", "campaign", "propose", "transfer", "unreachable", "read"])), max_size=12)


def carry_out(found: Member) -> None:
    """Do what the member asks for, as its driver would; a configuration change that was forged is skipped."""
    for _ in range(50):
        if not found.raw.has_ready():
            return
        ready = found.raw.ready()
        if ready.snapshot is not None:
            found.storage.apply_snapshot(ready.snapshot)
        found.storage.append(ready.entries)
        found.raw.advance()


def act(found: Member, step: Any) -> None:
    """One step of a sequence."""
    if isinstance(step, Message):
        found.raw.step(step)
    elif step == "tick":
        found.tick(7)
    elif step == "campaign":
        found.raw.campaign()
    elif step == "propose":
        found.raw.propose(b"x")
    elif step == "transfer":
        found.raw.transfer_leader(NodeId(2))
    elif step == "unreachable":
        found.raw.report_unreachable(NodeId(1))
    else:
        found.raw.read_index(b"r")


@settings(max_examples=400)
@given(st.sampled_from(["follower", "candidate", "leader"]), st.booleans(), steps)
def test_nothing_but_the_cores_own_errors_comes_out(role: str, flags: bool, sequence: list[Any]) -> None:
    options: dict[str, Any] = {"check_quorum": flags, "pre_vote": flags}
    found = leader([1, 2, 3]) if role == "leader" else member(1, [1, 2, 3], terms=[1, 1], **options)
    if role == "candidate":
        found.raw.campaign()
        carry_out(found)
    for step in sequence:
        term, commit = found.raw.term, found.raw.commit_index
        with suppress(RaftError):
            act(found, step)
        assert found.raw.term >= term
        assert found.raw.commit_index >= commit
        assert found.raw.commit_index <= found.raw.last_index
        carry_out(found)


@pytest.mark.parametrize("kind", [kind for kind in MessageType if is_local_message(kind)])
def test_local_types_are_not_for_the_network(kind: MessageType) -> None:
    with pytest.raises(StepLocalMessageError):
        member(1).raw.step(Message(type=kind, from_=NodeId(2), to=NodeId(1), term=Term(1)))


def test_responses_of_strangers_are_refused() -> None:
    for kind in (T.APP_RESP, T.VOTE_RESP, T.HEARTBEAT_RESP, T.PRE_VOTE_RESP, T.READ_INDEX_RESP):
        with pytest.raises(StepPeerNotFoundError):
            member(1).raw.step(Message(type=kind, from_=NodeId(9), to=NodeId(1), term=Term(1)))


def test_message_without_term_is_refused() -> None:
    found = member(1, terms=[3])
    for kind in (T.APP, T.HEARTBEAT, T.SNAP, T.VOTE, T.TIMEOUT_NOW):
        with pytest.raises(InvalidMessageError):
            found.raw.step(Message(type=kind, from_=NodeId(2), to=NodeId(1)))
    assert found.raw.term == 3


def test_acknowledgement_beyond_the_log_does_not_commit() -> None:
    found = leader()
    with pytest.raises(InvalidMessageError):
        found.step(T.APP_RESP, 2, index=Index(1_000))
    assert (found.raw.commit_index, found.progress(2).match_index) == (0, 0)


def test_commit_index_beyond_the_log_is_refused() -> None:
    found = member(1, terms=[1])
    with pytest.raises(InvalidMessageError):
        found.step(T.HEARTBEAT, 2, commit=Index(5))
    assert found.raw.commit_index == 0


def test_committed_entry_is_never_replaced() -> None:
    found = member(1, terms=[1, 1])
    found.step(T.HEARTBEAT, 2, commit=Index(2))
    with pytest.raises(InvalidMessageError):
        found.raw.step(
            Message(
                type=T.SNAP,
                from_=NodeId(3),
                to=NodeId(1),
                term=Term(2),
                snapshot=Snapshot(metadata=SnapshotMetadata(index=Index(9), term=Term(9), conf_state=ConfState(voters=(NodeId(1),)))),
            )
        )
    (answer,) = found.step(T.APP, 3, term=Term(2), index=Index(1), log_term=Term(1), entries=[entry(2, 2)])
    assert answer.index == 2
    assert found.log_terms == [1, 1]
