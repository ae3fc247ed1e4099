"""Changing the membership at run time: which change is safe now, and carrying it out.

Purpose: MemberAdd, MemberRemove, MemberUpdate, MemberPromote and MoveLeader as the node does them. The checks are pure functions of the
membership and of who is connected; the changes themselves are raft configuration changes whose context is the membership change.

Rules
- With `--strict-reconfig-check` a change that would leave fewer started voters than a quorum is refused, and so is one while the cluster
  is not healthy (a voter unconnected for `HEALTHY_S`).
- A learner is promoted by the leader only, when it has at least `IN_SYNC_FRACTION` of the leader's log; a follower asks its leader.
- A new member's id is drawn from its URLs, the cluster's token and the time: the same URLs added again get another id.

Source: etcd's server.go (mayAddMember, mayRemoveMember, isLearnerReady) and membership/cluster.go (IsReadyTo...).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import Message as PbMessage

from kvserver.apply import MemberChange, MemberChangeKind
from kvserver.errors import (
    BadLeaderTransfereeError,
    LearnerNotReadyError,
    MemberIdExistsError,
    MemberNotFoundError,
    MemberNotLearnerError,
    NotEnoughStartedMembersError,
    NotLeaderError,
    PeerUrlExistsError,
    TimeoutLeaderTransferError,
    TooManyLearnersError,
    UnhealthyError,
)
from kvserver.node.membership import member_id
from kvserver.types import Member, NodeId
from raft.confchange import ConfChange, ConfChangeType
from raft.types import Index

HEALTHY_S: Final = 5.0
IN_SYNC_FRACTION: Final = 0.9

Members = Mapping[NodeId, Member]


class ChangeProposals(Protocol):
    """What carries a change out."""

    async def propose_change(self, change: MemberChange, conf_change: ConfChange, *, deadline_s: float) -> PbMessage: ...


class Leadership(Protocol):
    """What is asked of the driver."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...
    def match_index(self, peer: NodeId) -> Index | None: ...
    def transfer_leader(self, to: NodeId) -> None: ...
    async def wait_leader_change(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconfigurationRules:
    """The operator's say."""

    strict: bool = True
    max_learners: int = 1
    election_timeout_s: float = 1.0


def has_quorum_to_add(members: Members) -> bool:
    """Enough voters are started for one more (not yet started) voter. One started member may always become two."""
    voters = [member for member in members.values() if not member.is_learner]
    started = sum(1 for member in voters if member.name)
    if started == 1 and len(voters) == 1:
        return True
    return started >= (len(voters) + 1) // 2 + 1


def has_quorum_to_remove(members: Members, target: NodeId) -> bool:
    """Enough voters are started without `target`; the last member can't be removed."""
    if len(members) == 1:
        return False
    voters = [member for member in members.values() if not member.is_learner and member.id != target]
    return sum(1 for member in voters if member.name) >= len(voters) // 2 + 1


def has_quorum_to_promote(members: Members, target: NodeId) -> bool:
    """Enough voters are started once `target`, which runs, is one of them."""
    voters = [member for member in members.values() if not member.is_learner]
    return 1 + sum(1 for member in voters if member.name and member.id != target) >= (len(voters) + 1) // 2 + 1


class Reconfiguration:
    """The changes, as the api asks for them. `connected_s` answers for how long a peer has been connected (None: it is not)."""

    def __init__(
        self,
        *,
        self_id: NodeId,
        cluster_token: Callable[[], str],
        members: Callable[[], Members],
        connected_s: Callable[[NodeId], float | None],
        proposals: ChangeProposals,
        leadership: Leadership,
        ask_leader_to_promote: Callable[[NodeId, NodeId, float], Awaitable[None]],
        rules: ReconfigurationRules,
    ) -> None:
        self._self_id = self_id
        self._cluster_token = cluster_token
        self._members = members
        self._connected_s = connected_s
        self._proposals = proposals
        self._leadership = leadership
        self._ask_leader_to_promote = ask_leader_to_promote
        self._rules = rules
        self._lock = asyncio.Lock()

    async def add(self, peer_urls: Sequence[str], *, is_learner: bool, deadline_s: float) -> Member:
        """Add a member at these URLs (checked by the caller) and return it.

        Raises:
            PeerUrlExistsError, MemberIdExistsError, TooManyLearnersError, NotEnoughStartedMembersError, UnhealthyError; as `propose` does.
        """
        urls = tuple(sorted(peer_urls))
        member = Member(id=member_id(urls, f"{self._cluster_token()}{time.time_ns()}"), peer_urls=urls, is_learner=is_learner)
        async with self._lock:
            members = self._members()
            if {url for present in members.values() for url in present.peer_urls} & set(urls):
                raise PeerUrlExistsError
            if member.id in members:
                raise MemberIdExistsError
            if is_learner and sum(1 for present in members.values() if present.is_learner) >= self._rules.max_learners:
                raise TooManyLearnersError
            if self._rules.strict:
                if not is_learner and not has_quorum_to_add(members):
                    raise NotEnoughStartedMembersError
                if not self._all_voters_connected():
                    raise UnhealthyError
            kind = ConfChangeType.ADD_LEARNER_NODE if is_learner else ConfChangeType.ADD_NODE
            await self._carry_out(MemberChangeKind.ADD, member, kind, deadline_s)
        return member

    async def remove(self, target: NodeId, *, deadline_s: float) -> None:
        """Remove a member.

        Raises:
            MemberNotFoundError, NotEnoughStartedMembersError, UnhealthyError; as `propose` does.
        """
        async with self._lock:
            members = self._members()
            if target not in members:
                raise MemberNotFoundError
            if self._rules.strict:
                self._check_may_remove(members, target)
            await self._carry_out(MemberChangeKind.REMOVE, members[target], ConfChangeType.REMOVE_NODE, deadline_s)

    async def update(self, target: NodeId, peer_urls: Sequence[str], *, deadline_s: float) -> None:
        """Give a member other peer URLs (checked by the caller).

        Raises:
            MemberNotFoundError, PeerUrlExistsError; as `propose` does.
        """
        async with self._lock:
            member = Member(id=target, peer_urls=tuple(sorted(peer_urls)))
            await self._carry_out(MemberChangeKind.UPDATE, member, ConfChangeType.UPDATE_NODE, deadline_s)

    async def promote(self, target: NodeId, *, deadline_s: float) -> None:
        """Make a voter of a learner that is in sync; on a follower the leader is asked to.

        Raises:
            MemberNotFoundError, MemberNotLearnerError, LearnerNotReadyError, NotEnoughStartedMembersError; as `propose` does.
        """
        if not self._leadership.is_leader:
            await self._ask_leader_to_promote(self._leadership.leader_id, target, deadline_s)
            return
        async with self._lock:
            members = self._members()
            if target not in members:
                raise MemberNotFoundError
            if not members[target].is_learner:
                raise MemberNotLearnerError
            own, theirs = self._leadership.match_index(self._self_id), self._leadership.match_index(target)
            if own is None or theirs is None or theirs < own * IN_SYNC_FRACTION:
                raise LearnerNotReadyError
            if self._rules.strict and not has_quorum_to_promote(members, target):
                raise NotEnoughStartedMembersError
            await self._carry_out(MemberChangeKind.PROMOTE, members[target], ConfChangeType.ADD_NODE, deadline_s)

    async def promote_here(self, target: NodeId, deadline_s: float) -> None:
        """As `promote`, for a member that asks: it does not travel on. Raises NotLeaderError as well."""
        if not self._leadership.is_leader:
            raise NotLeaderError
        await self.promote(target, deadline_s=deadline_s)

    async def move_leader(self, to: NodeId) -> None:
        """Hand leadership to `to` and return when it leads.

        Raises:
            NotLeaderError: this member does not lead.
            BadLeaderTransfereeError: `to` is no voter.
            TimeoutLeaderTransferError: it does not lead after an election timeout.
        """
        if not self._leadership.is_leader:
            raise NotLeaderError
        target = self._members().get(to)
        if target is None or target.is_learner:
            raise BadLeaderTransfereeError
        if to == self._self_id:
            return
        self._leadership.transfer_leader(to)
        try:
            async with asyncio.timeout(self._rules.election_timeout_s):
                while self._leadership.leader_id != to:
                    await self._leadership.wait_leader_change()
        except TimeoutError:
            raise TimeoutLeaderTransferError from None

    async def _carry_out(self, kind: MemberChangeKind, member: Member, raft_kind: ConfChangeType, deadline_s: float) -> None:
        change = MemberChange(kind=kind, member=member)
        await self._proposals.propose_change(change, ConfChange(type=raft_kind, node_id=member.id), deadline_s=deadline_s)

    def _check_may_remove(self, members: Members, target: NodeId) -> None:
        if members[target].is_learner:
            return
        if not has_quorum_to_remove(members, target):
            raise NotEnoughStartedMembersError
        if target != self._self_id and self._connected_s(target) is None:
            return  # a member that is down is no part of the active quorum
        voters = [member.id for member in members.values() if not member.is_learner]
        active = sum(1 for voter in voters if self._is_healthy(voter))
        if active - 1 < 1 + (len(voters) - 1) // 2:
            raise UnhealthyError

    def _all_voters_connected(self) -> bool:
        return all(self._is_healthy(member.id) for member in self._members().values() if not member.is_learner)

    def _is_healthy(self, voter: NodeId) -> bool:
        if voter == self._self_id:
            return True
        since_s = self._connected_s(voter)
        return since_s is not None and since_s >= HEALTHY_S
