"""All services of one server, and the table from a method's name to its handler.

Rules: the table names what is served; every other method of the contract answers `UnimplementedError`, which the binding takes from
the descriptors, so that a client hears "not implemented" rather than "unknown service". A unary handler takes a request and a `Call` and
returns the response; the handler of a server stream yields responses; that of a bidirectional one takes an iterator of requests instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from kvserver.api.answers import Answers
from kvserver.api.cluster import ClusterService
from kvserver.api.debug import DebugService, DebugSource
from kvserver.api.guard import Guard
from kvserver.api.health import HealthService, Probes
from kvserver.api.kv import KvService
from kvserver.api.lease import LeaseService, LeaseTimes
from kvserver.api.maintenance import MaintenanceService
from kvserver.api.protocols import Call, ClusterView, KvReader, Proposals, Reads, Reconfiguration, StreamCall
from kvserver.api.quota import QuotaGate
from kvserver.api.snapshot import SnapshotService, SnapshotSource
from kvserver.api.watch import WatchService
from kvserver.clock import Clock
from kvserver.watch import WatchHub

__all__ = ["Api", "BidiHandler", "MethodName", "StreamHandler", "UnaryHandler", "build_api"]

MethodName = tuple[str, str]
"""Service and method as the descriptors name them: `("KV", "Put")`."""

UnaryHandler = Callable[[Any, Call], Awaitable[Any]]
StreamHandler = Callable[[Any, StreamCall], AsyncGenerator[Any, None]]
BidiHandler = Callable[[AsyncIterator[Any], StreamCall], AsyncGenerator[Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What is served: the handlers by method, the health switch, and for HTTP the checks and the pages."""

    unary: Mapping[MethodName, UnaryHandler]
    server_streams: Mapping[MethodName, StreamHandler]
    health: HealthService
    probes: Probes
    debug: DebugSource
    bidi_streams: Mapping[MethodName, BidiHandler] = field(default_factory=dict)


def build_api(
    *,
    proposals: Proposals,
    reads: Reads,
    reader: KvReader,
    view: ClusterView,
    reconfiguration: Reconfiguration,
    snapshots: SnapshotSource,
    lease_times: LeaseTimes,
    quota: QuotaGate,
    answers: Answers,
    debug: DebugSource,
    hub: WatchHub,
    clock: Clock,
    random: Random,
    max_request_bytes: int,
    max_txn_ops: int,
    min_lease_ttl_s: int,
    request_timeout_s: float,
    election_timeout_s: float,
) -> Api:
    """Make the services from what they need."""
    guard = Guard(view=view, clock=clock, request_timeout_s=request_timeout_s)
    kv = KvService(
        guard=guard,
        proposals=proposals,
        reads=reads,
        reader=reader,
        view=view,
        quota=quota,
        answers=answers,
        max_request_bytes=max_request_bytes,
        max_txn_ops=max_txn_ops,
    )
    maintenance = MaintenanceService(
        guard=guard, proposals=proposals, reads=reads, reader=reader, view=view, reconfiguration=reconfiguration
    )
    cluster = ClusterService(guard=guard, reads=reads, view=view, reconfiguration=reconfiguration)
    lease = LeaseService(
        guard=guard,
        proposals=proposals,
        reads=reads,
        reader=reader,
        view=view,
        times=lease_times,
        quota=quota,
        answers=answers,
        min_ttl_s=min_lease_ttl_s,
    )
    watch = WatchService(guard=guard, hub=hub, view=view, election_timeout_s=election_timeout_s, random=random)
    health = HealthService()
    return Api(
        unary={
            ("KV", "Range"): kv.range,
            ("KV", "Put"): kv.put,
            ("KV", "DeleteRange"): kv.delete_range,
            ("KV", "Txn"): kv.txn,
            ("KV", "Compact"): kv.compact,
            ("Lease", "LeaseGrant"): lease.grant,
            ("Lease", "LeaseRevoke"): lease.revoke,
            ("Lease", "LeaseTimeToLive"): lease.time_to_live,
            ("Lease", "LeaseLeases"): lease.leases,
            ("Maintenance", "Status"): maintenance.status,
            ("Maintenance", "HashKV"): maintenance.hash_kv,
            ("Maintenance", "Alarm"): maintenance.alarm,
            ("Maintenance", "MoveLeader"): maintenance.move_leader,
            ("Cluster", "MemberList"): cluster.member_list,
            ("Cluster", "MemberAdd"): cluster.member_add,
            ("Cluster", "MemberRemove"): cluster.member_remove,
            ("Cluster", "MemberUpdate"): cluster.member_update,
            ("Cluster", "MemberPromote"): cluster.member_promote,
            ("Health", "Check"): health.check,
            ("Debug", "Memory"): DebugService(guard=guard, source=debug).memory,
        },
        server_streams={
            ("Maintenance", "Snapshot"): SnapshotService(guard=guard, source=snapshots).snapshot,
            ("Health", "Watch"): health.watch,
        },
        bidi_streams={("Lease", "LeaseKeepAlive"): lease.keep_alive, ("Watch", "Watch"): watch.watch},
        health=health,
        probes=Probes(guard=guard, reads=reads, reader=reader, view=view),
        debug=debug,
    )
