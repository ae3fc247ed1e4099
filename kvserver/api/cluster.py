"""The Cluster service: the members, and changing them at run time.

Rules: the header's revision stays unset (as etcd leaves it). Members come in ascending order of their ids. A linearizable list waits for
the read index; clients ask for that by default. Peer URLs are checked here, once, so that nothing malformed reaches the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, Reads, Reconfiguration
from kvserver.config import parse_url
from kvserver.config.errors import ValueSyntaxError
from kvserver.errors import MemberUrlsInvalidError
from kvserver.pb import rpc_pb2
from kvserver.types import Member, NodeId

__all__ = ["ClusterService"]


class ClusterService:
    """The handlers of `Cluster`."""

    def __init__(self, *, guard: Guard, reads: Reads, view: ClusterView, reconfiguration: Reconfiguration) -> None:
        self._guard = guard
        self._reads = reads
        self._view = view
        self._reconfiguration = reconfiguration

    async def member_list(self, request: rpc_pb2.MemberListRequest, call: Call) -> rpc_pb2.MemberListResponse:
        """All members, learners included."""
        self._guard.admit(call)
        if request.linearizable:
            await self._reads.wait_linearizable(self._guard.deadline_s(call))
        response = rpc_pb2.MemberListResponse(members=self._members())
        self._guard.fill(response.header)
        return response

    async def member_add(self, request: rpc_pb2.MemberAddRequest, call: Call) -> rpc_pb2.MemberAddResponse:
        """Add a voter or a learner; it is started afterwards, with state `existing`."""
        self._guard.admit(call)
        urls = _checked(request.peerURLs)
        member = await self._reconfiguration.add(urls, is_learner=request.isLearner, deadline_s=self._guard.deadline_s(call))
        response = rpc_pb2.MemberAddResponse(member=_to_pb(member), members=self._members())
        self._guard.fill(response.header)
        return response

    async def member_remove(self, request: rpc_pb2.MemberRemoveRequest, call: Call) -> rpc_pb2.MemberRemoveResponse:
        """Remove a member, for good: its id never comes back."""
        self._guard.admit(call)
        await self._reconfiguration.remove(NodeId(request.ID), deadline_s=self._guard.deadline_s(call))
        response = rpc_pb2.MemberRemoveResponse(members=self._members())
        self._guard.fill(response.header)
        return response

    async def member_update(self, request: rpc_pb2.MemberUpdateRequest, call: Call) -> rpc_pb2.MemberUpdateResponse:
        """Give a member other peer URLs."""
        self._guard.admit(call)
        urls = _checked(request.peerURLs)
        await self._reconfiguration.update(NodeId(request.ID), urls, deadline_s=self._guard.deadline_s(call))
        response = rpc_pb2.MemberUpdateResponse(members=self._members())
        self._guard.fill(response.header)
        return response

    async def member_promote(self, request: rpc_pb2.MemberPromoteRequest, call: Call) -> rpc_pb2.MemberPromoteResponse:
        """Make a voter of a learner that is in sync with the leader."""
        self._guard.admit(call)
        await self._reconfiguration.promote(NodeId(request.ID), deadline_s=self._guard.deadline_s(call))
        response = rpc_pb2.MemberPromoteResponse(members=self._members())
        self._guard.fill(response.header)
        return response

    def _members(self) -> list[rpc_pb2.Member]:
        return [_to_pb(member) for member in sorted(self._view.members(), key=lambda member: member.id)]


def _to_pb(member: Member) -> rpc_pb2.Member:
    return rpc_pb2.Member(
        ID=member.id, name=member.name, peerURLs=member.peer_urls, clientURLs=member.client_urls, isLearner=member.is_learner
    )


def _checked(urls: Sequence[str]) -> list[str]:
    """The URLs in their canonical form. Raises MemberUrlsInvalidError."""
    if not urls:
        raise MemberUrlsInvalidError
    try:
        return [str(parse_url(url)) for url in urls]
    except ValueSyntaxError as error:
        raise MemberUrlsInvalidError from error
