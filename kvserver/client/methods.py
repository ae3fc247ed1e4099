"""The RPCs that the client calls: etcd's path (`MEMORY`: our own), message types, and whether a repetition is harmless.

Rules: a plain table instead of generated stubs, because the messages live in our own proto package and the paths are etcd's. `read_only`
is the one fact that the retry policy needs: a call that changes nothing may be sent again whatever happened to the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from kvserver.pb import debug_pb2
from kvserver.pb import rpc_pb2 as pb

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[RequestT, ResponseT]):
    """One RPC: unary, a stream of responses to one request, or streams both ways; with `is_exchange` a call is one exchange on those."""

    path: str
    request: type[RequestT]
    response: type[ResponseT]
    read_only: bool = False
    is_exchange: bool = False


RANGE: Final = Method(path="/etcdserverpb.KV/Range", request=pb.RangeRequest, response=pb.RangeResponse, read_only=True)
PUT: Final = Method(path="/etcdserverpb.KV/Put", request=pb.PutRequest, response=pb.PutResponse)
DELETE_RANGE: Final = Method(path="/etcdserverpb.KV/DeleteRange", request=pb.DeleteRangeRequest, response=pb.DeleteRangeResponse)
TXN: Final = Method(path="/etcdserverpb.KV/Txn", request=pb.TxnRequest, response=pb.TxnResponse)
TXN_READ_ONLY: Final = Method(path=TXN.path, request=pb.TxnRequest, response=pb.TxnResponse, read_only=True)
COMPACT: Final = Method(path="/etcdserverpb.KV/Compact", request=pb.CompactionRequest, response=pb.CompactionResponse)
LEASE_GRANT: Final = Method(path="/etcdserverpb.Lease/LeaseGrant", request=pb.LeaseGrantRequest, response=pb.LeaseGrantResponse)
LEASE_REVOKE: Final = Method(path="/etcdserverpb.Lease/LeaseRevoke", request=pb.LeaseRevokeRequest, response=pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE: Final = Method(
    path="/etcdserverpb.Lease/LeaseKeepAlive",
    request=pb.LeaseKeepAliveRequest,
    response=pb.LeaseKeepAliveResponse,
    read_only=True,
    is_exchange=True,
)
LEASE_TIME_TO_LIVE: Final = Method(
    path="/etcdserverpb.Lease/LeaseTimeToLive", request=pb.LeaseTimeToLiveRequest, response=pb.LeaseTimeToLiveResponse, read_only=True
)
LEASE_LEASES: Final = Method(
    path="/etcdserverpb.Lease/LeaseLeases", request=pb.LeaseLeasesRequest, response=pb.LeaseLeasesResponse, read_only=True
)
MEMBER_LIST: Final = Method(
    path="/etcdserverpb.Cluster/MemberList", request=pb.MemberListRequest, response=pb.MemberListResponse, read_only=True
)
MEMBER_ADD: Final = Method(path="/etcdserverpb.Cluster/MemberAdd", request=pb.MemberAddRequest, response=pb.MemberAddResponse)
MEMBER_REMOVE: Final = Method(path="/etcdserverpb.Cluster/MemberRemove", request=pb.MemberRemoveRequest, response=pb.MemberRemoveResponse)
MEMBER_UPDATE: Final = Method(path="/etcdserverpb.Cluster/MemberUpdate", request=pb.MemberUpdateRequest, response=pb.MemberUpdateResponse)
MEMBER_PROMOTE: Final = Method(
    path="/etcdserverpb.Cluster/MemberPromote", request=pb.MemberPromoteRequest, response=pb.MemberPromoteResponse
)
STATUS: Final = Method(path="/etcdserverpb.Maintenance/Status", request=pb.StatusRequest, response=pb.StatusResponse, read_only=True)
HASH_KV: Final = Method(path="/etcdserverpb.Maintenance/HashKV", request=pb.HashKVRequest, response=pb.HashKVResponse, read_only=True)
MOVE_LEADER: Final = Method(path="/etcdserverpb.Maintenance/MoveLeader", request=pb.MoveLeaderRequest, response=pb.MoveLeaderResponse)
ALARM: Final = Method(path="/etcdserverpb.Maintenance/Alarm", request=pb.AlarmRequest, response=pb.AlarmResponse)
ALARM_GET: Final = Method(path=ALARM.path, request=pb.AlarmRequest, response=pb.AlarmResponse, read_only=True)
SNAPSHOT: Final = Method(path="/etcdserverpb.Maintenance/Snapshot", request=pb.SnapshotRequest, response=pb.SnapshotResponse)
MEMORY: Final = Method(path="/kvserver.Debug/Memory", request=debug_pb2.MemoryRequest, response=debug_pb2.MemoryResponse, read_only=True)
WATCH: Final = Method(path="/etcdserverpb.Watch/Watch", request=pb.WatchRequest, response=pb.WatchResponse, read_only=True)
AUTHENTICATE: Final = Method(
    path="/etcdserverpb.Auth/Authenticate", request=pb.AuthenticateRequest, response=pb.AuthenticateResponse, read_only=True
)
