"""The encoding of configuration changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import (
    CodecError,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    decode_conf_change,
    encode_conf_change,
)
from raft.types import EntryType, NodeId

numbers = st.integers(0, 2**64 - 1)
singles = st.builds(ConfChangeSingle, type=st.sampled_from(ConfChangeType), node_id=numbers.map(NodeId))
changes = st.one_of(
    st.builds(ConfChange, type=st.sampled_from(ConfChangeType), node_id=numbers.map(NodeId), context=st.binary(max_size=300), id=numbers),
    st.builds(
        ConfChangeV2,
        transition=st.sampled_from(ConfChangeTransition),
        changes=st.lists(singles, max_size=4).map(tuple),
        context=st.binary(max_size=300),
    ),
)


@given(changes)
def test_decoding_gives_back_what_was_encoded(change: ConfChange | ConfChangeV2) -> None:
    assert decode_conf_change(*encode_conf_change(change)) == change


@given(st.sampled_from(EntryType), st.binary(max_size=40))
def test_any_bytes_decode_or_are_refused(entry_type: EntryType, data: bytes) -> None:
    try:
        decode_conf_change(entry_type, data)
    except CodecError:
        return
    assert entry_type is not EntryType.NORMAL


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (ConfChange(type=ConfChangeType.ADD_LEARNER_NODE, node_id=NodeId(300), context=b"c", id=7), "0807 1003 18ac02 220163"),
        (ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(1)), "0800 1000 1801"),
        (ConfChangeV2(), "0800"),
        (
            ConfChangeV2(
                transition=ConfChangeTransition.JOINT_EXPLICIT,
                changes=(ConfChangeSingle(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(2)),),
                context=b"x",
            ),
            "0802 1204 0801 1002 1a0178",
        ),
    ],
)
def test_bytes_are_those_of_raftpb(change: ConfChange | ConfChangeV2, expected: str) -> None:
    assert encode_conf_change(change)[1] == bytes.fromhex(expected)


def test_empty_data_is_the_empty_change() -> None:
    assert decode_conf_change(EntryType.CONF_CHANGE_V2, b"") == ConfChangeV2()


def test_unknown_fields_are_skipped() -> None:
    data = bytes.fromhex("0800 1000 1801 2a0161 3d00000000 410000000000000000 5005")
    assert decode_conf_change(EntryType.CONF_CHANGE, data) == ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(1))


@pytest.mark.parametrize("data", ["08", "1009", "0a00", "ff" * 11, "2205", "0b", "1a00", "18" + "ff" * 9 + "7f"])
def test_broken_bytes_are_refused(data: str) -> None:
    with pytest.raises(CodecError):
        decode_conf_change(EntryType.CONF_CHANGE, bytes.fromhex(data))
