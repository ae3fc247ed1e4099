"""Why a hello is refused: the protocol's codes under readable names."""

from __future__ import annotations

from enum import IntEnum

from kvserver.pb import peer_pb2

_CODES = peer_pb2.HelloReply


class Refusal(IntEnum):
    """The reasons; the numbers are those of `HelloReply.Refusal` on the wire."""

    NONE = _CODES.NONE
    PROTOCOL_VERSION = _CODES.PROTOCOL_VERSION
    CLUSTER_ID = _CODES.CLUSTER_ID
    WRONG_MEMBER = _CODES.WRONG_MEMBER
    UNKNOWN_MEMBER = _CODES.UNKNOWN_MEMBER
    REMOVED_MEMBER = _CODES.REMOVED_MEMBER
    STREAM_KIND = _CODES.STREAM_KIND
    BUSY = _CODES.BUSY
