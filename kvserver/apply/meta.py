"""What the store says about itself, in the same transaction as the data.

key (table meta)   value
format             version of all tables' layouts, 4 bytes big-endian, now 2
state              applied index (8), applied term (8), current revision (8), all big-endian
conf_state         pb ConfState as of the applied index
membership         pb StoredMembership: cluster id, members, removed ids
alarms             pb AlarmResponse without a header: the alarms that are raised, ascending; absent or empty without any
compaction         see mvcc.compaction
unfinished, unfinished_request   see mvcc.unfinished
kinds              4 bytes big-endian: the lowest commands.KINDS_VERSION that knows every kind applied so far; absent: 1
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvserver.apply.alarms import Alarms, decode_alarms
from kvserver.mvcc import FIRST_REVISION, META
from kvserver.mvcc.unfinished import PROGRESS_KEY
from kvserver.pb import internal_pb2 as internal
from kvserver.storage import DAMAGE_ADVICE
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Revision, Term

FORMAT: Final = 2
"""1 had rows without seals; it was never released."""

FORMAT_KEY: Final = b"format"
STATE_KEY: Final = b"state"
CONF_STATE_KEY: Final = b"conf_state"
MEMBERSHIP_KEY: Final = b"membership"
ALARMS_KEY: Final = b"alarms"
KINDS_KEY: Final = b"kinds"

_NO_CLUSTER: Final = ClusterId(0)
_NO_INDEX: Final = Index(0)
_NO_TERM: Final = Term(0)
_NO_CONF_STATE: Final = ConfState()

_FORMAT: Final = struct.Struct(">I")
_STATE: Final = struct.Struct(">QQQ")


class MetaReader(Protocol):
    """Point reads of the meta table."""

    def get(self, table: int, key: bytes) -> bytes | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who belongs to the cluster, and who never may again."""

    cluster_id: ClusterId = _NO_CLUSTER
    members: Mapping[NodeId, Member] = field(default_factory=dict)
    removed_ids: frozenset[NodeId] = frozenset()
    cluster_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Everything the meta table holds but compaction and what is unfinished; `is_unfinished`: an entry is applied in part."""

    index: Index = _NO_INDEX
    term: Term = _NO_TERM
    revision: Revision = FIRST_REVISION
    conf_state: ConfState = _NO_CONF_STATE
    membership: Membership = field(default_factory=Membership)
    alarms: Alarms = ()
    is_unfinished: bool = False
    kinds_version: int = 1


def read(reader: MetaReader) -> Meta | None:
    """The meta of a store, None of one that has none yet.

    Raises:
        ValueError: written by another version of kvserver, or damaged; the text says what.
    """
    version = reader.get(META, FORMAT_KEY)
    state = reader.get(META, STATE_KEY)
    if version is None and state is None:
        return None
    if version is None or state is None or len(version) != _FORMAT.size or len(state) != _STATE.size:
        raise ValueError(f"its meta table is incomplete; {DAMAGE_ADVICE}")
    (number,) = _FORMAT.unpack(version)
    if number != FORMAT:
        raise ValueError(other_format(number))
    index, term, revision = _STATE.unpack(state)
    return Meta(
        index=Index(index),
        term=Term(term),
        revision=Revision(revision),
        conf_state=decode_conf_state(reader.get(META, CONF_STATE_KEY) or b""),
        membership=decode_membership(reader.get(META, MEMBERSHIP_KEY) or b""),
        alarms=decode_alarms(reader.get(META, ALARMS_KEY) or b""),
        is_unfinished=reader.get(META, PROGRESS_KEY) is not None,
        kinds_version=int.from_bytes(reader.get(META, KINDS_KEY) or b"\x01", "big"),
    )


def other_format(number: int) -> str:
    """Why a store of format `number` isn't read."""
    return f"it has format {number}, this version of kvserver reads only {FORMAT}; use the version that wrote it"


def unsealed_format(stored: bytes | None) -> int | None:
    """The format of a store whose `format` row, as the file has it, carries no seal (before format 2); None of all others."""
    return _FORMAT.unpack(stored)[0] if stored is not None and len(stored) == _FORMAT.size else None


def encode_format() -> bytes:
    """The value of `format`."""
    return _FORMAT.pack(FORMAT)


def encode_kinds_version(version: int) -> bytes:
    """The value of `kinds`."""
    return _FORMAT.pack(version)


def encode_state(index: int, term: int, revision: int) -> bytes:
    """The value of `state`."""
    return _STATE.pack(index, term, revision)


def encode_conf_state(conf: ConfState) -> bytes:
    """The value of `conf_state`."""
    return internal.ConfState(
        voters=conf.voters,
        voters_outgoing=conf.voters_outgoing,
        learners=conf.learners,
        learners_next=conf.learners_next,
        auto_leave=conf.auto_leave,
    ).SerializeToString(deterministic=True)


def decode_conf_state(data: bytes) -> ConfState:
    """The opposite of `encode_conf_state`."""
    conf = internal.ConfState.FromString(data)
    return ConfState(
        voters=tuple(map(NodeId, conf.voters)),
        voters_outgoing=tuple(map(NodeId, conf.voters_outgoing)),
        learners=tuple(map(NodeId, conf.learners)),
        learners_next=tuple(map(NodeId, conf.learners_next)),
        auto_leave=conf.auto_leave,
    )


def encode_membership(membership: Membership) -> bytes:
    """The value of `membership`; members and removed ids ascending, so that equal memberships give equal bytes."""
    stored = internal.StoredMembership(
        cluster_id=membership.cluster_id, removed_ids=sorted(membership.removed_ids), cluster_token=membership.cluster_token
    )
    for _, member in sorted(membership.members.items()):
        stored.members.add(
            id=member.id,
            name=member.name,
            peer_urls=member.peer_urls,
            client_urls=member.client_urls,
            is_learner=member.is_learner,
            kinds_version=member.kinds_version,
        )
    return stored.SerializeToString(deterministic=True)


def decode_membership(data: bytes) -> Membership:
    """The opposite of `encode_membership`."""
    stored = internal.StoredMembership.FromString(data)
    members = (
        Member(
            id=NodeId(member.id),
            name=member.name,
            peer_urls=tuple(member.peer_urls),
            client_urls=tuple(member.client_urls),
            is_learner=member.is_learner,
            kinds_version=member.kinds_version,
        )
        for member in stored.members
    )
    return Membership(
        cluster_id=ClusterId(stored.cluster_id),
        members={member.id: member for member in members},
        removed_ids=frozenset(map(NodeId, stored.removed_ids)),
        cluster_token=stored.cluster_token,
    )
