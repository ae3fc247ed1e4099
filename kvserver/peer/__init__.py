"""Peer to peer: framed TCP between the members of one cluster.

Purpose: carries raft's messages (`Transport.send`, `PeerHandler.on_message`), requests and their answers (`Transport.request`,
`PeerHandler.on_request`) and snapshots (`Transport.send_snapshot`, `PeerHandler.on_snapshot_received`); answers HTTP GET on the peer port.

Theory of operation: every member dials every other and sends on the connection it dialled, so a pair has two message connections, one per
direction, and a short-lived one per snapshot transfer. A connection begins with a hello that both sides judge. Frames are checked before
they are believed; whatever is malformed ends its connection and nothing else. Queues are bounded, and what doesn't fit is dropped: raft
repeats it.

From bottom to top: frames, codec, request_frames, handshake, outbox, http (sans-IO) · connection, dial, stream (IO) · requests, link,
answers, inbound, server, snapshot_send, snapshot_receive · transport. docs/architecture/peer.md has the byte tables and the failure rules.
"""

from kvserver.peer.errors import (
    ConnectionClosedError,
    FrameError,
    PeerError,
    PeerNotConnectedError,
    PeerRequestError,
    PeerRequestLostError,
    PeerRequestOverflowError,
    PeerRequestRefusedError,
    PeerRequestTimeoutError,
    RefusedError,
)
from kvserver.peer.handshake import PROTOCOL_VERSION, Identity, RemoteIdentity
from kvserver.peer.options import TransportOptions
from kvserver.peer.outbox import OutboxLimits
from kvserver.peer.refusal import Refusal
from kvserver.peer.request_frames import MAX_PAYLOAD_SIZE_BYTES, MAX_REQUEST_TIMEOUT_S, MAX_REQUESTS
from kvserver.peer.snapshot_options import SnapshotOptions, SnapshotOutcome, SnapshotProgress
from kvserver.peer.transport import PeerHandler, PeerStats, SnapshotParts, Transport

__all__ = [
    "MAX_PAYLOAD_SIZE_BYTES",
    "MAX_REQUESTS",
    "MAX_REQUEST_TIMEOUT_S",
    "PROTOCOL_VERSION",
    "ConnectionClosedError",
    "FrameError",
    "Identity",
    "OutboxLimits",
    "PeerError",
    "PeerHandler",
    "PeerNotConnectedError",
    "PeerRequestError",
    "PeerRequestLostError",
    "PeerRequestOverflowError",
    "PeerRequestRefusedError",
    "PeerRequestTimeoutError",
    "PeerStats",
    "Refusal",
    "RefusedError",
    "RemoteIdentity",
    "SnapshotOptions",
    "SnapshotOutcome",
    "SnapshotParts",
    "SnapshotProgress",
    "Transport",
    "TransportOptions",
]
