"""Fakes of what the services need, and the services over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message

from kvserver.api import Answers, Api, MemberStatus, QuotaGate, build_api
from kvserver.apply import AnswerRoom, LeaseKeys
from kvserver.clock import MonotonicSeconds
from kvserver.commands import CommandKind
from kvserver.pb import rpc_pb2
from kvserver.types import ClusterId, Index, LeaseId, Member, NodeId, Revision, Term
from kvserver.watch import WatchHub, WatchLimits

REQUEST_TIMEOUT_S = 7.0
MAX_REQUEST_BYTES = 1000
MAX_TXN_OPS = 4
QUOTA_BYTES = 1 << 20
MIN_LEASE_TTL_S = 3


@dataclass
class FakeCall:
    metadata: Sequence[tuple[str, str | bytes]] = ()
    peer: str = "ipv4:127.0.0.1:1"
    deadline_s: float | None = None
    cancelled: bool = False
    request_bytes: int = 10
    over: list[Callable[[], None]] = field(default_factory=list)

    def take_raw(self) -> bytes:
        return b"encoded"

    def on_done(self, callback: Callable[[], None]) -> None:
        self.over.append(callback)

    def connection(self) -> None:
        return None


class FakeClock:
    now_s = 100.0

    def monotonic_s(self) -> MonotonicSeconds:
        return MonotonicSeconds(self.now_s)

    def wall_ns(self) -> int:
        return 0


@dataclass
class FakeCluster:
    """Proposals, reads, reader, view, space and alarms in one; it writes down what it was asked."""

    cluster_id: ClusterId = field(default_factory=lambda: ClusterId(0xC1))
    member_id: NodeId = field(default_factory=lambda: NodeId(0xA1))
    term: Term = field(default_factory=lambda: Term(3))
    leader_id: NodeId = field(default_factory=lambda: NodeId(0xA1))
    is_learner: bool = False
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    raises: Exception | None = None
    read_raises: Exception | None = None
    response: Message | None = None
    raised_alarms: list[rpc_pb2.AlarmMember] = field(default_factory=list)
    known_members: list[Member] = field(default_factory=list)
    status_errors: tuple[str, ...] = ()
    revision: Revision = field(default_factory=lambda: Revision(9))
    leases: dict[int, tuple[int, list[bytes]]] = field(default_factory=dict)
    size_in_use_bytes: int = 0
    buffered_payload_bytes: int = 0
    measured_bytes: int = 0

    async def propose(self, kind: CommandKind, request: Message, *, deadline_s: float, encoded: bytes | None = None) -> Message:
        assert encoded in (None, b"encoded")
        self.asked.append(("propose", kind, request, deadline_s))
        await asyncio.sleep(0)
        if self.raises is not None:
            raise self.raises
        assert self.response is not None
        return self.response

    async def wait_linearizable(self, deadline_s: float) -> None:
        self.asked.append(("wait_linearizable", deadline_s))
        await asyncio.sleep(0)
        if self.raises is not None:
            raise self.raises

    async def read_range(self, request: rpc_pb2.RangeRequest, room: AnswerRoom) -> rpc_pb2.RangeResponse:
        self.asked.append(("read_range", request))
        if self.read_raises is not None:
            raise self.read_raises
        return rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=self.revision), count=1)

    async def read_txn(self, request: rpc_pb2.TxnRequest, room: AnswerRoom) -> rpc_pb2.TxnResponse:
        self.asked.append(("read_txn", request))
        return rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(revision=self.revision), succeeded=True)

    async def measure_write(self, request: rpc_pb2.TxnRequest | rpc_pb2.DeleteRangeRequest, limit_bytes: int) -> int:
        self.asked.append(("measure_write", limit_bytes))
        return self.measured_bytes

    async def hash_kv(self, revision: Revision) -> rpc_pb2.HashKVResponse:
        self.asked.append(("hash_kv", revision))
        return rpc_pb2.HashKVResponse(header=rpc_pb2.ResponseHeader(revision=self.revision), hash=77, compact_revision=2, hash_revision=9)

    async def read_leases(self, room: AnswerRoom) -> rpc_pb2.LeaseLeasesResponse:
        self.asked.append(("read_leases",))
        leases = [rpc_pb2.LeaseStatus(ID=lease) for lease in sorted(self.leases)]
        return rpc_pb2.LeaseLeasesResponse(header=rpc_pb2.ResponseHeader(revision=self.revision), leases=leases)

    async def read_lease(self, lease: LeaseId, room: AnswerRoom, *, with_keys: bool) -> LeaseKeys:
        self.asked.append(("read_lease", lease))
        ttl_s, keys = self.leases.get(lease, (None, []))
        return LeaseKeys(ttl_s, keys if with_keys else [], self.revision)

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        self.asked.append(("renew", list(leases), deadline_s))
        await asyncio.sleep(0)
        if self.raises is not None:
            raise self.raises
        return [self.leases[lease][0] if lease in self.leases else 0 for lease in leases]

    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None:
        self.asked.append(("remaining_s", lease, deadline_s))
        return self.leases[lease][0] - 1 if lease in self.leases else None

    def raft_page(self) -> dict[str, object]:
        self.asked.append(("raft_page",))
        return {"member": {"id": f"{self.member_id:x}"}, "term": self.term}

    async def add(self, peer_urls: Sequence[str], *, is_learner: bool, deadline_s: float) -> Member:
        self.asked.append(("add", tuple(peer_urls), is_learner))
        return Member(id=NodeId(99), peer_urls=tuple(peer_urls), is_learner=is_learner)

    async def remove(self, target: NodeId, *, deadline_s: float) -> None:
        self.asked.append(("remove", target))

    async def update(self, target: NodeId, peer_urls: Sequence[str], *, deadline_s: float) -> None:
        self.asked.append(("update", target, tuple(peer_urls)))

    async def promote(self, target: NodeId, *, deadline_s: float) -> None:
        self.asked.append(("promote", target))

    async def move_leader(self, to: NodeId) -> None:
        self.asked.append(("move_leader", to))

    async def wait_compacted(self, revision: Revision) -> None:
        self.asked.append(("wait_compacted", revision))

    async def commit(self) -> None:
        self.asked.append(("commit",))
        await asyncio.sleep(0)
        self.size_in_use_bytes += self.buffered_payload_bytes
        self.buffered_payload_bytes = 0

    async def wait_raised(self, kind: rpc_pb2.AlarmType.ValueType, *, deadline_s: float) -> bool:
        self.asked.append(("wait_raised", kind))
        return True

    def members(self) -> Sequence[Member]:
        return self.known_members

    def alarms(self) -> Sequence[rpc_pb2.AlarmMember]:
        return self.raised_alarms

    def status(self) -> MemberStatus:
        return MemberStatus(
            revision=self.revision,
            committed_index=Index(21),
            applied_index=Index(20),
            db_bytes=4096,
            db_in_use_bytes=1024,
            db_quota_bytes=1 << 31,
            errors=self.status_errors,
        )

    @property
    def current_revision(self) -> Revision:
        return self.revision

    @property
    def steps(self) -> list[str]:
        """The names of what was asked, in order."""
        return [str(step[0]) for step in self.asked]


@dataclass
class Services:
    api: Api
    cluster: FakeCluster
    clock: FakeClock

    async def call(self, service: str, method: str, request: Message, **call: Any) -> Any:
        """Call one unary handler."""
        return await self.api.unary[service, method](request, FakeCall(**call))


@pytest.fixture
def services() -> Services:
    cluster, clock = FakeCluster(), FakeClock()
    api = build_api(
        proposals=cluster,
        reads=cluster,
        reader=cluster,
        view=cluster,
        reconfiguration=cluster,
        snapshots=cluster,
        lease_times=cluster,
        quota=QuotaGate(quota_bytes=QUOTA_BYTES, space=cluster, alarms=cluster, clock=clock),
        answers=Answers(max_bytes=1 << 20, max_waiting=10, on_cut_off=lambda client: None),
        debug=cluster,
        hub=WatchHub(cluster, WatchLimits()),
        clock=clock,
        random=Random(1),
        max_request_bytes=MAX_REQUEST_BYTES,
        max_txn_ops=MAX_TXN_OPS,
        min_lease_ttl_s=MIN_LEASE_TTL_S,
        request_timeout_s=REQUEST_TIMEOUT_S,
        election_timeout_s=1.0,
    )
    return Services(api, cluster, clock)
