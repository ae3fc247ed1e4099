"""The Lease service beside etcd 3.4: the same calls to a single member of each must give the same answers, headers included.

Masked: ids of cluster and member, the term; the seconds that a lease has left; the header of alarm answers (3.4 gives none).
Sorted: keys of a lease, and leases (etcd has no order, or its own). Leases have ids that the test chose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.ports import PortAllocator

pytestmark = [pytest.mark.process, pytest.mark.etcd]

WAIT_S = 15.0
_ANSWERS: dict[type[Message], tuple[str, type[Message]]] = {
    pb.RangeRequest: ("KV/Range", pb.RangeResponse),
    pb.PutRequest: ("KV/Put", pb.PutResponse),
    pb.DeleteRangeRequest: ("KV/DeleteRange", pb.DeleteRangeResponse),
    pb.TxnRequest: ("KV/Txn", pb.TxnResponse),
    pb.LeaseGrantRequest: ("Lease/LeaseGrant", pb.LeaseGrantResponse),
    pb.LeaseRevokeRequest: ("Lease/LeaseRevoke", pb.LeaseRevokeResponse),
    pb.LeaseTimeToLiveRequest: ("Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse),
    pb.LeaseLeasesRequest: ("Lease/LeaseLeases", pb.LeaseLeasesResponse),
    pb.AlarmRequest: ("Maintenance/Alarm", pb.AlarmResponse),
}


class Side:
    """One server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def ask(self, request: Message) -> Any:
        """The answer with masks, or code and details."""
        path, answer = _ANSWERS[type(request)]
        call = self._channel.unary_unary(f"/etcdserverpb.{path}", response_deserializer=answer.FromString)
        try:
            return masked(call(request.SerializeToString(), timeout=10))
        except grpc.RpcError as error:
            return error.code(), error.details()

    def renew(self, leases: Iterable[int]) -> list[Any]:
        """The answers of one keep-alive stream, and how it ends."""
        invoke = self._channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        call = invoke(iter([pb.LeaseKeepAliveRequest(ID=lease) for lease in leases]), timeout=10)
        return [*(masked(answer) for answer in call), (call.code(), call.details())]

    def count(self, key: bytes) -> int:
        call = self._channel.unary_unary("/etcdserverpb.KV/Range", response_deserializer=pb.RangeResponse.FromString)
        return int(call(pb.RangeRequest(key=key, count_only=True).SerializeToString(), timeout=10).count)


def masked(answer: Any) -> str:
    header = answer.header
    for name in ("cluster_id", "member_id", "raft_term"):
        setattr(header, name, int(getattr(header, name) != 0))
    if isinstance(answer, pb.AlarmResponse):
        answer.ClearField("header")
    if isinstance(answer, pb.LeaseTimeToLiveResponse):
        answer.TTL = min(answer.TTL, 0)
        keys = sorted(answer.keys)
        del answer.keys[:]
        answer.keys.extend(keys)
    if isinstance(answer, pb.LeaseLeasesResponse):
        leases = sorted(each.ID for each in answer.leases)
        del answer.leases[:]
        answer.leases.extend(pb.LeaseStatus(ID=lease) for lease in leases)
    return str(answer)


@pytest.fixture
def sides(make_node: Any, tmp_path: Path, ports: PortAllocator) -> Iterator[tuple[Side, Side]]:
    """etcd and kvserver, each a single member."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian package etcd-server)")
    client, peer = ports.next_port(), ports.next_port()
    command = ["etcd", f"--data-dir={tmp_path / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}"]
    command += [f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}", "--name=solo"]
    command += [f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=solo=http://127.0.0.1:{peer}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
    etcd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        node = make_node()
        node.start()
        with grpc.insecure_channel(f"127.0.0.1:{client}") as theirs, grpc.insecure_channel(node.endpoint) as ours:
            grpc.channel_ready_future(theirs).result(30)
            yield Side(theirs), Side(ours)
    finally:
        etcd.kill()
        etcd.wait(10)


def put(key: bytes, **fields: Any) -> pb.PutRequest:
    return pb.PutRequest(key=key, value=b"v", **fields)


def alarm(action: Any, kind: Any) -> pb.AlarmRequest:
    return pb.AlarmRequest(action=action, memberID=5, alarm=kind)


Grant, Revoke, Left, List = pb.LeaseGrantRequest, pb.LeaseRevokeRequest, pb.LeaseTimeToLiveRequest, pb.LeaseLeasesRequest
SCRIPT: list[Message] = [
    List(),
    *(Grant(ID=lease, TTL=ttl_s) for lease, ttl_s in ((7, 500), (7, 500), (7, 600), (8, 9_000_000_000), (9, 9_000_000_001))),
    *(Grant(ID=lease, TTL=ttl_s) for lease, ttl_s in ((-1, 0), (-2, -5), (3, 1), (-(2**63), 300))),
    *(Revoke(ID=lease) for lease in (-1, -2, 3)),
    *(Left(ID=lease, keys=True) for lease in (7, 8, 9, 0, -1, -(2**63))),
    *(put(key, lease=7) for key in (b"b", b"a", b"c")),
    put(b"x", lease=99),
    pb.TxnRequest(success=[pb.RequestOp(request_put=put(b"x")), pb.RequestOp(request_put=put(b"y", lease=99))]),
    pb.RangeRequest(key=b"a", range_end=b"z"),
    put(b"a", ignore_lease=True, lease=7),
    put(b"none", ignore_lease=True),
    put(b"a", ignore_lease=True),
    put(b"b"),
    put(b"c", lease=8, prev_kv=True),
    Left(ID=7, keys=True),
    Left(ID=8, keys=True),
    pb.DeleteRangeRequest(key=b"c"),
    Left(ID=8, keys=True),
    pb.TxnRequest(success=[pb.RequestOp(request_put=put(b"t1", lease=8)), pb.RequestOp(request_put=put(b"t2", lease=7))]),
    pb.TxnRequest(compare=[pb.Compare(key=b"t1", target=pb.Compare.LEASE, lease=8)], success=[pb.RequestOp(request_put=put(b"t3"))]),
    Left(ID=8, keys=True),
    List(),
    Revoke(ID=7),
    Revoke(ID=7),
    Revoke(ID=0),
    pb.RangeRequest(key=b"a", range_end=b"z"),
    Left(ID=7),
    alarm(pb.AlarmRequest.ACTIVATE, pb.NOSPACE),
    Grant(ID=20, TTL=500),
    Revoke(ID=-(2**63)),
    alarm(pb.AlarmRequest.DEACTIVATE, pb.NOSPACE),
    Grant(ID=20, TTL=500),
    alarm(pb.AlarmRequest.ACTIVATE, pb.CORRUPT),
    Grant(ID=21, TTL=500),
    Revoke(ID=20),
    Left(ID=20),
    List(),
    alarm(pb.AlarmRequest.DEACTIVATE, pb.CORRUPT),
    List(),
]


def test_answers_and_headers_are_etcds(sides: tuple[Side, Side]) -> None:
    for number, request in enumerate(SCRIPT):
        theirs, ours = [side.ask(request) for side in sides]
        assert ours == theirs, f"step {number}: {request}"
    theirs, ours = [side.renew([20, 7, 0, 20, -1, 8]) for side in sides]
    assert ours == theirs


def test_expired_leases_leave_the_same_behind(sides: tuple[Side, Side]) -> None:
    for side in sides:
        side.ask(Grant(ID=7, TTL=2))
        side.ask(Grant(ID=8, TTL=100))
        for key, lease in ((b"b", 7), (b"a", 7), (b"kept", 8)):
            side.ask(put(key, lease=lease))
    deadline_s = time.monotonic() + WAIT_S
    while any(side.count(b"a") for side in sides):
        assert time.monotonic() < deadline_s, "the lease expires on both"
        time.sleep(0.05)
    for request in (pb.RangeRequest(key=b"\0", range_end=b"\0"), pb.RangeRequest(key=b"a", revision=4), Left(ID=7), List()):
        theirs, ours = [side.ask(request) for side in sides]
        assert ours == theirs, request
