"""The Lease service: LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive, LeaseLeases.

Rules
- What time and chance decide is decided here, before anything is proposed: an id that the client leaves open, and the smallest TTL, which
  is `MIN_TTL_S` or one and a half election timeouts: a shorter lease could not outlive the loss of a leader.
- A lease that doesn't exist is no error where it is asked about: its TTL is 0 in a keep-alive, -1 in a time-to-live.
- A keep-alive stream reads up to `MAX_AHEAD` requests ahead, renews those that are there together, and answers in their order. It ends when
  the client has closed its side and everything is answered; with the first error otherwise.
- A grant passes the quota like a put.

Source: etcd's v3rpc/lease.go and v3_server.go. Deviations: time-to-live and the list are linearizable; the list comes in the order of the
ids (etcd's is by what is left, which only its leader knows).
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Final, Protocol, cast

from kvserver.api.answers import Answers
from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, KvReader, Proposals, Reads, StreamCall
from kvserver.api.quota import QuotaGate
from kvserver.apply import LEASE_COST_BYTES
from kvserver.commands import CommandKind
from kvserver.errors import LeaseExistsError, LeaseTtlTooLargeError
from kvserver.lease import MAX_TTL_S
from kvserver.pb import rpc_pb2
from kvserver.types import LeaseId

__all__ = ["MAX_AHEAD", "MIN_TTL_S", "LeaseService", "LeaseTimes", "min_ttl_s"]

MIN_TTL_S: Final = 2
MAX_AHEAD: Final = 128


class LeaseTimes(Protocol):
    """The leader's knowledge, wherever the leader is."""

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        """Give each lease its whole TTL from now on; returns the TTLs, 0 for a lease that doesn't exist. Raises `RequestError` leaves."""

    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None:
        """The whole seconds that a lease has left, None if it doesn't exist. Raises `RequestError` leaves."""


def min_ttl_s(election_timeout_s: float) -> int:
    """The smallest TTL that is granted."""
    return max(MIN_TTL_S, math.ceil(1.5 * election_timeout_s))


def draw_lease_id() -> int:
    """An id for a lease whose client leaves that open: positive."""
    return secrets.randbelow((1 << 63) - 1) + 1


class LeaseService:
    """The handlers of `Lease`. `draw_id` is for tests."""

    def __init__(
        self,
        *,
        guard: Guard,
        proposals: Proposals,
        reads: Reads,
        reader: KvReader,
        view: ClusterView,
        times: LeaseTimes,
        quota: QuotaGate,
        answers: Answers,
        min_ttl_s: int,
        draw_id: Callable[[], int] = draw_lease_id,
    ) -> None:
        self._guard = guard
        self._proposals = proposals
        self._reads = reads
        self._reader = reader
        self._view = view
        self._times = times
        self._quota = quota
        self._answers = answers
        self._min_ttl_s = min_ttl_s
        self._draw_id = draw_id

    async def grant(self, request: rpc_pb2.LeaseGrantRequest, call: Call) -> rpc_pb2.LeaseGrantResponse:
        """Make a lease."""
        self._guard.admit(call)
        if request.TTL > MAX_TTL_S:
            raise LeaseTtlTooLargeError
        ttl_s = max(request.TTL, self._min_ttl_s)
        deadline_s = self._guard.deadline_s(call)
        await self._quota.admit(LEASE_COST_BYTES, deadline_s=deadline_s)
        try:
            response = await self._grant(request.ID, ttl_s, deadline_s)
        finally:
            self._quota.release(LEASE_COST_BYTES)
        self._guard.fill(response.header)
        return response

    async def _grant(self, lease_id: int, ttl_s: int, deadline_s: float) -> rpc_pb2.LeaseGrantResponse:
        while True:
            proposed = rpc_pb2.LeaseGrantRequest(ID=lease_id or self._draw_id(), TTL=ttl_s)
            try:
                response = await self._proposals.propose(CommandKind.LEASE_GRANT, proposed, deadline_s=deadline_s)
            except LeaseExistsError:
                if lease_id:
                    raise
            else:
                return cast("rpc_pb2.LeaseGrantResponse", response)

    async def revoke(self, request: rpc_pb2.LeaseRevokeRequest, call: Call) -> rpc_pb2.LeaseRevokeResponse:
        """End a lease, and with it its keys."""
        self._guard.admit(call)
        proposing = self._proposals.propose(CommandKind.LEASE_REVOKE, request, deadline_s=self._guard.deadline_s(call))
        response = cast("rpc_pb2.LeaseRevokeResponse", await proposing)
        self._guard.fill(response.header)
        return response

    async def time_to_live(self, request: rpc_pb2.LeaseTimeToLiveRequest, call: Call) -> rpc_pb2.LeaseTimeToLiveResponse:
        """What a lease has left, and on demand its keys."""
        self._guard.admit(call)
        deadline_s = self._guard.deadline_s(call)
        await self._reads.wait_linearizable(deadline_s)
        lease = LeaseId(request.ID)
        found = await self._reader.read_lease(lease, self._answers.slot(call), with_keys=request.keys)
        remaining_s = None if found.ttl_s is None else await self._times.remaining_s(lease, deadline_s)
        response = rpc_pb2.LeaseTimeToLiveResponse(header=rpc_pb2.ResponseHeader(revision=found.revision), ID=lease, TTL=-1)
        if found.ttl_s is not None and remaining_s is not None:
            response.TTL, response.grantedTTL = remaining_s, found.ttl_s
            response.keys.extend(found.keys)
        self._guard.fill(response.header)
        return response

    async def leases(self, request: rpc_pb2.LeaseLeasesRequest, call: Call) -> rpc_pb2.LeaseLeasesResponse:
        """All leases."""
        del request
        self._guard.admit(call)
        await self._reads.wait_linearizable(self._guard.deadline_s(call))
        response = await self._reader.read_leases(self._answers.slot(call))
        self._guard.fill(response.header)
        return response

    async def keep_alive(
        self, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest], call: StreamCall
    ) -> AsyncGenerator[rpc_pb2.LeaseKeepAliveResponse, None]:
        """Renew the leases that the client names, one after the other."""
        self._guard.admit(call)
        ahead = _ReadAhead(requests)
        try:
            while leases := await ahead.take():
                ttls = await self._times.renew(leases, self._guard.deadline_s())
                header = rpc_pb2.ResponseHeader(revision=self._view.status().revision)
                self._guard.fill(header)
                for lease, ttl_s in zip(leases, ttls, strict=True):
                    yield rpc_pb2.LeaseKeepAliveResponse(header=header, ID=lease, TTL=ttl_s)
        finally:
            await ahead.close()


class _ReadAhead:
    """The leases that a client names, read before they are asked for; at most `MAX_AHEAD` numbers wait, whatever the messages' sizes."""

    def __init__(self, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]) -> None:
        self._requests = requests
        self._queue: asyncio.Queue[LeaseId | None] = asyncio.Queue(MAX_AHEAD)
        self._is_over = False
        self._task = asyncio.get_running_loop().create_task(self._read(), name="keep-alive-requests")

    async def take(self) -> list[LeaseId]:
        """What is there, at least one; empty at the end. Raises what reading raised, when all before it was taken."""
        taken: list[LeaseId] = []
        while not self._is_over and (not taken or not self._queue.empty()):
            lease = await self._queue.get()
            if lease is None:
                self._is_over = True
            else:
                taken.append(lease)
        if not taken:
            await self._task
        return taken

    async def close(self) -> None:
        """Read no more."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # it was raised by `take`, or nobody cares any more

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                await self._queue.put(LeaseId(request.ID))
        except Exception:
            await self._queue.put(None)
            raise
        await self._queue.put(None)
