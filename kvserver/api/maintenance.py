"""The Maintenance service: Status, HashKV, alarms, and the change of leader.

Rules: Status is answered by any member in any state, a learner and a member without a leader included. Alarms are listed as a linearizable
read, so that a client that asks any member hears the same; they are raised and disarmed through the log. As in etcd, an alarm is named by
its member and its kind, neither of which stands for "all" here: a client that disarms all (etcdctl does) lists them first.
"""

from __future__ import annotations

from typing import cast

from kvserver.api.alarms import alarm_text
from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, KvReader, Proposals, Reads, Reconfiguration
from kvserver.apply import select
from kvserver.commands import CommandKind
from kvserver.config import ETCD_API_VERSION
from kvserver.errors import NoLeaderError, UnimplementedError
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId, Revision
from raft.types import NO_NODE

__all__ = ["MaintenanceService"]

_STORAGE_VERSION = ".".join(ETCD_API_VERSION.split(".")[:2]) + ".0"


class MaintenanceService:
    """The handlers of `Maintenance`."""

    def __init__(
        self,
        *,
        guard: Guard,
        proposals: Proposals,
        reads: Reads,
        reader: KvReader,
        view: ClusterView,
        reconfiguration: Reconfiguration,
    ) -> None:
        self._guard = guard
        self._proposals = proposals
        self._reads = reads
        self._reader = reader
        self._view = view
        self._reconfiguration = reconfiguration

    async def status(self, request: rpc_pb2.StatusRequest, call: Call) -> rpc_pb2.StatusResponse:
        """This member as it is. `errors`: this member's own want of disk space, no leader, and the alarms of the whole cluster."""
        self._guard.admit(call, for_learner=True)
        view, status = self._view, self._view.status()
        errors = list(status.errors)
        if view.leader_id == NO_NODE:
            errors.append(NoLeaderError.message)
        errors += map(alarm_text, view.alarms())
        response = rpc_pb2.StatusResponse(
            version=ETCD_API_VERSION,
            dbSize=status.db_bytes,
            leader=view.leader_id,
            raftIndex=status.committed_index,
            raftTerm=view.term,
            raftAppliedIndex=status.applied_index,
            errors=errors,
            dbSizeInUse=status.db_in_use_bytes,
            isLearner=view.is_learner,
            storageVersion=_STORAGE_VERSION,
            dbSizeQuota=status.db_quota_bytes,
        )
        response.header.revision = status.revision
        self._guard.fill(response.header)
        return response

    async def hash_kv(self, request: rpc_pb2.HashKVRequest, call: Call) -> rpc_pb2.HashKVResponse:
        """The hash of this member's keys and values up to a revision; equal on all members that have applied it."""
        self._guard.admit(call)
        response = await self._reader.hash_kv(Revision(request.revision))
        self._guard.fill(response.header)
        return response

    async def move_leader(self, request: rpc_pb2.MoveLeaderRequest, call: Call) -> rpc_pb2.MoveLeaderResponse:
        """Hand leadership to another voter; answered when it leads. The leader only."""
        self._guard.admit(call)
        await self._reconfiguration.move_leader(NodeId(request.targetID))
        response = rpc_pb2.MoveLeaderResponse()
        response.header.revision = self._view.status().revision
        self._guard.fill(response.header)
        return response

    async def alarm(self, request: rpc_pb2.AlarmRequest, call: Call) -> rpc_pb2.AlarmResponse:
        """List the alarms that are raised (of one kind, or of all for NONE), raise one, or disarm one.

        Raises:
            UnimplementedError: an action that doesn't exist.
            TooManyRequestsError: so many alarms are raised that there is no room for another.
        """
        self._guard.admit(call)
        deadline_s = self._guard.deadline_s(call)
        match request.action:
            case rpc_pb2.AlarmRequest.GET:
                await self._reads.wait_linearizable(deadline_s)
                response = rpc_pb2.AlarmResponse(alarms=select(tuple(self._view.alarms()), request.alarm))
            case rpc_pb2.AlarmRequest.ACTIVATE | rpc_pb2.AlarmRequest.DEACTIVATE:
                answer = await self._proposals.propose(CommandKind.ALARM, request, deadline_s=deadline_s)
                response = cast("rpc_pb2.AlarmResponse", answer)
            case _:  # the enum is open: a newer client may know more
                raise UnimplementedError
        response.header.revision = self._view.status().revision
        self._guard.fill(response.header)
        return response
