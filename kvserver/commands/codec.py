"""The byte layout of a replicated command.

    offset  size  field
    0       1     version of this layout, now 1
    1       1     kind, a CommandKind
    2       8     proposal id: member, unsigned, big-endian
    10      8     proposal id: incarnation (drawn anew at every start of the member)
    18      8     proposal id: counter (unique within the incarnation)
    26      n     payload: the serialized request message of that kind

Rules
- A member that meets a version or a kind that it doesn't know stops: to skip a command that others apply would part the members' states.
- Kinds are numbered for good; a number is never reused. New kinds are proposed only when every member is known to understand them.
- An entry without data is raft's own (a new leader's first entry) and not a command; `decode` is not called for it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from kvserver.errors import FatalError
from kvserver.types import NodeId

COMMAND_VERSION: Final = 1

KINDS_VERSION: Final = 2
"""Which kinds this version knows, as other members hear in the hello (`max_command_version`): 1 keys, members and alarms; 2 leases, too."""

_HEADER: Final = struct.Struct(">BBQQQ")


class CommandKind(IntEnum):
    """What a command does, and with it which message its payload is.

    Room is left by tens: 1-19 keys, 20-39 members, 40-59 leases, 60-79 users and roles, 80-89 alarms.
    """

    PUT = 1
    DELETE_RANGE = 2
    TXN = 3
    COMPACT = 4
    MEMBER_PUBLISH = 20
    LEASE_GRANT = 40
    LEASE_REVOKE = 41
    LEASE_EXPIRE = 42
    """Revoke a lease because its time is over; only the leader proposes it, under the term in which it saw that (internal.LeaseExpiry)."""
    ALARM = 80


class ProposalId(NamedTuple):
    """Who proposed a command: unique over members, restarts and proposals.

    A tuple and not a dataclass because one is built for every applied entry.
    """

    member: NodeId
    incarnation: int
    counter: int


class Command(NamedTuple):
    """A decoded command; `payload` is a view into the entry's data and keeps that alive."""

    id: ProposalId
    kind: CommandKind
    payload: memoryview


class UnknownCommandVersionError(FatalError):
    """An entry was written by a newer kvserver."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(
            f"a replicated command has layout version {version}, this member knows only {COMMAND_VERSION}: "
            "upgrade this member to the version that the rest of the cluster runs, then start it again"
        )


class UnknownCommandKindError(FatalError):
    """An entry asks for something that this version of kvserver can't do."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        super().__init__(
            f"a replicated command has the unknown kind {kind}: "
            "upgrade this member to the version that the rest of the cluster runs, then start it again"
        )


class MalformedCommandError(FatalError):
    """An entry's data is no command at all, though its checksum was right."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a replicated command can't be read: {reason}: this member's log is damaged or was written by another program")


_KINDS: Final = {int(kind): kind for kind in CommandKind}
_SINCE: Final = {CommandKind.LEASE_GRANT: 2, CommandKind.LEASE_REVOKE: 2, CommandKind.LEASE_EXPIRE: 2}


def kinds_version(kind: CommandKind) -> int:
    """The lowest `KINDS_VERSION` that knows the kind."""
    return _SINCE.get(kind, 1)


def encode(kind: CommandKind, proposal: ProposalId, payload: bytes) -> bytes:
    """The data of the entry that proposes `payload`; copies the payload once."""
    return b"".join((_HEADER.pack(COMMAND_VERSION, kind, proposal.member, proposal.incarnation, proposal.counter), payload))


def decode(data: bytes) -> Command:
    """Read an entry's data; the payload is not copied.

    Raises:
        UnknownCommandVersionError, UnknownCommandKindError: a newer member wrote it.
        MalformedCommandError: too short to be a command.
    """
    if len(data) < _HEADER.size:
        if data and data[0] != COMMAND_VERSION:
            raise UnknownCommandVersionError(data[0])
        raise MalformedCommandError(f"{len(data)} bytes, the header alone has {_HEADER.size}")
    version, kind_number, member, incarnation, counter = _HEADER.unpack_from(data)
    if version != COMMAND_VERSION:
        raise UnknownCommandVersionError(version)
    kind = _KINDS.get(kind_number)
    if kind is None:
        raise UnknownCommandKindError(kind_number)
    return Command(ProposalId(member, incarnation, counter), kind, memoryview(data)[_HEADER.size :])
