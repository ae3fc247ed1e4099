"""Raft messages as frames: every shape survives the wire, and what must not be believed is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.pb import peer_pb2
from kvserver.peer.codec import MAX_OPAQUE_SIZE_BYTES, WIRE_TYPES, decode_message, encode_message, from_envelope, to_envelope
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import FrameDecoder, FrameType, encode_frame
from kvserver.types import NodeId
from raft.messages import MAX_NUMBER, Message, MessageType
from raft.types import ConfState, Entry, EntryType, Snapshot, SnapshotMetadata

SELF, PEER = NodeId(0xFFFF_FFFF_FFFF_FFF0), NodeId(7)

numbers = st.integers(0, MAX_NUMBER)
ids = st.integers(0, 2**64 - 1)
entries = st.builds(Entry, term=numbers, index=numbers, type=st.sampled_from(EntryType), data=st.binary(max_size=200))
id_lists = st.lists(ids, max_size=4).map(tuple)
conf_states = st.builds(
    ConfState, voters=id_lists, voters_outgoing=id_lists, learners=id_lists, learners_next=id_lists, auto_leave=st.booleans()
)
snapshots = st.builds(
    Snapshot, metadata=st.builds(SnapshotMetadata, index=numbers, term=numbers, conf_state=conf_states), data=st.binary(max_size=50)
)
messages = st.builds(
    Message,
    type=st.sampled_from(sorted(set(WIRE_TYPES.values()))),
    to=st.just(SELF),
    from_=st.just(PEER),
    term=numbers,
    log_term=numbers,
    index=numbers,
    entries=st.lists(entries, max_size=5),
    commit=numbers,
    vote=ids,
    snapshot=st.none() | snapshots,
    reject=st.booleans(),
    reject_hint=numbers,
    context=st.binary(max_size=50),
)


def frames_of(segments: list[bytes]):
    decoder = FrameDecoder(1 << 24)
    stream, at, got = b"".join(segments), 0, []
    while at < len(stream):
        buffer = decoder.get_buffer()
        count = min(len(buffer), len(stream) - at)
        buffer[:count] = stream[at : at + count]
        at += count
        got += decoder.received(count)
    return got


def decode(segments: list[bytes]):
    (frame,) = frames_of(segments)
    return decode_message(frame, sender=PEER, receiver=SELF)


def normal(message: Message) -> Message:
    return replace(message, entries=list(message.entries))


@settings(max_examples=120, deadline=None)
@given(message=messages.filter(lambda each: each.type is not MessageType.SNAP), floor=numbers)
def test_every_message_survives_the_wire(message, floor):
    got, got_floor = decode(encode_message(message, floor).segments)
    assert normal(got) == normal(message)
    assert got_floor == floor
    assert all(type(entry.type) is EntryType for entry in got.entries)


@settings(max_examples=100, deadline=None)
@given(message=messages.filter(lambda each: not each.entries))
def test_every_message_without_entries_survives_as_an_envelope(message):
    assert normal(from_envelope(to_envelope(message), (), sender=PEER, receiver=SELF)) == normal(message)


def test_entry_data_leaves_as_the_same_object():
    data = b"v" * 1000
    message = Message(type=MessageType.APP, to=SELF, from_=PEER, entries=[Entry(term=1, index=1, data=data)])
    assert encode_message(message).segments[1] is data


@pytest.mark.parametrize("kind", sorted(set(MessageType) - set(WIRE_TYPES.values())))
def test_local_messages_are_neither_sent_nor_believed(kind):
    with pytest.raises(ValueError, match="not for another member"):
        encode_message(Message(type=kind, to=SELF, from_=PEER))
    with pytest.raises(FrameError, match="not for the wire"):
        decode(_raw(type=kind))


def test_responses_are_not_for_the_wire():
    message = Message(type=MessageType.APP, to=SELF, from_=PEER, responses=[Message(type=MessageType.APP_RESP)])
    with pytest.raises(ValueError, match="not for another member"):
        encode_message(message)


def test_urgent_lane_holds_everything_but_appends_and_proposals():
    bulk = {
        kind
        for kind in WIRE_TYPES.values()
        if kind is not MessageType.SNAP and not encode_message(Message(type=kind, to=SELF, from_=PEER)).is_urgent
    }
    assert bulk == {MessageType.APP, MessageType.PROP}


def test_forwarded_transfer_may_name_another_sender():
    message = Message(type=MessageType.TRANSFER_LEADER, to=SELF, from_=NodeId(99))
    assert decode(encode_message(message).segments)[0].from_ == 99


def _raw(data: tuple[bytes, ...] = (), **fields) -> list[bytes]:
    envelope = peer_pb2.RaftMessage(to=SELF, type=MessageType.APP)
    setattr(envelope, "from", PEER)
    for name, value in fields.items():
        setattr(envelope, name, value)
    return encode_frame(FrameType.RAFT_MESSAGE, envelope.SerializeToString(), data)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"to": 5}, "came from"),
        ({"from": 5}, "came from"),
        ({"type": 200}, "not for the wire"),
        ({"type": int(MessageType.SNAP)}, "snapshot message"),
        ({"term": 2**63}, "out of range"),
        ({"index": 2**64 - 1}, "out of range"),
        ({"commit": 2**63}, "out of range"),
        ({"log_floor": 2**63}, "out of range"),
        ({"context": b"x" * (MAX_OPAQUE_SIZE_BYTES + 1)}, "over the bound"),
        ({"entry_table": b"x" * 20}, "an entry table of 20 bytes"),
        ({"entry_table": struct.pack(">QQBI", 1, 1, 0, 3)}, "more data"),
        ({"entry_table": struct.pack(">QQBI", 1, 1, 3, 0)}, "out of range"),
        ({"entry_table": struct.pack(">QQBI", 2**63, 1, 0, 0)}, "out of range"),
        ({"entry_table": struct.pack(">QQBI", 1, 2**63, 0, 0)}, "out of range"),
    ],
)
def test_what_must_not_be_believed_is_refused(fields, text):
    with pytest.raises(FrameError, match=text):
        decode(_raw(**fields))


def test_undescribed_data_is_refused():
    with pytest.raises(FrameError, match="nothing describes"):
        decode(_raw(data=(b"extra",)))


def test_unreadable_envelope_is_refused():
    with pytest.raises(FrameError, match="not readable"):
        decode(encode_frame(FrameType.RAFT_MESSAGE, b"\xff\xff\xff\xff"))


@settings(max_examples=150, deadline=None)
@given(meta=st.binary(max_size=120), data=st.binary(max_size=60))
def test_arbitrary_envelopes_give_a_message_or_a_frame_error(meta, data):
    try:
        message, _ = decode(encode_frame(FrameType.RAFT_MESSAGE, meta, (data,)))
    except FrameError:
        return
    assert message.to == SELF
