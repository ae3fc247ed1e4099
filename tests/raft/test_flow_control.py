"""How fast a leader sends: probing, the inflights window, and what heartbeats let through."""

from __future__ import annotations

import pytest

from raft import ConfChange, ConfChangeType
from raft.inflights import Inflights
from raft.progress import Progress, ProgressState
from raft.types import Index, NodeId
from tests.raft.kit import Member, T, leader, of_kind


def replicating(**options: object) -> Member:
    """Leader of (1 2) that replicates to 2, which holds everything."""
    found = leader([1, 2], **options)
    found.step(T.APP_RESP, 2, index=Index(1))
    return found


def test_probe_sends_one_message_and_then_waits() -> None:
    found = leader([1, 2])
    for _ in range(3):
        assert of_kind(found.propose(), T.APP) == []
    assert len(of_kind(found.step(T.HEARTBEAT_RESP, 2), T.APP)) == 1
    assert of_kind(found.propose(), T.APP) == []


def test_replicate_sends_without_waiting_until_the_window_is_full() -> None:
    found = replicating(max_inflight_msgs=3)
    assert [len(of_kind(found.propose(), T.APP)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert str(found.progress(2)).endswith("paused inflight=3[full]")


def test_acknowledgement_of_one_message_makes_room_for_those_up_to_it() -> None:
    found = replicating(max_inflight_msgs=3)
    for _ in range(8):
        found.propose()
    sent = of_kind(found.step(T.APP_RESP, 2, index=Index(3)), T.APP)
    assert [[each.index for each in message.entries] for message in sent] == [[5, 6, 7, 8, 9]]
    assert len(found.progress(2).inflights) == 2
    assert of_kind(found.step(T.APP_RESP, 2, index=Index(3)), T.APP) == []


def test_full_window_lets_one_empty_message_through_per_heartbeat_response() -> None:
    found = replicating(max_inflight_msgs=2)
    for _ in range(3):
        found.propose()
    for _ in range(3):
        (message,) = of_kind(found.step(T.HEARTBEAT_RESP, 2), T.APP)
        assert list(message.entries) == []
        assert of_kind(found.propose(), T.APP) == []


def test_window_is_bounded_by_bytes_too() -> None:
    found = replicating(max_inflight_msgs=100, max_inflight_bytes=100, max_size_per_msg_bytes=100)
    assert [len(of_kind(found.propose(b"x" * 40), T.APP)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert found.progress(2).inflights.size_bytes == 120


def test_lost_window_is_resolved_by_the_rejection_of_an_empty_message() -> None:
    found = replicating(max_inflight_msgs=2)
    for _ in range(4):
        found.propose()
    (empty,) = of_kind(found.step(T.HEARTBEAT_RESP, 2), T.APP)
    (again,) = of_kind(found.step(T.APP_RESP, 2, index=empty.index, reject=True, reject_hint=Index(1), log_term=1), T.APP)
    assert [each.index for each in again.entries] == [2, 3, 4, 5]


def test_learner_is_sent_to_like_a_voter() -> None:
    found = leader([1], max_inflight_msgs=1)
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.ADD_LEARNER_NODE, node_id=NodeId(2)))
    found.drain()
    found.step(T.APP_RESP, 2, index=Index(1))
    assert len(of_kind(found.propose(), T.APP)) == 1
    assert of_kind(found.propose(), T.APP) == []


def test_messages_to_a_caught_up_member_carry_nothing_twice() -> None:
    found = replicating()
    seen: list[int] = []
    for _ in range(5):
        seen.extend(each.index for message in of_kind(found.propose(), T.APP) for each in message.entries)
    assert seen == [2, 3, 4, 5, 6]


# --- the progress itself -------------------------------------------------------------------------


def progress(state: ProgressState, match: int, next_: int, pending: int = 0) -> Progress:
    """A progress in a state."""
    found = Progress(next_index=Index(next_), inflights=Inflights(256, 1 << 40), match_index=Index(match))
    found.state, found.pending_snapshot = state, Index(pending)
    return found


@pytest.mark.parametrize(
    ("state", "paused", "expected"),
    [
        (ProgressState.PROBE, False, False),
        (ProgressState.PROBE, True, True),
        (ProgressState.REPLICATE, False, False),
        (ProgressState.REPLICATE, True, True),
        (ProgressState.SNAPSHOT, False, True),
        (ProgressState.SNAPSHOT, True, True),
    ],
)
def test_what_pauses_a_member(state: ProgressState, paused: bool, expected: bool) -> None:
    found = progress(state, 0, 1)
    found.is_flow_paused = paused
    assert found.is_paused is expected


@pytest.mark.parametrize(
    ("state", "next_", "pending", "expected"),
    [(ProgressState.REPLICATE, 5, 0, 2), (ProgressState.SNAPSHOT, 5, 10, 11), (ProgressState.SNAPSHOT, 5, 0, 2)],
)
def test_probe_begins_behind_the_match_or_a_pending_snapshot(state: ProgressState, next_: int, pending: int, expected: int) -> None:
    found = progress(state, 1, next_, pending)
    found.become_probe()
    assert (found.state, found.match_index, found.next_index, found.pending_snapshot) == (ProgressState.PROBE, 1, expected, 0)


@pytest.mark.parametrize(("index", "match", "next_", "is_news"), [(2, 3, 5, False), (3, 3, 5, False), (4, 4, 5, True), (5, 5, 6, True)])
def test_acknowledgement_moves_match_and_next_forward_only(index: int, match: int, next_: int, is_news: bool) -> None:
    found = progress(ProgressState.PROBE, 3, 5)
    found.is_flow_paused = True
    assert found.maybe_update(Index(index)) is is_news
    assert (found.match_index, found.next_index, found.is_flow_paused) == (match, next_, not is_news)


REPLICATE, PROBE = ProgressState.REPLICATE, ProgressState.PROBE


@pytest.mark.parametrize(
    ("state", "match", "next_", "rejected", "hint", "accepted", "new_next"),
    [
        (REPLICATE, 5, 10, 5, 5, False, 10),
        (REPLICATE, 5, 10, 4, 4, False, 10),
        (REPLICATE, 5, 10, 9, 9, True, 6),
        (PROBE, 0, 0, 0, 0, False, 0),
        (PROBE, 0, 10, 5, 5, False, 10),
        (PROBE, 0, 10, 9, 9, True, 9),
        (PROBE, 0, 2, 1, 1, True, 1),
        (PROBE, 0, 1, 0, 0, True, 1),
        (PROBE, 0, 10, 9, 2, True, 3),
        (PROBE, 0, 10, 9, 0, True, 1),
        (PROBE, 4, 10, 9, 1, True, 5),
    ],
)
def test_rejection_moves_next_back_unless_it_is_stale(
    state: ProgressState, match: int, next_: int, rejected: int, hint: int, accepted: bool, new_next: int
) -> None:
    found = progress(state, match, next_)
    assert found.maybe_decrease(Index(rejected), Index(hint)) is accepted
    assert (found.match_index, found.next_index) == (match, new_next)


def test_commit_is_worth_a_message_only_if_it_is_news_that_can_be_used() -> None:
    found = progress(REPLICATE, 5, 10)
    found.note_sent_commit(Index(7))
    assert not found.can_bump_commit(Index(7))
    assert found.can_bump_commit(Index(8))
    found.note_sent_commit(Index(9))
    assert not found.can_bump_commit(Index(20))
    assert found.maybe_decrease(Index(9), Index(0))
    assert found.can_bump_commit(Index(9)) is False
    assert found.sent_commit == 5


def test_copy_is_independent() -> None:
    found = progress(REPLICATE, 5, 6)
    found.note_sent_entries(2, 100)
    copied = found.copy()
    found.become_probe()
    assert str(copied) == "StateReplicate match=5 next=8 inactive inflight=1"
