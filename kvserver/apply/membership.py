"""Membership changes: what a committed configuration change does to the list of members.

Purpose: a pure step from one membership to the next, and the encoding of the step as the context of raft's configuration change.

Rules: deterministic. A change that the membership in force does not allow is refused by every member alike; raft's part of it then
becomes a change of nobody. An id that was removed never comes back.

Source: etcd's membership/cluster.go (ValidateConfigurationChange).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import assert_never

from kvserver.apply.meta import Membership
from kvserver.commands import ProposalId
from kvserver.errors import MemberIdExistsError, MemberNotFoundError, MemberNotLearnerError, PeerUrlExistsError
from kvserver.pb import internal_pb2 as internal
from kvserver.types import Member, NodeId


class MemberChangeKind(IntEnum):
    """What a change does; the numbers are stored in the log."""

    ADD = internal.MEMBER_CHANGE_ADD
    REMOVE = internal.MEMBER_CHANGE_REMOVE
    UPDATE = internal.MEMBER_CHANGE_UPDATE
    PROMOTE = internal.MEMBER_CHANGE_PROMOTE


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """One change. Of `member`, ADD uses everything but names and client URLs, UPDATE the id and the peer URLs, the others the id."""

    kind: MemberChangeKind
    member: Member


def change_members(membership: Membership, change: MemberChange) -> Membership:
    """The membership after `change`.

    Raises:
        MemberIdExistsError, PeerUrlExistsError, MemberNotFoundError, MemberNotLearnerError: the change is not allowed; nothing happens.
    """
    members = dict(membership.members)
    target = change.member
    if change.kind is MemberChangeKind.ADD:
        if target.id in members or target.id in membership.removed_ids:
            raise MemberIdExistsError
        _check_urls_free(membership, target)
        members[target.id] = replace(target, name="", client_urls=())
        return replace(membership, members=members)
    present = members.get(target.id)
    if present is None:
        raise MemberNotFoundError
    match change.kind:
        case MemberChangeKind.REMOVE:
            del members[target.id]
            return replace(membership, members=members, removed_ids=membership.removed_ids | {target.id})
        case MemberChangeKind.UPDATE:
            _check_urls_free(membership, target)
            members[target.id] = replace(present, peer_urls=target.peer_urls)
        case MemberChangeKind.PROMOTE:
            if not present.is_learner:
                raise MemberNotLearnerError
            members[target.id] = replace(present, is_learner=False)
        case unknown:
            assert_never(unknown)
    return replace(membership, members=members)


def _check_urls_free(membership: Membership, target: Member) -> None:
    """No other member may listen where this one does."""
    taken = {url for member in membership.members.values() if member.id != target.id for url in member.peer_urls}
    if taken & set(target.peer_urls):
        raise PeerUrlExistsError


def encode_change(change: MemberChange, proposal: ProposalId) -> bytes:
    """The context of the configuration change that carries `change`."""
    member = change.member
    return internal.MemberChange(
        proposal_member=proposal.member,
        proposal_incarnation=proposal.incarnation,
        proposal_counter=proposal.counter,
        kind=internal.MemberChangeKind.ValueType(change.kind),
        member=internal.StoredMember(id=member.id, peer_urls=member.peer_urls, is_learner=member.is_learner),
    ).SerializeToString(deterministic=True)


def decode_change(context: bytes) -> tuple[MemberChange, ProposalId]:
    """The opposite of `encode_change`.

    Raises:
        DecodeError, ValueError: not such a context.
    """
    encoded = internal.MemberChange.FromString(context)
    member = Member(id=NodeId(encoded.member.id), peer_urls=tuple(encoded.member.peer_urls), is_learner=encoded.member.is_learner)
    proposal = ProposalId(NodeId(encoded.proposal_member), encoded.proposal_incarnation, encoded.proposal_counter)
    return MemberChange(kind=MemberChangeKind(encoded.kind), member=member), proposal
