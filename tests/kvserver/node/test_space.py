"""What a member short of disk space does: the pure decisions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.node.space import (
    HAND_OVER_PAUSE_S,
    SETTLED_BYTES,
    Disks,
    Refusal,
    Shortage,
    Space,
    SpaceEvent,
    advance,
    grows,
    has_settled,
    is_refused,
    refusal,
    refused_proposal,
    shortages,
    should_hand_over,
    split_forwarded,
    store_needs,
)
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId
from raft.types import Entry, EntryType, Index, Term

PUT = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))
DELETE = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"k"))
NESTED = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(failure=[PUT]))
EVENTS = st.lists(st.sampled_from(SpaceEvent), max_size=30)
ID = ProposalId(NodeId(1), 2, 3)


def after(events: list[SpaceEvent]) -> Space:
    space = Space()
    for event in events:
        space = advance(space, event)
    return space


@given(EVENTS, st.booleans())
def test_nothing_is_refused_exactly_while_nothing_is_wanting(events: list[SpaceEvent], buffer_full: bool) -> None:
    space = after(events)
    assert (refusal(space, buffer_full=buffer_full) is Refusal.NOTHING) is not space.is_short


@given(EVENTS)
def test_everything_is_right_again_when_every_part_has_said_so(events: list[SpaceEvent]) -> None:
    ends = [SpaceEvent.STORE_FREE, SpaceEvent.APPEND_SAVED, SpaceEvent.SPARE_MADE]
    assert after(events + ends) == Space()


@given(EVENTS, st.sampled_from(SpaceEvent))
def test_what_is_known_already_changes_nothing(events: list[SpaceEvent], event: SpaceEvent) -> None:
    once = advance(after(events), event)
    assert advance(once, event) == once


@given(EVENTS)
def test_a_held_append_has_no_spare_and_refuses_everything(events: list[SpaceEvent]) -> None:
    space = advance(after(events), SpaceEvent.APPEND_HELD)
    assert space.spare_missing
    assert refusal(space, buffer_full=False) is Refusal.EVERYTHING


@pytest.mark.parametrize(
    ("space", "buffer_full", "expected"),
    [
        (Space(), True, Refusal.NOTHING),  # backpressure of a slow disk is none of this
        (Space(store_full=True), False, Refusal.GROWTH),
        (Space(store_full=True), True, Refusal.EVERYTHING),
        (Space(spare_missing=True), True, Refusal.GROWTH),
        (Space(spare_missing=True, append_held=True), False, Refusal.EVERYTHING),
    ],
)
def test_how_much_is_refused(space: Space, buffer_full: bool, expected: Refusal) -> None:
    assert refusal(space, buffer_full=buffer_full) is expected


@pytest.mark.parametrize(
    ("kind", "request_", "expected"),
    [
        (CommandKind.PUT, rpc_pb2.PutRequest(key=b"k"), True),
        (CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"k"), False),
        (CommandKind.COMPACT, rpc_pb2.CompactionRequest(revision=3), False),
        (CommandKind.ALARM, rpc_pb2.AlarmRequest(), False),
        (CommandKind.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=5), True),
        (CommandKind.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=5), False),
        (CommandKind.TXN, rpc_pb2.TxnRequest(success=[DELETE]), False),
        (CommandKind.TXN, rpc_pb2.TxnRequest(success=[DELETE], failure=[PUT]), True),
        (CommandKind.TXN, rpc_pb2.TxnRequest(success=[NESTED]), True),
    ],
)
def test_only_what_needs_space_for_good_is_refused_first(kind: CommandKind, request_: object, expected: bool) -> None:
    assert grows(kind, request_) is expected  # type: ignore[arg-type]
    assert is_refused(Refusal.GROWTH, kind, request_) is expected  # type: ignore[arg-type]
    assert not is_refused(Refusal.NOTHING, kind, request_)  # type: ignore[arg-type]
    assert is_refused(Refusal.EVERYTHING, kind, request_)  # type: ignore[arg-type]
    data = commands.encode(kind, ID, request_.SerializeToString())  # type: ignore[attr-defined]
    assert refused_proposal(Refusal.GROWTH, data) == (ID if expected else None)
    assert refused_proposal(Refusal.EVERYTHING, data) == ID
    assert refused_proposal(Refusal.NOTHING, data) is None


@pytest.mark.parametrize("data", [b"\x01", b"\xff" * 40, commands.encode(CommandKind.TXN, ID, b"\xff\xff")])
def test_what_can_not_be_read_is_left_to_raft_and_apply(data: bytes) -> None:
    assert refused_proposal(Refusal.GROWTH, data) is None


def test_forwarded_entries_are_parted_in_their_order() -> None:
    def entry(index: int, data: bytes, type_: EntryType = EntryType.NORMAL) -> Entry:
        return Entry(index=Index(index), term=Term(1), type=type_, data=data)

    def put(counter: int) -> bytes:
        return commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 2, counter), b"")

    delete = commands.encode(CommandKind.DELETE_RANGE, ID, b"")
    batch = [entry(0, put(1)), entry(0, delete), entry(0, b"change", EntryType.CONF_CHANGE), entry(0, put(2)), entry(0, b"")]
    taken, refused = split_forwarded(Refusal.GROWTH, batch)
    assert taken == [batch[1], batch[2], batch[4]]
    assert [each.counter for each in refused] == [1, 2]
    assert split_forwarded(Refusal.NOTHING, batch) == (batch, [])


def test_space_counts_again_only_from_a_margin_on_the_disk_or_in_the_file() -> None:
    assert not has_settled(free_bytes=SETTLED_BYTES - 1, reusable_bytes=0)
    assert has_settled(free_bytes=SETTLED_BYTES, reusable_bytes=0)
    assert has_settled(free_bytes=0, reusable_bytes=SETTLED_BYTES)


def test_only_a_leader_that_is_short_looks_for_another_and_not_all_the_time() -> None:
    short = Space(spare_missing=True)
    assert should_hand_over(short, is_leader=True, now_s=1.0)
    assert not should_hand_over(short, is_leader=False, now_s=1.0)
    assert not should_hand_over(Space(), is_leader=True, now_s=1.0)
    assert not should_hand_over(short, is_leader=True, now_s=1.0 + HAND_OVER_PAUSE_S / 2, last_try_s=1.0)
    assert should_hand_over(short, is_leader=True, now_s=1.0 + HAND_OVER_PAUSE_S, last_try_s=1.0)


STORE, WAL = Path("store"), Path("wal")
APART, TOGETHER = Disks(store=STORE, wal=WAL, is_one=False), Disks(store=STORE, wal=WAL, is_one=True)


@given(EVENTS, st.booleans())
def test_something_is_wanting_exactly_while_the_member_is_short(events: list[SpaceEvent], is_one: bool) -> None:
    space = after(events)
    found = shortages(space, TOGETHER if is_one else APART, store_needed_bytes=100, segment_bytes=10)
    assert bool(found) is space.is_short
    assert sum(each.needed_bytes for each in found) == 100 * space.store_full + 10 * (space.append_held + space.spare_missing)
    assert len({each.directory for each in found}) == len(found) <= (1 if is_one else 2)


def test_what_store_and_log_need_on_one_disk_is_needed_together() -> None:
    space = after([SpaceEvent.STORE_FULL, SpaceEvent.APPEND_HELD])
    (together,) = shortages(space, TOGETHER, store_needed_bytes=100, segment_bytes=10)
    assert together == Shortage(what=("store", "wal", "wal_spare"), directory=STORE, needed_bytes=120)
    apart = shortages(space, APART, store_needed_bytes=100, segment_bytes=10)
    assert apart == (
        Shortage(what=("store",), directory=STORE, needed_bytes=100),
        Shortage(what=("wal", "wal_spare"), directory=WAL, needed_bytes=20),
    )


def test_free_pages_of_the_store_count_once_a_commit_has_succeeded() -> None:
    assert store_needs(is_committed=False, waiting_bytes=5, reusable_bytes=1000) == SETTLED_BYTES + 5
    assert store_needs(is_committed=True, waiting_bytes=5, reusable_bytes=1000) == SETTLED_BYTES - 1000
    assert store_needs(is_committed=True, waiting_bytes=5, reusable_bytes=2 * SETTLED_BYTES) == 0
