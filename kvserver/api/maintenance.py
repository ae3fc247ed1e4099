"""The Maintenance service: Status, HashKV and the list of alarms.

Rules: Status is answered by any member in any state, a learner and a member without a leader included. Alarms are listed as a linearizable
read, so that a client that asks any member hears the same; raising and clearing them is not served by this version.
"""

from __future__ import annotations

from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, KvReader, Reads, Reconfiguration
from kvserver.config import ETCD_API_VERSION
from kvserver.errors import NoLeaderError, UnimplementedError
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId, Revision
from raft.types import NO_NODE

__all__ = ["MaintenanceService"]

_STORAGE_VERSION = ".".join(ETCD_API_VERSION.split(".")[:2]) + ".0"


class MaintenanceService:
    """The handlers of `Maintenance`."""

    def __init__(self, *, guard: Guard, reads: Reads, reader: KvReader, view: ClusterView, reconfiguration: Reconfiguration) -> None:
        self._guard = guard
        self._reads = reads
        self._reader = reader
        self._view = view
        self._reconfiguration = reconfiguration

    async def status(self, request: rpc_pb2.StatusRequest, call: Call) -> rpc_pb2.StatusResponse:
        """This member as it is."""
        self._guard.admit(call, for_learner=True)
        view, status = self._view, self._view.status()
        errors = list(status.errors)
        if view.leader_id == NO_NODE:
            errors.append(NoLeaderError.message)
        errors += [f"memberID:{alarm.memberID} alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} " for alarm in view.alarms()]
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
        """The alarms that are raised, of one kind or of all."""
        self._guard.admit(call)
        if request.action != rpc_pb2.AlarmRequest.GET:
            raise UnimplementedError
        await self._reads.wait_linearizable(self._guard.deadline_s(call))
        wanted = [alarm for alarm in self._view.alarms() if request.alarm in (rpc_pb2.NONE, alarm.alarm)]
        response = rpc_pb2.AlarmResponse(alarms=wanted)
        response.header.revision = self._view.status().revision
        self._guard.fill(response.header)
        return response
