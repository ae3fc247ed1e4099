"""The KV service: Range, Put, DeleteRange, Txn, Compact.

Purpose: check the arguments, wait for what the call's consistency needs, and hand it to the store (reads) or the cluster (writes).

Rules
- Arguments are checked before anything is proposed: a request that apply would refuse costs no entry.
- What would grow the store passes the quota before it is proposed (quota.py); a put is charged its encoded size, which is a few bytes more
  than key and value, and known without another copy of the value. While the CORRUPT alarm is raised nothing is read or written.
- A linearizable read waits for the read index, a serializable one reads at once. A transaction without puts and deletes is a read: it takes
  no place in the log; it is serializable only if it holds ranges and all of them are.
- What a write answers has room before it is proposed, if it may be much (write_answers.py).
- Writes are sent once. An availability error says that the outcome is unknown.
- While a write waits for the cluster, its bytes are in memory once, in the entry: nobody here holds on to the request (hence `del`).

Source: etcd's v3_server.go for the order of checks. Deviations: a transaction of comparisons alone is linearizable here; etcd reads it as a
serializable one. Under the CORRUPT alarm etcd refuses writes and goes on serving reads.
"""

from __future__ import annotations

from typing import cast

from google.protobuf.message import Message

from kvserver.api.answers import Answers
from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, KvReader, Proposals, Reads
from kvserver.api.quota import QuotaGate
from kvserver.api.write_answers import operations, take_room
from kvserver.apply import PUT_OVERHEAD_BYTES, txn_cost_bytes
from kvserver.commands import CommandKind
from kvserver.errors import CorruptError, RequestTooLargeError
from kvserver.mvcc.check import check_delete, check_put, check_range, check_txn
from kvserver.pb import rpc_pb2
from kvserver.types import Revision

__all__ = ["KvService"]


class KvService:
    """The handlers of `KV`.

    Args:
        max_request_bytes: the largest request that may become an entry.
        max_txn_ops: the most operations of a transaction.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        proposals: Proposals,
        reads: Reads,
        reader: KvReader,
        view: ClusterView,
        quota: QuotaGate,
        answers: Answers,
        max_request_bytes: int,
        max_txn_ops: int,
    ) -> None:
        self._guard = guard
        self._proposals = proposals
        self._reads = reads
        self._reader = reader
        self._view = view
        self._quota = quota
        self._answers = answers
        self._max_request_bytes = max_request_bytes
        self._max_txn_ops = max_txn_ops

    async def range(self, request: rpc_pb2.RangeRequest, call: Call) -> rpc_pb2.RangeResponse:
        """Keys in `[key, range_end)` at a revision."""
        serializable = request.serializable
        self._guard.admit(call, for_learner=serializable)
        check_range(request)
        if not serializable:
            await self._reads.wait_linearizable(self._guard.deadline_s(call))
        self._refuse_if_corrupt()
        response = await self._reader.read_range(request, self._answers.slot(call))
        self._guard.fill(response.header)
        return response

    async def put(self, request: rpc_pb2.PutRequest, call: Call) -> rpc_pb2.PutResponse:
        """Set one key."""
        self._guard.admit(call)
        check_put(request)
        proposing = self._propose(CommandKind.PUT, request, call, cost_bytes=PUT_OVERHEAD_BYTES + call.request_bytes)
        answers_with_value = request.prev_kv
        del request
        response = cast("rpc_pb2.PutResponse", await proposing)
        if answers_with_value:
            self._answers.slot(call).add(response.ByteSize())
        self._guard.fill(response.header)
        return response

    async def delete_range(self, request: rpc_pb2.DeleteRangeRequest, call: Call) -> rpc_pb2.DeleteRangeResponse:
        """Delete the keys in `[key, range_end)`."""
        self._guard.admit(call)
        check_delete(request)
        slot = await take_room(self._reader, self._answers, request, call)
        response = cast("rpc_pb2.DeleteRangeResponse", await self._propose(CommandKind.DELETE_RANGE, request, call))
        slot.add(response.ByteSize())
        self._guard.fill(response.header)
        return response

    async def txn(self, request: rpc_pb2.TxnRequest, call: Call) -> rpc_pb2.TxnResponse:
        """Compare, then do one of two lists of operations, atomically."""
        self._guard.admit(call)
        check_txn(request, max_txn_ops=self._max_txn_ops)
        if _is_read_only(request):
            if not _is_serializable(request):
                await self._reads.wait_linearizable(self._guard.deadline_s(call))
            self._refuse_if_corrupt()
            response = await self._reader.read_txn(request, self._answers.slot(call))
        else:
            slot = await take_room(self._reader, self._answers, request, call)
            proposing = self._propose(CommandKind.TXN, request, call, cost_bytes=txn_cost_bytes(request))
            del request
            response = cast("rpc_pb2.TxnResponse", await proposing)
            slot.add(response.ByteSize())
        self._guard.fill(response.header)
        return response

    async def compact(self, request: rpc_pb2.CompactionRequest, call: Call) -> rpc_pb2.CompactionResponse:
        """Forget what was overwritten up to a revision; with `physical` also wait, as long as the client does, until the disk has."""
        self._guard.admit(call)
        response = cast("rpc_pb2.CompactionResponse", await self._propose(CommandKind.COMPACT, request, call))
        if request.physical:
            await self._reader.wait_compacted(Revision(request.revision))
        self._guard.fill(response.header)
        return response

    async def _propose(self, kind: CommandKind, request: Message, call: Call, *, cost_bytes: int = 0) -> Message:
        """Propose the request; `cost_bytes` is what the quota charges for it."""
        if call.request_bytes > self._max_request_bytes:
            raise RequestTooLargeError
        deadline_s = self._guard.deadline_s(call)
        if cost_bytes:
            await self._quota.admit(cost_bytes, deadline_s=deadline_s)
        try:
            proposing = self._proposals.propose(kind, request, deadline_s=deadline_s, encoded=call.take_raw())
            del request
            return await proposing
        finally:
            self._quota.release(cost_bytes)

    def _refuse_if_corrupt(self) -> None:
        if any(alarm.alarm == rpc_pb2.CORRUPT for alarm in self._view.alarms()):
            raise CorruptError


def _is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    return all(operation.HasField("request_range") for operation in operations(request))


def _is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """Whether a read-only transaction may read without the read index."""
    serializable = [operation.request_range.serializable for operation in operations(request)]
    return bool(serializable) and all(serializable)
