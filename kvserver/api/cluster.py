"""The Cluster service: the list of members.

Rules: the header's revision stays unset (as etcd leaves it). The members come in ascending order of their ids. A linearizable list waits
for the read index; clients ask for that by default.
"""

from __future__ import annotations

from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, Reads
from kvserver.pb import rpc_pb2

__all__ = ["ClusterService"]


class ClusterService:
    """The handlers of `Cluster`."""

    def __init__(self, *, guard: Guard, reads: Reads, view: ClusterView) -> None:
        self._guard = guard
        self._reads = reads
        self._view = view

    async def member_list(self, request: rpc_pb2.MemberListRequest, call: Call) -> rpc_pb2.MemberListResponse:
        """All members, learners included."""
        self._guard.admit(call)
        if request.linearizable:
            await self._reads.wait_linearizable(self._guard.deadline_s(call))
        response = rpc_pb2.MemberListResponse()
        for member in sorted(self._view.members(), key=lambda member: member.id):
            response.members.add(
                ID=member.id,
                name=member.name,
                peerURLs=member.peer_urls,
                clientURLs=member.client_urls,
                isLearner=member.is_learner,
            )
        self._guard.fill(response.header)
        return response
