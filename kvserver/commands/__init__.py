"""The replicated commands: what a raft entry's data is.

Rules: the codec knows kinds and ids, not meanings; the payload is the serialized request message and is never copied here more than once.
"""

from __future__ import annotations

from kvserver.commands.codec import (
    COMMAND_VERSION,
    KINDS_VERSION,
    Command,
    CommandKind,
    MalformedCommandError,
    ProposalId,
    UnknownCommandKindError,
    UnknownCommandVersionError,
    decode,
    encode,
    kinds_version,
)

__all__ = [
    "COMMAND_VERSION",
    "KINDS_VERSION",
    "Command",
    "CommandKind",
    "MalformedCommandError",
    "ProposalId",
    "UnknownCommandKindError",
    "UnknownCommandVersionError",
    "decode",
    "encode",
    "kinds_version",
]
