"""The client API of etcd v3 as pure handlers: a request message and a `Call` in, a response message or a domain error out.

Nothing here knows gRPC or HTTP; `kvserver.rpc` binds the handlers to a wire. What the handlers need of the rest is in `protocols`.
"""

from kvserver.api.answers import Answers
from kvserver.api.byte_gate import ByteGate
from kvserver.api.debug import DebugSource, encode_page
from kvserver.api.health import Check, HealthReport, HealthService, Probes
from kvserver.api.lease import LeaseTimes, min_ttl_s
from kvserver.api.protocols import Call, ClusterView, KvReader, MemberStatus, Proposals, Reads, Reconfiguration
from kvserver.api.quota import AlarmRaising, QuotaGate, SpaceUse
from kvserver.api.services import Api, BidiHandler, MethodName, StreamHandler, UnaryHandler, build_api
from kvserver.api.snapshot import SavedCopy, SnapshotSource

__all__ = [
    "AlarmRaising",
    "Answers",
    "Api",
    "BidiHandler",
    "ByteGate",
    "Call",
    "Check",
    "ClusterView",
    "DebugSource",
    "HealthReport",
    "HealthService",
    "KvReader",
    "LeaseTimes",
    "MemberStatus",
    "MethodName",
    "Probes",
    "Proposals",
    "QuotaGate",
    "Reads",
    "Reconfiguration",
    "SavedCopy",
    "SnapshotSource",
    "SpaceUse",
    "StreamHandler",
    "UnaryHandler",
    "build_api",
    "encode_page",
    "min_ttl_s",
]
