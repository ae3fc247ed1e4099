"""The messages of the protocol: what members say to each other, and what a member says to its own storage threads.

Rules
- One flat record for all types, as in raftpb: a codec maps it field by field. Fields that a type does not use stay at their zero.
- A message that was handed out or in is never changed afterwards, so that a simulated network may deliver the same object twice.
- `term` 0 marks a message without a term: local ones, and proposals or read requests, which are forwarded to whoever leads.

Source: Ongaro's thesis, figure 3.1 and appendix B; etcd-io/raft's raftpb for names, order and numbers of the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from raft.types import NO_NODE, Entry, Index, NodeId, Snapshot, Term

LOCAL_APPEND_THREAD: Final = NodeId(2**64 - 1)
"""Pseudo-member: the thread that makes entries, hard state and snapshots durable (asynchronous storage writes)."""

LOCAL_APPLY_THREAD: Final = NodeId(2**64 - 2)
"""Pseudo-member: the thread that applies committed entries (asynchronous storage writes)."""

MAX_NUMBER: Final = 2**63 - 1
"""The largest term or index that a message may carry: one more still fits 64 bits, and the log's format."""

TRANSFER_CONTEXT: Final = b"CampaignTransfer"
"""Context of a vote request that a leader asked for; it overrides the lease of CheckQuorum."""


class MessageType(IntEnum):
    """What a message is; numbers are raftpb's."""

    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23


@dataclass(slots=True, kw_only=True)
class Message:
    """One message. Treated as immutable once built (not frozen: built on the hot path).

    `index` and `log_term` are the position before `entries` in an append, the last acknowledged or the rejected position in a response, and
    the candidate's last position in a vote request. `reject_hint` is where a follower suggests to probe next. `responses` (MsgStorageAppend
    and MsgStorageApply only) are to be delivered, in order, once the work is done.
    """

    type: MessageType
    to: NodeId = NO_NODE
    from_: NodeId = NO_NODE
    term: Term = Term(0)
    log_term: Term = Term(0)
    index: Index = Index(0)
    entries: Sequence[Entry] = ()
    commit: Index = Index(0)
    vote: NodeId = NO_NODE
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: Index = Index(0)
    context: bytes = b""
    responses: list[Message] = field(default_factory=list)


_LOCAL_TYPES: Final = frozenset(
    {
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
    }
)
_RESPONSE_TYPES: Final = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.UNREACHABLE,
        MessageType.READ_INDEX_RESP,
        MessageType.PRE_VOTE_RESP,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY_RESP,
    }
)
_DURABLE_FIRST_TYPES: Final = frozenset({MessageType.APP_RESP, MessageType.VOTE_RESP, MessageType.PRE_VOTE_RESP})


def is_local_message(message_type: MessageType) -> bool:
    """The type is only ever sent by a member to itself or to its storage threads."""
    return message_type in _LOCAL_TYPES


def is_response_message(message_type: MessageType) -> bool:
    """The type answers something, so its sender must be in the configuration."""
    return message_type in _RESPONSE_TYPES


def is_local_target(node: NodeId) -> bool:
    """`node` is one of the two storage threads."""
    return node >= LOCAL_APPLY_THREAD


def must_be_durable_first(message_type: MessageType) -> bool:
    """A message of this type may leave only after the entries and hard state of its Ready are on disk: it vouches for them."""
    return message_type in _DURABLE_FIRST_TYPES


def vote_response_type(request: MessageType) -> MessageType:
    """The response type of a vote or pre-vote request."""
    return MessageType.VOTE_RESP if request is MessageType.VOTE else MessageType.PRE_VOTE_RESP
