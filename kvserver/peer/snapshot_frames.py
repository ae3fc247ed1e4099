"""The frames of a snapshot stream: header, resume, chunk, progress, result. Pure: no IO.

    sender -> SNAPSHOT_HEADER                       the snapshot message and the file's size, checksum and chunk size
    receiver -> SNAPSHOT_RESUME                     from which byte, or refused
    sender -> SNAPSHOT_CHUNK ...                    offset in the meta, the file's bytes as the frame's data
    receiver -> SNAPSHOT_PROGRESS ...               after each chunk, and while it works on something long
    receiver -> SNAPSHOT_RESULT                     the last word

Rules: what is read is checked completely (FrameError; SnapshotOfferError for an offer that a receiver must not begin with); texts that
travel are cut to `MAX_TEXT_CHARS`, so that answers fit the small bound on a dialled connection.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from kvserver.pb import peer_pb2
from kvserver.peer.codec import from_envelope, to_envelope
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import FrameType, encode_frame
from kvserver.peer.stream import ReceivedFrame
from kvserver.snapshot import SnapshotOffer
from kvserver.types import NodeId
from raft.messages import Message, MessageType

MAX_TEXT_CHARS: Final = 500
MAX_HEADER_SIZE_BYTES: Final = 128 * 1024

_Pb = TypeVar(
    "_Pb",
    peer_pb2.SnapshotHeader,
    peer_pb2.SnapshotResume,
    peer_pb2.SnapshotChunk,
    peer_pb2.SnapshotProgress,
    peer_pb2.SnapshotResult,
)


def header_frame(message: Message, offer: SnapshotOffer) -> list[bytes]:
    """Announces `offer`; `message` is the snapshot message, with the offer's metadata."""
    header = peer_pb2.SnapshotHeader(
        message=to_envelope(message),
        id=offer.id,
        size_bytes=offer.size_bytes,
        sha256=offer.sha256,
        chunk_size_bytes=offer.chunk_size_bytes,
    )
    return encode_frame(FrameType.SNAPSHOT_HEADER, header.SerializeToString())


def read_header(frame: ReceivedFrame, *, sender: NodeId, receiver: NodeId) -> tuple[Message, SnapshotOffer]:
    """The announced message and offer; the offer itself is still to be checked (snapshot.plan)."""
    header = _read(frame, FrameType.SNAPSHOT_HEADER, peer_pb2.SnapshotHeader())
    message = from_envelope(header.message, (), sender=sender, receiver=receiver)
    if header.message.entry_table:
        raise FrameError("a snapshot message with entries")
    if message.type is not MessageType.SNAP or message.snapshot is None:
        raise FrameError(f"a {message.type.name} heads a snapshot stream")
    offer = SnapshotOffer(
        id=header.id,
        size_bytes=header.size_bytes,
        sha256=header.sha256,
        chunk_size_bytes=header.chunk_size_bytes,
        metadata=message.snapshot.metadata,
    )
    return message, offer


def resume_frame(offset: int, refusal: str = "") -> list[bytes]:
    """Asks for the file from `offset`, or refuses it."""
    resume = peer_pb2.SnapshotResume(offset=offset, refused=bool(refusal), error=refusal[:MAX_TEXT_CHARS])
    return encode_frame(FrameType.SNAPSHOT_RESUME, resume.SerializeToString())


def read_resume(frame: ReceivedFrame) -> peer_pb2.SnapshotResume:
    """The receiver's answer to the header."""
    return _read(frame, FrameType.SNAPSHOT_RESUME, peer_pb2.SnapshotResume())


def chunk_frame(offset: int, data: bytes) -> list[bytes]:
    """A piece of the file; `data` is not copied."""
    return encode_frame(FrameType.SNAPSHOT_CHUNK, peer_pb2.SnapshotChunk(offset=offset).SerializeToString(), (data,))


def read_chunk(frame: ReceivedFrame) -> tuple[int, bytes]:
    """Offset and bytes of a piece."""
    return _read(frame, FrameType.SNAPSHOT_CHUNK, peer_pb2.SnapshotChunk(), with_data=True).offset, frame.data


def progress_frame(received_bytes: int) -> list[bytes]:
    """Says how much is verified and written."""
    return encode_frame(FrameType.SNAPSHOT_PROGRESS, peer_pb2.SnapshotProgress(received_bytes=received_bytes).SerializeToString())


def read_progress(frame: ReceivedFrame) -> int:
    """How much the receiver has verified and written."""
    return _read(frame, FrameType.SNAPSHOT_PROGRESS, peer_pb2.SnapshotProgress()).received_bytes


def result_frame(error: str, received_bytes: int) -> list[bytes]:
    """The last word: an empty `error` is success."""
    result = peer_pb2.SnapshotResult(ok=not error, error=error[:MAX_TEXT_CHARS], received_bytes=received_bytes)
    return encode_frame(FrameType.SNAPSHOT_RESULT, result.SerializeToString())


def read_result(frame: ReceivedFrame) -> peer_pb2.SnapshotResult:
    """The receiver's last word."""
    return _read(frame, FrameType.SNAPSHOT_RESULT, peer_pb2.SnapshotResult())


def _read(frame: ReceivedFrame, expected: FrameType, into: _Pb, *, with_data: bool = False) -> _Pb:
    if frame.type is not expected:
        raise FrameError(f"{frame.type.name} came where {expected.name} is due")
    if frame.data and not with_data:
        raise FrameError(f"{expected.name} carries data")
    try:
        into.ParseFromString(frame.meta)
    except DecodeError as error:
        raise FrameError(f"{expected.name} is not readable: {error}") from error
    return into
