"""Raft messages as frames: a protobuf envelope, and behind it the entries' data as it is.

Rules
- On the way out no entry data is copied or re-encoded: the frame is a list of segments, the entries' own bytes objects among them.
- On the way in there is one bytes object per entry, sliced and checked by the frame.
- Everything is checked before a Message is built: only the types that members send each other, addressed to this member, sent by the
  member of the hello (a forwarded transfer names its target as the sender), numbers in range, arrays of one length. Anything else is
  FrameError.
- A message has no `responses` on the wire: those are for the local storage threads.

Bounds: the frame's; `MAX_ENTRIES_PER_MESSAGE` entries; a context and a snapshot's data of at most `MAX_OPAQUE_SIZE_BYTES`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from kvserver.pb import internal_pb2, peer_pb2
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import Frame, FrameType, encode_frame
from kvserver.peer.outbox import OutFrame, out_frame
from kvserver.types import NodeId
from raft.messages import MAX_NUMBER, Message, MessageType
from raft.types import ConfState, Entry, EntryType, Index, Snapshot, SnapshotMetadata, Term

MAX_ENTRIES_PER_MESSAGE: Final = 1 << 18
MAX_OPAQUE_SIZE_BYTES: Final = 64 * 1024
WIRE_TYPES: Final = {
    int(each): each
    for each in (
        MessageType.PROP,
        MessageType.APP,
        MessageType.APP_RESP,
        MessageType.VOTE,
        MessageType.VOTE_RESP,
        MessageType.SNAP,
        MessageType.HEARTBEAT,
        MessageType.HEARTBEAT_RESP,
        MessageType.TRANSFER_LEADER,
        MessageType.TIMEOUT_NOW,
        MessageType.READ_INDEX,
        MessageType.READ_INDEX_RESP,
        MessageType.PRE_VOTE,
        MessageType.PRE_VOTE_RESP,
    )
}
"""What members send each other; a snapshot message comes on the snapshot stream only."""

NO_FLOOR: Final = Index(0)

_BULK_TYPES: Final = frozenset({MessageType.APP, MessageType.PROP})
_ENTRY_TYPES: Final = tuple(EntryType)
_ENTRY_ROW: Final = struct.Struct(">QQBI")
"""One row of `RaftMessage.entry_table`: term, index, type, length of the data."""


def encode_message(message: Message, floor: Index = NO_FLOOR) -> OutFrame:
    """The frame of a message that is not a snapshot; `floor` rides along (0: none said). ValueError for a message that must not leave."""
    if message.type is MessageType.SNAP:
        raise ValueError("a snapshot message travels on the snapshot stream")
    envelope = to_envelope(message, floor)
    segments = encode_frame(FrameType.RAFT_MESSAGE, envelope.SerializeToString(), [entry.data for entry in message.entries])
    return out_frame(segments, is_urgent=message.type not in _BULK_TYPES)


def decode_message(frame: Frame, *, sender: NodeId, receiver: NodeId) -> tuple[Message, Index]:
    """The message and the floor in a RAFT_MESSAGE frame; raises FrameError."""
    envelope = peer_pb2.RaftMessage()
    try:
        envelope.ParseFromString(frame.meta)
    except DecodeError as error:
        raise FrameError(f"raft message is not readable: {error}") from error
    message_type = envelope.type
    if message_type == MessageType.SNAP:
        raise FrameError("a snapshot message came on a message stream")
    entries = _entries(envelope.entry_table, frame)
    floor = envelope.log_floor
    if floor > MAX_NUMBER:
        raise FrameError(f"floor {floor} is out of range")
    return from_envelope(envelope, entries, sender=sender, receiver=receiver), Index(floor)


def to_envelope(message: Message, floor: Index = NO_FLOOR) -> peer_pb2.RaftMessage:
    """The message without its entries' data."""
    if message.type not in WIRE_TYPES or message.responses:
        raise ValueError(f"{message.type.name} is not for another member")
    envelope = peer_pb2.RaftMessage(type=message.type, to=message.to, term=message.term)
    setattr(envelope, "from", message.from_)
    # Most fields of most messages are zero, and setting one costs more than looking at it.
    if message.log_term:
        envelope.log_term = message.log_term
    if message.index:
        envelope.index = message.index
    if message.commit:
        envelope.commit = message.commit
    if message.vote:
        envelope.vote = message.vote
    if message.reject:
        envelope.reject = True
    if message.reject_hint:
        envelope.reject_hint = message.reject_hint
    if message.context:
        envelope.context = message.context
    if floor:
        envelope.log_floor = floor
    if message.entries:
        pack = _ENTRY_ROW.pack
        envelope.entry_table = b"".join([pack(entry.term, entry.index, entry.type, len(entry.data)) for entry in message.entries])
    if message.snapshot is not None:
        metadata = message.snapshot.metadata
        envelope.snapshot.index = metadata.index
        envelope.snapshot.term = metadata.term
        envelope.snapshot.conf_state.CopyFrom(_conf_state_to_pb(metadata.conf_state))
        envelope.snapshot_data = message.snapshot.data
    return envelope


_FORWARDED_TYPES: Final = frozenset({MessageType.PROP, MessageType.READ_INDEX, MessageType.TRANSFER_LEADER})
"""A follower passes these on in the name of whoever began them, twice if the leader changes on the way."""


def from_envelope(envelope: peer_pb2.RaftMessage, entries: Sequence[Entry], *, sender: NodeId, receiver: NodeId) -> Message:
    """The message of an envelope, with these entries; raises FrameError."""
    message_type = WIRE_TYPES.get(envelope.type)
    if message_type is None:
        raise FrameError(f"raft message of type {envelope.type} is not for the wire")
    from_, to = NodeId(getattr(envelope, "from")), envelope.to
    if to != receiver or (from_ != sender and message_type not in _FORWARDED_TYPES):
        raise FrameError(f"{message_type.name} from {from_:x} to {to:x} came from {sender:x} to {receiver:x}")
    term, log_term, index, commit, hint = envelope.term, envelope.log_term, envelope.index, envelope.commit, envelope.reject_hint
    if term > MAX_NUMBER or log_term > MAX_NUMBER or index > MAX_NUMBER or commit > MAX_NUMBER or hint > MAX_NUMBER:
        raise FrameError("a number of a raft message is out of range")
    context = envelope.context
    if len(context) > MAX_OPAQUE_SIZE_BYTES:
        raise FrameError(f"a context of {len(context)} bytes is over the bound")
    return Message(
        type=message_type,
        to=receiver,
        from_=from_,
        term=Term(term),
        log_term=Term(log_term),
        index=Index(index),
        entries=entries,
        commit=Index(commit),
        vote=NodeId(envelope.vote),
        snapshot=_snapshot(envelope),
        reject=envelope.reject,
        reject_hint=Index(hint),
        context=context,
    )


def _entries(table: bytes, frame: Frame) -> Sequence[Entry]:
    """The entries of the table with their data, which stands in the frame in the same order."""
    count, rest = divmod(len(table), _ENTRY_ROW.size)
    if rest or count > MAX_ENTRIES_PER_MESSAGE:
        raise FrameError(f"an entry table of {len(table)} bytes")
    rows = list(_ENTRY_ROW.iter_unpack(table))
    pieces = frame.take([row[3] for row in rows])
    entries = []
    for (term, index, entry_type, _), data in zip(rows, pieces, strict=True):
        if term > MAX_NUMBER or index > MAX_NUMBER or entry_type >= len(_ENTRY_TYPES):
            raise FrameError("an entry's term, index or type is out of range")
        entries.append(Entry(term=Term(term), index=Index(index), type=_ENTRY_TYPES[entry_type], data=data))
    return entries


def _snapshot(envelope: peer_pb2.RaftMessage) -> Snapshot | None:
    if not envelope.HasField("snapshot"):
        return None
    metadata = envelope.snapshot
    if max(metadata.index, metadata.term) > MAX_NUMBER:
        raise FrameError("a snapshot's index or term is out of range")
    if len(envelope.snapshot_data) > MAX_OPAQUE_SIZE_BYTES:
        raise FrameError(f"a snapshot's data of {len(envelope.snapshot_data)} bytes is over the bound")
    state = metadata.conf_state
    return Snapshot(
        metadata=SnapshotMetadata(
            index=Index(metadata.index),
            term=Term(metadata.term),
            conf_state=ConfState(
                voters=_ids(state.voters),
                voters_outgoing=_ids(state.voters_outgoing),
                learners=_ids(state.learners),
                learners_next=_ids(state.learners_next),
                auto_leave=state.auto_leave,
            ),
        ),
        data=envelope.snapshot_data,
    )


def _ids(numbers: Sequence[int]) -> tuple[NodeId, ...]:
    return tuple(NodeId(number) for number in numbers)


def _conf_state_to_pb(state: ConfState) -> internal_pb2.ConfState:
    return internal_pb2.ConfState(
        voters=state.voters,
        voters_outgoing=state.voters_outgoing,
        learners=state.learners,
        learners_next=state.learners_next,
        auto_leave=state.auto_leave,
    )
