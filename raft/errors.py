"""What can go wrong in the consensus core, as one family.

Rules: everything the core raises on purpose derives from `RaftError`; a message from the network can cause nothing else. Each leaf says in
its docstring who meets it and whether trying again helps.

Source: etcd-io/raft names the same conditions; the texts that its data files show (`str(error)`) are kept.
"""

from __future__ import annotations


class RaftError(Exception):
    """Base of every error of this package."""


class ConfigError(RaftError, ValueError):
    """A configuration value is out of range; raised while constructing `Config`. Deterministic."""


class ProposalDroppedError(RaftError):
    """The proposal was not taken: no leader, a transfer under way, the uncommitted tail is full, or forwarding is off. May pass later."""

    def __init__(self, message: str = "raft proposal dropped") -> None:
        super().__init__(message)


class StepLocalMessageError(RaftError):
    """A message of a kind that only a node sends to itself came in from the network. Deterministic."""

    def __init__(self, message: str = "raft: cannot step raft local message") -> None:
        super().__init__(message)


class StepPeerNotFoundError(RaftError):
    """A response came from a node that is not in the configuration, for example a removed member."""

    def __init__(self, message: str = "raft: cannot step as peer not found") -> None:
        super().__init__(message)


class InvalidMessageError(RaftError):
    """A message contradicts the protocol or this member's committed log; it was dropped without effect on the log."""


class CompactedError(RaftError):
    """The requested index was compacted away; a snapshot is needed instead."""

    def __init__(self, message: str = "requested index is unavailable due to compaction") -> None:
        super().__init__(message)


class SnapshotOutOfDateError(RaftError):
    """A snapshot older than the one held was offered to a storage."""

    def __init__(self, message: str = "requested index is older than the existing snapshot") -> None:
        super().__init__(message)


class UnavailableError(RaftError):
    """The requested entry is not in the log (yet), or a storage can't deliver it right now; may pass later."""

    def __init__(self, message: str = "requested entry at index is unavailable") -> None:
        super().__init__(message)


class SnapshotTemporarilyUnavailableError(RaftError):
    """The storage is still preparing a snapshot; the core asks again later."""

    def __init__(self, message: str = "snapshot is temporarily unavailable") -> None:
        super().__init__(message)


class ConfChangeError(RaftError):
    """A configuration change can't be made from the configuration in force. Deterministic."""


class CodecError(RaftError):
    """Bytes are not an encoded configuration change. Deterministic."""
