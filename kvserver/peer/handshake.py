"""The hello: who may talk to whom. Pure: no IO.

Rules
- The dialler says who it is and whom it believes to reach; the listener answers who it is, and whether it accepts. Both check.
- Checked in this order, the first fault is the reason: protocol version, cluster, addressee, removed, unknown, stream kind. So a member of
  another cluster learns nothing about the members of this one.
- Every text names the two ids that don't agree, so that one log line is enough to find the wrong flag.

Caveat: a replicated command of a kind that a peer can't apply is not a refusal; `max_command_version` (commands.KINDS_VERSION) is told so
that none is proposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError

from kvserver.pb import peer_pb2
from kvserver.peer.errors import FrameError, RefusedError
from kvserver.peer.frames import Frame, FrameType, encode_frame
from kvserver.peer.refusal import Refusal
from kvserver.types import ClusterId, NodeId

PROTOCOL_VERSION: Final = 1

_Envelope = TypeVar("_Envelope", peer_pb2.Hello, peer_pb2.HelloReply)


class StreamKind(IntEnum):
    """What a connection carries."""

    MESSAGES = peer_pb2.STREAM_KIND_MESSAGES
    SNAPSHOT = peer_pb2.STREAM_KIND_SNAPSHOT


_STREAM_KINDS: Final = frozenset(map(int, StreamKind))
_REFUSALS: Final = frozenset(map(int, Refusal))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a member says about itself. `incarnation` is random per process start: it tells a restart from a reconnect."""

    cluster_id: ClusterId
    member_id: NodeId
    max_command_version: int = 1
    server_version: str = ""
    incarnation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteIdentity:
    """What a peer said about itself in its last accepted hello."""

    member_id: NodeId
    max_command_version: int
    server_version: str
    incarnation: int


class Membership(Protocol):
    """Who belongs to the cluster, as far as this member knows."""

    def is_member(self, member_id: NodeId) -> bool:
        """Voters and learners of the current configuration."""

    def is_removed(self, member_id: NodeId) -> bool:
        """Members that were removed; an id never comes back."""


def hello_frame(identity: Identity, to: NodeId, kind: StreamKind) -> list[bytes]:
    """The first frame of a dialled connection."""
    hello = peer_pb2.Hello(
        protocol_version=PROTOCOL_VERSION,
        cluster_id=identity.cluster_id,
        from_member_id=identity.member_id,
        to_member_id=to,
        max_command_version=identity.max_command_version,
        stream_kind=peer_pb2.StreamKind.ValueType(kind),
        server_version=identity.server_version,
        incarnation=identity.incarnation,
    )
    return encode_frame(FrameType.HELLO, hello.SerializeToString())


def decode_hello(frame: Frame) -> peer_pb2.Hello:
    """The hello in the frame; raises FrameError if it is anything else."""
    return _decode(frame, FrameType.HELLO, peer_pb2.Hello())


def decode_hello_reply(frame: Frame) -> peer_pb2.HelloReply:
    """The hello's answer in the frame; raises FrameError if it is anything else."""
    return _decode(frame, FrameType.HELLO_REPLY, peer_pb2.HelloReply())


def _decode(frame: Frame, expected: FrameType, into: _Envelope) -> _Envelope:
    if frame.type is not expected:
        raise FrameError(f"{frame.type.name} came where {expected.name} is due")
    frame.take(())
    try:
        into.ParseFromString(frame.meta)
    except DecodeError as error:
        raise FrameError(f"{expected.name} is not readable: {error}") from error
    return into


def judge_hello(hello: peer_pb2.Hello, identity: Identity, membership: Membership) -> RefusedError | None:
    """The listener's verdict on a dialler: None, or why it is refused."""
    dialler = NodeId(hello.from_member_id)
    if hello.protocol_version != PROTOCOL_VERSION:
        return RefusedError(
            Refusal.PROTOCOL_VERSION,
            f"peer protocol version {hello.protocol_version} is not supported, this member speaks {PROTOCOL_VERSION}",
        )
    if hello.cluster_id != identity.cluster_id:
        return RefusedError(
            Refusal.CLUSTER_ID, f"member {dialler:x} belongs to cluster {hello.cluster_id:x}, this member to {identity.cluster_id:x}"
        )
    if hello.to_member_id != identity.member_id:
        return RefusedError(Refusal.WRONG_MEMBER, f"member {hello.to_member_id:x} was dialled, this is {identity.member_id:x}")
    if membership.is_removed(dialler):
        return RefusedError(Refusal.REMOVED_MEMBER, f"member {dialler:x} was removed from the cluster")
    if not membership.is_member(dialler) or dialler == identity.member_id:
        return RefusedError(Refusal.UNKNOWN_MEMBER, f"member {dialler:x} is not known to member {identity.member_id:x}")
    if hello.stream_kind not in _STREAM_KINDS:
        return RefusedError(Refusal.STREAM_KIND, f"stream kind {hello.stream_kind} is not supported")
    return None


def reply_frame(identity: Identity, refused: RefusedError | None, max_frame_size_bytes: int) -> list[bytes]:
    """The listener's answer."""
    reply = peer_pb2.HelloReply(
        accepted=refused is None,
        refusal=peer_pb2.HelloReply.Refusal.ValueType(0 if refused is None else refused.reason),
        refusal_text="" if refused is None else str(refused),
        protocol_version=PROTOCOL_VERSION,
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        max_command_version=identity.max_command_version,
        server_version=identity.server_version,
        incarnation=identity.incarnation,
        max_frame_size_bytes=max_frame_size_bytes,
    )
    return encode_frame(FrameType.HELLO_REPLY, reply.SerializeToString())


def check_reply(reply: peer_pb2.HelloReply, identity: Identity, dialled: NodeId) -> RemoteIdentity:
    """The dialler's verdict on the answer: who the peer is. Raises RefusedError if it refused, or is not whom we dialled."""
    if not reply.accepted:
        reason = Refusal(reply.refusal) if reply.refusal in _REFUSALS else Refusal.BUSY
        raise RefusedError(reason, reply.refusal_text or "refused without a reason")
    if reply.protocol_version != PROTOCOL_VERSION:
        raise RefusedError(
            Refusal.PROTOCOL_VERSION, f"the peer speaks protocol version {reply.protocol_version}, this member {PROTOCOL_VERSION}"
        )
    if reply.cluster_id != identity.cluster_id:
        raise RefusedError(Refusal.CLUSTER_ID, f"the peer belongs to cluster {reply.cluster_id:x}, this member to {identity.cluster_id:x}")
    if reply.member_id != dialled:
        raise RefusedError(Refusal.WRONG_MEMBER, f"member {dialled:x} was dialled, {reply.member_id:x} answered")
    return RemoteIdentity(
        member_id=dialled,
        max_command_version=reply.max_command_version,
        server_version=reply.server_version,
        incarnation=reply.incarnation,
    )


def remote_identity(hello: peer_pb2.Hello) -> RemoteIdentity:
    """Who the dialler of an accepted hello is."""
    return RemoteIdentity(
        member_id=NodeId(hello.from_member_id),
        max_command_version=hello.max_command_version,
        server_version=hello.server_version,
        incarnation=hello.incarnation,
    )
