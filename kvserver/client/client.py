"""The client: calls with failover, and a method per RPC.

    async with Client(ClientConfig(endpoints=(parse_endpoint("127.0.0.1:2379"),))) as client:
        await client.put(b"key", b"value")
        answer = await client.get(b"key")

Rules: reads go to the next endpoint until the deadline; mutations only while they certainly had no effect (policy.py). Ranges are half-open
[key, range_end). Errors: everything in `kvserver.client.errors`. Bound to the event loop it was made in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from kvserver.client import methods
from kvserver.client.config import MAX_REQUEST_BYTES, ClientConfig
from kvserver.client.connection import Connection, Metadata
from kvserver.client.errors import RESOURCE_EXHAUSTED, CallTimeoutError, ClientError, ConnectError, ServerError
from kvserver.client.methods import Method, RequestT, ResponseT
from kvserver.client.policy import backoff_s, changes_nothing, may_retry
from kvserver.client.pool import EndpointPool
from kvserver.client.watching import Watch
from kvserver.pb import debug_pb2
from kvserver.pb import rpc_pb2 as pb

AUTH_NOT_ENABLED = "etcdserver: authentication is not enabled"


class Client:
    """A connection to a cluster through any of its endpoints. Use it as an async context manager, or `close` it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._pool = EndpointPool(config)
        self._metadata: Metadata | None = None if config.user else ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way fail."""
        await self._pool.close()

    async def call(self, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None) -> ResponseT:
        """Any unary RPC on any endpoint. `timeout_s` (default: the configured one) counts from the first established connection.

        Raises `ConnectError` (nothing was sent), `CallTimeoutError`, `ServerError`.
        """
        _check_size(request)
        limit_s = self._config.call_timeout_s if timeout_s is None else timeout_s
        connection = await self._pool.wait_connected()
        deadline = _Deadline(limit_s)
        metadata = await self._authenticated(connection, deadline)
        attempt = 0
        while True:
            try:
                return await connection.call(method, request, deadline.remaining_s(), metadata)
            except ServerError as error:
                attempt += 1
                if not may_retry(method, error) or not deadline.allows(backoff_s(attempt)):
                    raise
                failure = error
            await asyncio.sleep(backoff_s(attempt))
            try:
                connection = await self._pool.wait_connected(avoid=connection, timeout_s=deadline.cap(self._config.dial_timeout_s))
            except ConnectError:
                raise failure from None

    async def call_endpoint(
        self, endpoint: str, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None
    ) -> ResponseT:
        """The same on one endpoint, given as written in the configuration; no failover, no retry."""
        connection = self._pool.connection_to(endpoint)
        if connection is None:
            raise ValueError(f"not an endpoint of this client: {endpoint}")
        await connection.wait_ready(self._config.dial_timeout_s)
        deadline = _Deadline(self._config.call_timeout_s if timeout_s is None else timeout_s)
        metadata = await self._authenticated(connection, deadline)
        return await connection.call(method, request, deadline.remaining_s(), metadata)

    async def stream_endpoint(
        self, endpoint: str, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None
    ) -> AsyncGenerator[ResponseT, None]:
        """A call on one endpoint that is answered by a stream, as long as it takes (None) or `timeout_s`; no failover, no retry.

        Close the generator (`contextlib.aclosing`) when leaving early: that cancels the call.
        """
        connection = self._pool.connection_to(endpoint)
        if connection is None:
            raise ValueError(f"not an endpoint of this client: {endpoint}")
        await connection.wait_dialled(self._config.dial_timeout_s)
        deadline = _Deadline(timeout_s)
        metadata = await self._authenticated(connection, deadline)
        async with aclosing(connection.stream(method, request, deadline.remaining_s(), metadata)) as answers:
            async for answer in answers:
                yield answer

    async def token(self) -> Metadata:
        """The metadata that authenticates this client's user to any endpoint, for calls that don't go through the client."""
        return await self._authenticated(await self._pool.wait_connected(), _Deadline(self._config.call_timeout_s))

    async def _authenticated(self, connection: Connection, deadline: _Deadline) -> Metadata:
        """The metadata that carries the token, fetched once; empty where the cluster has no authentication."""
        if self._metadata is None:
            request = pb.AuthenticateRequest(name=self._config.user, password=self._config.password)
            try:
                answer = await connection.call(methods.AUTHENTICATE, request, deadline.remaining_s())
                self._metadata = (("token", answer.token),)
            except ServerError as error:
                if error.details != AUTH_NOT_ENABLED:
                    raise
                self._metadata = ()
        return self._metadata

    # --- key-values ----------------------------------------------------------------------------------------------------------------------

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read keys."""
        return await self.call(methods.RANGE, request)

    async def get(
        self, key: bytes, range_end: bytes = b"", *, revision: int = 0, limit: int = 0, serializable: bool = False
    ) -> pb.RangeResponse:
        """Read one key, or the range up to `range_end`, at `revision` (0: the newest)."""
        return await self.range(pb.RangeRequest(key=key, range_end=range_end, revision=revision, limit=limit, serializable=serializable))

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> pb.PutResponse:
        """Write one key."""
        return await self.call(methods.PUT, pb.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv))

    async def delete(self, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> pb.DeleteRangeResponse:
        """Delete one key, or the range up to `range_end`."""
        return await self.call(methods.DELETE_RANGE, pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv))

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Run a transaction; one that only reads is retried like a read."""
        return await self.call(methods.TXN_READ_ONLY if changes_nothing(request) else methods.TXN, request)

    async def compact(self, revision: int, *, physical: bool = False) -> pb.CompactionResponse:
        """Forget the history below `revision`; `physical` waits until the space is free."""
        return await self.call(methods.COMPACT, pb.CompactionRequest(revision=revision, physical=physical))

    # --- leases --------------------------------------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int, *, lease: int = 0) -> pb.LeaseGrantResponse:
        """Make a lease of at least `ttl_s` seconds; 0 leaves its id to the server."""
        return await self.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl_s, ID=lease))

    async def lease_revoke(self, lease: int) -> pb.LeaseRevokeResponse:
        """End a lease, and with it its keys."""
        return await self.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> pb.LeaseTimeToLiveResponse:
        """The seconds that a lease has left (-1: there is none), and on demand its keys."""
        return await self.call(methods.LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=lease, keys=keys))

    async def leases(self) -> pb.LeaseLeasesResponse:
        """All leases."""
        return await self.call(methods.LEASE_LEASES, pb.LeaseLeasesRequest())

    async def lease_keep_alive_once(self, lease: int) -> pb.LeaseKeepAliveResponse:
        """Give a lease its whole TTL again; the answer's TTL is 0 if there is no such lease."""
        return await self.call(methods.LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=lease))

    async def lease_keep_alive(self, lease: int) -> AsyncGenerator[pb.LeaseKeepAliveResponse, None]:
        """Renew a lease three times within its TTL, each time through whichever endpoint answers, and yield the answers; ends when there is
        no such lease (any more).

        Raises the last failure when the lease must have ended meanwhile, as nobody could be reached; at once if the first renewal fails.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time()
        while True:
            try:
                answer = await self.lease_keep_alive_once(lease)
            except ClientError:
                if loop.time() >= until_s:
                    raise
                await asyncio.sleep(backoff_s(1))
                continue
            if answer.TTL <= 0:
                return
            until_s = loop.time() + answer.TTL
            yield answer
            await asyncio.sleep(answer.TTL / 3)

    def watch(self, request: pb.WatchCreateRequest, *, require_leader: bool = False) -> Watch:
        """Watch keys, across failures of endpoints (watching.py). `require_leader`: not by a member that knows no leader."""
        return Watch(self._pool, self._authenticated_now, request, require_leader=require_leader)

    async def _authenticated_now(self, connection: Connection) -> Metadata:
        return await self._authenticated(connection, _Deadline(self._config.call_timeout_s))

    # --- cluster and maintenance ---------------------------------------------------------------------------------------------------------

    async def member_list(self, *, linearizable: bool = True) -> pb.MemberListResponse:
        """The members, as the quorum (or, not `linearizable`, the answering member) knows them."""
        return await self.call(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=linearizable))

    async def member_add(self, peer_urls: Sequence[str], *, learner: bool = False) -> pb.MemberAddResponse:
        """Add a member that will listen for its peers at `peer_urls`, as a learner or with a vote at once. Its id is in the answer.

        Repeating it after an unknown outcome may add a second member: look at `member_list` first.
        """
        return await self.call(methods.MEMBER_ADD, pb.MemberAddRequest(peerURLs=peer_urls, isLearner=learner))

    async def member_remove(self, member_id: int) -> pb.MemberRemoveResponse:
        """Remove a member for good; its id never comes back."""
        return await self.call(methods.MEMBER_REMOVE, pb.MemberRemoveRequest(ID=member_id))

    async def member_update(self, member_id: int, peer_urls: Sequence[str]) -> pb.MemberUpdateResponse:
        """Replace all of a member's peer URLs."""
        return await self.call(methods.MEMBER_UPDATE, pb.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls))

    async def member_promote(self, member_id: int) -> pb.MemberPromoteResponse:
        """Give a learner that has caught up its vote."""
        return await self.call(methods.MEMBER_PROMOTE, pb.MemberPromoteRequest(ID=member_id))

    async def move_leader(self, endpoint: str, target_id: int) -> pb.MoveLeaderResponse:
        """Have the leader, which must be the member at `endpoint`, hand over to another voter. Returns once that one leads."""
        return await self.call_endpoint(endpoint, methods.MOVE_LEADER, pb.MoveLeaderRequest(targetID=target_id))

    async def status(self, endpoint: str) -> pb.StatusResponse:
        """One member's state."""
        return await self.call_endpoint(endpoint, methods.STATUS, pb.StatusRequest())

    async def hash_kv(self, endpoint: str, revision: int = 0) -> pb.HashKVResponse:
        """The hash of one member's keys up to `revision` (0: all)."""
        return await self.call_endpoint(endpoint, methods.HASH_KV, pb.HashKVRequest(revision=revision))

    async def memory(self, endpoint: str, *, timeout_s: float | None = None) -> bytes:
        """One member's page of memory, as JSON (kvserver only; an etcd answers UNIMPLEMENTED)."""
        return (await self.call_endpoint(endpoint, methods.MEMORY, debug_pb2.MemoryRequest(), timeout_s=timeout_s)).json

    def snapshot(self, endpoint: str, *, timeout_s: float | None = None) -> AsyncGenerator[pb.SnapshotResponse, None]:
        """A consistent copy of one member's store as a stream of blobs; the last 32 bytes are the SHA-256 of the rest. See
        `stream_endpoint`.
        """
        return self.stream_endpoint(endpoint, methods.SNAPSHOT, pb.SnapshotRequest(), timeout_s=timeout_s)

    async def alarms(self) -> pb.AlarmResponse:
        """The alarms that are on, in the whole cluster."""
        return await self.call(methods.ALARM_GET, pb.AlarmRequest(action=pb.AlarmRequest.GET))

    async def alarm_disarm(self, alarm: pb.AlarmMember) -> pb.AlarmResponse:
        """Disarm one alarm, named by its member and its kind; the answer holds it if it was raised."""
        request = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
        return await self.call(methods.ALARM, request)

    async def alarms_disarm_all(self) -> pb.AlarmResponse:
        """Disarm the alarms that are on now, one after the other. The answer holds those that were, and no header.

        An alarm whose cause is still there will be raised again.
        """
        disarmed = pb.AlarmResponse()
        for alarm in (await self.alarms()).alarms:
            disarmed.alarms.extend((await self.alarm_disarm(alarm)).alarms)
        return disarmed


class _Deadline:
    """A point in time on the loop's clock, or none."""

    def __init__(self, limit_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._at = None if limit_s is None else self._loop.time() + limit_s

    def remaining_s(self) -> float | None:
        """Seconds left; raises `CallTimeoutError` once there are none."""
        if self._at is None:
            return None
        left_s = self._at - self._loop.time()
        if left_s <= 0:
            raise CallTimeoutError
        return left_s

    def allows(self, pause_s: float) -> bool:
        """Whether a pause of that length ends before the deadline."""
        return self._at is None or self._loop.time() + pause_s < self._at

    def cap(self, duration_s: float) -> float:
        """`duration_s`, or what is left if that is less."""
        left_s = self.remaining_s()
        return duration_s if left_s is None else min(duration_s, left_s)


def _check_size(request: RequestT) -> None:
    size_bytes = request.ByteSize()
    if size_bytes > MAX_REQUEST_BYTES:
        raise ServerError(RESOURCE_EXHAUSTED, f"trying to send message larger than max ({size_bytes} vs. {MAX_REQUEST_BYTES})")
