"""Sizes, descriptions, configuration checks, and the storage in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import (
    CompactedError,
    ConfChange,
    ConfChangeType,
    ConfChangeV2,
    Config,
    ConfigError,
    MemoryStorage,
    Message,
    MessageType,
    RaftError,
    RawNode,
    ReadState,
    Ready,
    SnapshotOutOfDateError,
    UnavailableError,
    must_be_durable_first,
)
from raft.describe import describe_conf_change, describe_entry, describe_message, describe_ready, parse_changes, quote
from raft.messages import LOCAL_APPEND_THREAD
from raft.sizes import entries_size_bytes, entry_size_bytes, limit_size, varint_size_bytes
from raft.types import Entry, EntryType, HardState, Index, NodeId, Term
from tests.raft.kit import Fixed, Lines, Member, T, conf_state, entry, leader, snapshot_at, storage_with


@pytest.mark.parametrize(("number", "size"), [(0, 1), (1, 1), (127, 1), (128, 2), (16383, 2), (16384, 3), (2**63, 10), (2**64 - 1, 10)])
def test_varint_size(number: int, size: int) -> None:
    assert varint_size_bytes(number) == size


@pytest.mark.parametrize(
    ("term", "index", "data", "size"), [(0, 0, b"", 6), (1, 127, b"", 6), (1, 128, b"", 7), (1, 1, b"x", 9), (300, 20000, b"x" * 200, 212)]
)
def test_entry_size_is_that_of_its_protobuf_encoding(term: int, index: int, data: bytes, size: int) -> None:
    # type, term and index with a one-byte tag each; data with tag and length
    assert entry_size_bytes(entry(term, index, data)) == size


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 300))
def test_limit_keeps_the_longest_prefix_that_fits_and_at_least_one(lengths: list[int], limit: int) -> None:
    entries = [entry(1, 1 + position, b"x" * length) for position, length in enumerate(lengths)]
    kept = limit_size(entries, limit)
    assert kept == entries[: len(kept)]
    assert len(kept) >= min(1, len(entries))
    assert len(kept) <= 1 or entries_size_bytes(kept) <= limit
    if len(kept) < len(entries):
        assert entries_size_bytes(entries[: len(kept) + 1]) > limit


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", '""'),
        (b"foo", '"foo"'),
        (b'"a\\b"', '"\\"a\\\\b\\""'),
        (b"\n\t\r\x00\x07\x7f", '"\\n\\t\\r\\x00\\a\\x7f"'),
        (b"\xff\xfe", '"\\xff\\xfe"'),
        ("äß∞".encode(), '"äß∞"'),
        ("\u200b\U000e0001".encode(), '"\\u200b\\U000e0001"'),
    ],
)
def test_data_is_quoted_like_go_does(data: bytes, text: str) -> None:
    assert quote(data) == text


def test_descriptions_of_rare_values() -> None:
    assert describe_ready(Ready()) == "<empty Ready>"
    states = [ReadState(index=Index(4), context=b"r")]
    assert describe_ready(Ready(read_states=states)) == 'Ready MustSync=false:\nReadStates [{4 "r"}]\n'
    broken = Entry(term=Term(1), index=Index(2), type=EntryType.CONF_CHANGE, data=b"\xff")
    assert describe_entry(broken) == "1/2 EntryConfChange a varint has no end"
    change = ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(3), context=b"c", id=9)
    assert describe_conf_change(change) == 'id:9 type:ConfChangeRemoveNode node_id:3 context:"c"'
    assert describe_conf_change(ConfChangeV2(context=b"c")) == 'transition:ConfChangeTransitionAuto context:"c"'
    message = Message(type=T.STORAGE_APPEND, to=LOCAL_APPEND_THREAD, vote=NodeId(2))
    assert describe_message(message) == "None->AppendThread MsgStorageAppend Term:0 Log:0/0 Vote:2"


@pytest.mark.parametrize("text", ["x1", "v", "vx", "1", "v-1"])
def test_changes_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown input"):
        parse_changes(text)


def test_types_that_vouch_for_the_disk() -> None:
    assert {kind for kind in MessageType if must_be_durable_first(kind)} == {T.APP_RESP, T.VOTE_RESP, T.PRE_VOTE_RESP}


@pytest.mark.parametrize(
    "options",
    [
        {"id": 0}, {"id": 2**64 - 1}, {"id": 2**64 - 2}, {"heartbeat_ticks": 0}, {"election_ticks": 1}, {"max_inflight_msgs": 0},
        {"applied": -1}, {"max_size_per_msg_bytes": -1}, {"max_inflight_bytes": 10, "max_size_per_msg_bytes": 11},
    ],
)  # fmt: skip
def test_configuration_out_of_range_is_refused(options: dict[str, Any]) -> None:
    valid: dict[str, Any] = {
        "id": NodeId(1), "election_ticks": 10, "heartbeat_ticks": 1, "storage": MemoryStorage(), "random": Fixed(), "log_sink": Lines()
    }  # fmt: skip
    Config(**valid)
    with pytest.raises(ConfigError):
        Config(**{**valid, **options})


@pytest.mark.parametrize(
    ("terms", "hard_state", "applied"),
    [([1], HardState(term=Term(1), commit=Index(2)), 0), ([1], HardState(term=Term(1)), 1), ([1], HardState(term=Term(1)), 9)],
)
def test_storage_that_contradicts_itself_is_refused(terms: list[int], hard_state: HardState, applied: int) -> None:
    with pytest.raises(RaftError):
        Member(1, storage_with(conf_state([1]), terms, hard_state=hard_state), applied=Index(applied))


def test_storage_with_an_impossible_configuration_is_refused() -> None:
    with pytest.raises(RaftError):
        Member(1, storage_with(conf_state([1], [1])))


def test_status_is_a_copy() -> None:
    found = leader()
    status = found.raw.status()
    assert (status.soft_state.lead, status.hard_state.term, status.last_index, status.applied_index) == (1, 1, 1, 0)
    assert list(status.progress) == [1, 2, 3]
    found.step(T.APP_RESP, 2, index=Index(1))
    assert status.progress[NodeId(2)].match_index == 0
    assert Member(1, storage_with(conf_state([1, 2, 3]))).raw.status().progress == {}


def test_two_readys_without_advance_are_a_programmers_error() -> None:
    found = leader([1])
    found.raw.propose(b"x")
    found.raw.ready()
    with pytest.raises(AssertionError):
        found.raw.ready()


def test_new_core_has_nothing_to_do() -> None:
    storage = storage_with(conf_state([1, 2, 3]), [1], hard_state=HardState(term=Term(1), vote=NodeId(2)))
    assert isinstance(Member(1, storage).raw, RawNode)
    assert not Member(1, storage).raw.has_ready()


# --- the storage in memory -----------------------------------------------------------------------


def filled() -> MemoryStorage:
    """Entries 4 and 5 behind a compacted position 3."""
    return storage_with(conf_state([1]), [4, 5], start=3)


def test_storage_answers_within_its_range_only() -> None:
    storage = filled()
    assert (storage.first_index(), storage.last_index()) == (4, 5)
    assert [storage.term(Index(index)) for index in (3, 4, 5)] == [1, 4, 5]
    with pytest.raises(CompactedError):
        storage.term(Index(2))
    with pytest.raises(UnavailableError):
        storage.term(Index(6))
    with pytest.raises(CompactedError):
        storage.entries(Index(3), Index(5), 1 << 20)
    with pytest.raises(UnavailableError):
        storage.entries(Index(4), Index(7), 1 << 20)
    assert [each.index for each in storage.entries(Index(4), Index(6), 0)] == [4]


@pytest.mark.parametrize(
    ("new", "terms"),
    [
        ([(1, 1), (2, 2)], [4, 5]), ([(3, 1), (4, 4), (5, 5)], [4, 5]), ([(3, 1), (4, 6), (5, 6)], [6, 6]), ([(4, 6)], [6]),
        ([(6, 5)], [4, 5, 5]), ([(5, 7)], [4, 7]),
    ],
)  # fmt: skip
def test_storage_append_replaces_from_the_first_index_given(new: list[tuple[int, int]], terms: list[int]) -> None:
    storage = filled()
    storage.append([entry(term, index) for index, term in new])
    assert [storage.term(Index(index)) for index in range(4, storage.last_index() + 1)] == terms


def test_storage_refuses_gaps_and_old_snapshots() -> None:
    storage = filled()
    with pytest.raises(UnavailableError):
        storage.append([entry(5, 7)])
    with pytest.raises(SnapshotOutOfDateError):
        storage.apply_snapshot(snapshot_at(3, 1, conf_state([1])))
    with pytest.raises(SnapshotOutOfDateError):
        storage.create_snapshot(Index(3), None, b"")
    assert storage.create_snapshot(Index(5), None, b"d").metadata.conf_state == conf_state([1])


def test_storage_compacts_inside_its_range_only() -> None:
    storage = filled()
    with pytest.raises(CompactedError):
        storage.compact(Index(3))
    with pytest.raises(UnavailableError):
        storage.compact(Index(6))
    storage.compact(Index(5))
    assert (storage.first_index(), storage.last_index(), storage.term(Index(5))) == (6, 5, 5)
