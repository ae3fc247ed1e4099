"""The consensus core: Raft without IO, clock, randomness of its own, threads or logging.

A member is a `RawNode`: it is given messages (`step`), ticks (`tick`) and proposals (`propose`), and says through `ready` what is to be
written, sent and applied. See `raft.raw_node` for the two ways of driving it and `raft.ready` for what must be durable before what.

Source: Diego Ongaro, "Consensus: Bridging Theory and Practice" (2014); behaviour follows etcd-io/raft.
"""

from raft.confchange import AnyConfChange, ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2
from raft.confchange_codec import decode_conf_change, encode_conf_change
from raft.config import Config, LogSink, RandomSource, ReadOnlyOption
from raft.errors import (
    CodecError,
    CompactedError,
    ConfChangeError,
    ConfigError,
    InvalidMessageError,
    ProposalDroppedError,
    RaftError,
    SnapshotOutOfDateError,
    SnapshotTemporarilyUnavailableError,
    StepLocalMessageError,
    StepPeerNotFoundError,
    UnavailableError,
)
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType, must_be_durable_first
from raft.progress import Progress, ProgressState
from raft.raw_node import RawNode, Status
from raft.ready import ReadState, Ready, SoftState, StateType
from raft.storage import MemoryStorage, Storage

__all__ = [
    "LOCAL_APPEND_THREAD",
    "LOCAL_APPLY_THREAD",
    "AnyConfChange",
    "CodecError",
    "CompactedError",
    "ConfChange",
    "ConfChangeError",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfChangeV2",
    "Config",
    "ConfigError",
    "InvalidMessageError",
    "LogSink",
    "MemoryStorage",
    "Message",
    "MessageType",
    "Progress",
    "ProgressState",
    "ProposalDroppedError",
    "RaftError",
    "RandomSource",
    "RawNode",
    "ReadOnlyOption",
    "ReadState",
    "Ready",
    "SnapshotOutOfDateError",
    "SnapshotTemporarilyUnavailableError",
    "SoftState",
    "StateType",
    "Status",
    "StepLocalMessageError",
    "StepPeerNotFoundError",
    "Storage",
    "UnavailableError",
    "decode_conf_change",
    "encode_conf_change",
    "must_be_durable_first",
]
