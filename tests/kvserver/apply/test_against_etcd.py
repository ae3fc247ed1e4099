"""The same random requests to etcd 3.4 and to our store must give the same answers, errors and hashes.

Differences of versions, not compared (the client contract wins over 3.4):
- sort target other than the key with order NONE and a limit: etcd cuts before it sorts, we after;
- the order of keys that tie in a sort: etcd's sort isn't stable;
- HashKV at exactly the compacted revision: refused by 3.4, answered by newer ones and by us;
- a transaction that puts a key which it also deletes "from key on" (range_end is a zero byte): etcd doesn't see that overlap, we refuse it;
- the order of leases and of the keys attached to one: etcd's is by what is left, or none.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message as PbMessage

from kvserver.errors import DeterministicError, RequestError
from kvserver.mvcc import check
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    HashKVRequest,
    HashKVResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseLeasesRequest,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)

pytestmark = pytest.mark.process

MAX_TXN_OPS = 128
LEASES = [1, 2, 3, 2**62, -(2**63)]
_METHODS: dict[type[PbMessage], tuple[str, type[PbMessage]]] = {
    PutRequest: ("/etcdserverpb.KV/Put", PutResponse),
    RangeRequest: ("/etcdserverpb.KV/Range", RangeResponse),
    DeleteRangeRequest: ("/etcdserverpb.KV/DeleteRange", DeleteRangeResponse),
    TxnRequest: ("/etcdserverpb.KV/Txn", TxnResponse),
    CompactionRequest: ("/etcdserverpb.KV/Compact", CompactionResponse),
    HashKVRequest: ("/etcdserverpb.Maintenance/HashKV", HashKVResponse),
    LeaseGrantRequest: ("/etcdserverpb.Lease/LeaseGrant", LeaseGrantResponse),
    LeaseRevokeRequest: ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeResponse),
    LeaseTimeToLiveRequest: ("/etcdserverpb.Lease/LeaseTimeToLive", LeaseTimeToLiveResponse),
    LeaseLeasesRequest: ("/etcdserverpb.Lease/LeaseLeases", LeaseLeasesResponse),
}
Answer = PbMessage | str


class Etcd:
    """A running etcd, spoken to with our messages on its paths."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def ask(self, request: PbMessage) -> Answer:
        path, response = _METHODS[type(request)]
        call = self.channel.unary_unary(path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString)
        try:
            answer: PbMessage = call(request, timeout=10)
        except grpc.RpcError as error:
            return str(error.details())
        return answer


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            port = random.randrange(20000, 32000)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd is not installed (Debian package etcd-server)")
    client, peer = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    process = subprocess.Popen(
        [
            program, "--name=one", f"--data-dir={tmp_path / 'etcd'}", f"--listen-client-urls=http://{client}",
            f"--advertise-client-urls=http://{client}", f"--listen-peer-urls=http://{peer}",
            f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=one=http://{peer}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        running = Etcd(client)
        try:
            grpc.channel_ready_future(running.channel).result(timeout=30)
            yield running
        finally:
            running.channel.close()
    finally:
        process.terminate()
        process.wait(timeout=10)


class Requests:
    """Random requests over a small space of keys, so that they meet."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        long = bytes(range(256)) * 2
        self.keys = [
            b"\x00",
            b"\x00\x00",
            b"\xff",
            b"\xff\xff",
            b"a",
            b"a\x00",
            b"aa",
            b"b",
            b"ba",
            b"c",
            b"k" * 480,
            b"k" * 481,
            b"k" * 479,
        ]
        self.keys += [long[:480], long[:481], long + b"x", long * 2, long * 2 + b"y", long + b"z" * 1000, long[:500]]
        self.revision = 1

    def any(self) -> PbMessage:
        kind = self.random.choices(
            [self.put, self.range, self.delete, self.txn, self.compaction, self.hash, self.lease], weights=[40, 25, 8, 20, 2, 5, 12]
        )[0]
        return kind()

    def lease(self) -> PbMessage:
        """Something about one of a few leases, most of which exist most of the time."""
        lease = self.random.choice(LEASES)
        return self.random.choice(
            [
                LeaseGrantRequest(ID=lease, TTL=self.random.choice([500, 500, 9_000_000_000, 9_000_000_001])),
                LeaseGrantRequest(ID=lease, TTL=600),
                LeaseRevokeRequest(ID=lease),
                LeaseTimeToLiveRequest(ID=lease, keys=True),
                LeaseTimeToLiveRequest(ID=lease),
                LeaseLeasesRequest(),
            ]
        )

    def key(self) -> bytes:
        return self.random.choice(self.keys)

    def range_end(self, key: bytes) -> bytes:
        return self.random.choice([b"", b"", b"\x00", self.key(), key + b"\xff", key[:-1] + bytes([min(255, key[-1] + 1)])])

    def flag(self, chance: float = 0.2) -> bool:
        return self.random.random() < chance

    def some_revision(self) -> int:
        return self.random.choice(
            [0, 0, 0, self.revision, self.revision - 1, self.revision - self.random.randrange(30), self.revision + 1, -1]
        )

    def put(self) -> PutRequest:
        request = PutRequest(key=self.key(), value=self.random.randbytes(self.random.randrange(40)), prev_kv=self.flag())
        if self.flag(0.1):
            request.ignore_value = True
            if self.flag(0.8):
                request.value = b""
        if self.flag(0.1):
            request.ignore_lease = True
        if self.flag(0.4) and (not request.ignore_lease or self.flag(0.1)):
            request.lease = self.random.choice(LEASES)
        if self.flag(0.03):
            request.lease = 12345
        if self.flag(0.01):
            request.key = b""
        return request

    def range(self) -> RangeRequest:
        key = self.key()
        request = RangeRequest(
            key=key, range_end=self.range_end(key), revision=self.some_revision(), limit=self.random.choice([0, 0, 1, 3])
        )
        request.keys_only, request.count_only = self.flag(), self.flag()
        request.sort_order = self.random.choice([RangeRequest.NONE, RangeRequest.ASCEND, RangeRequest.DESCEND])
        if self.flag(0.3):
            request.sort_target = self.random.choice([RangeRequest.VERSION, RangeRequest.CREATE, RangeRequest.MOD, RangeRequest.VALUE])
            request.limit = 0
        for bound in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self.flag(0.1):
                setattr(request, bound, max(0, self.revision - self.random.randrange(40)))
        return request

    def delete(self) -> DeleteRangeRequest:
        key = self.key()
        return DeleteRangeRequest(key=key, range_end=self.range_end(key) if self.flag(0.4) else b"", prev_kv=self.flag(0.4))

    def compare(self) -> Compare:
        key = self.key()
        request = Compare(key=key, result=self.random.randrange(4), target=self.random.randrange(5))  # type: ignore[arg-type]
        if self.flag():
            request.range_end = self.range_end(key)
        number = self.random.choice([0, 1, 2, self.revision - self.random.randrange(20)])
        field = self.random.choice(["version", "create_revision", "mod_revision", "lease", "value"])
        setattr(request, field, b"v" if field == "value" else number)
        return request

    def txn(self, depth: int = 0) -> TxnRequest:
        count = self.random.randrange
        return TxnRequest(
            compare=[self.compare() for _ in range(count(3))],
            success=[self.op(depth) for _ in range(count(4))],
            failure=[self.op(depth) for _ in range(count(3))],
        )

    def op(self, depth: int) -> RequestOp:
        kind = self.random.choices(["put", "range", "delete", "txn", "none"], weights=[50, 30, 15, 15 if depth < 3 else 0, 1])[0]
        match kind:
            case "put":
                return RequestOp(request_put=self.put())
            case "range":
                return RequestOp(request_range=self.range())
            case "delete":
                request = self.delete()
                if request.range_end == b"\x00":
                    request.range_end = b"\xff"
                return RequestOp(request_delete_range=request)
            case "txn":
                return RequestOp(request_txn=self.txn(depth + 1))
        return RequestOp()

    def compaction(self) -> CompactionRequest:
        return CompactionRequest(
            revision=self.random.choice([0, self.revision - self.random.randrange(10), self.revision + 1]), physical=True
        )

    def hash(self) -> HashKVRequest:
        return HashKVRequest(revision=self.some_revision())


async def ours(machine: Any, request: PbMessage) -> Answer:
    """What api, node and apply will do with the request, without a cluster in between."""
    try:
        match request:
            case RangeRequest():
                check.check_range(request)
                return await machine.store.read(request)  # type: ignore[no-any-return]
            case HashKVRequest():
                found = await machine.store.hash_kv(request.revision)
                response = HashKVResponse(hash=found.hash, compact_revision=found.compacted_revision)
                response.header.revision = found.current_revision
                return response
            case LeaseTimeToLiveRequest():
                return await our_lease(machine, request)
            case LeaseLeasesRequest():
                return await machine.store.read_leases()  # type: ignore[no-any-return]
            case PutRequest():
                check.check_put(request)
            case DeleteRangeRequest():
                check.check_delete(request)
            case TxnRequest():
                check.check_txn(request, max_txn_ops=MAX_TXN_OPS)
        result = machine.apply(request)
        if isinstance(result, CompactionResponse):
            await machine.store.wait_compacted(request.revision)  # type: ignore[attr-defined]
    except RequestError as error:
        return error.message
    return result.message if isinstance(result, DeterministicError) else result  # type: ignore[no-any-return]


async def our_lease(machine: Any, request: LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse:
    """All of the answer that the store has a part in."""
    found = await machine.store.read_lease(request.ID, with_keys=request.keys)
    response = LeaseTimeToLiveResponse(ID=request.ID, TTL=-1 if found.ttl_s is None else 0, grantedTTL=found.ttl_s or 0, keys=found.keys)
    response.header.revision = found.revision
    return response


def plain(answer: Answer, request: PbMessage) -> Any:
    """An answer in a form that can be compared: headers reduced to the revision, ties in a fixed order."""
    if isinstance(answer, str):
        return answer
    copy = type(answer).FromString(answer.SerializeToString())
    header = getattr(copy, "header", None)
    if header is not None:
        header.cluster_id = header.member_id = header.raft_term = 0
    if isinstance(copy, LeaseTimeToLiveResponse):
        copy.TTL = min(copy.TTL, 0)  # what is left is for clocks to say
        keys = sorted(copy.keys)
        del copy.keys[:]
        copy.keys.extend(keys)
    if isinstance(copy, LeaseLeasesResponse):
        leases = sorted(each.ID for each in copy.leases)
        del copy.leases[:]
        copy.leases.extend(LeaseStatus(ID=lease) for lease in leases)
    _untie(copy, request)
    return str(copy)


def _brief(request: PbMessage) -> str:
    return re.sub(r'"(.{12})[^"]{40,}(.{12})"', r'"\1...\2"', str(request))


def _untie(answer: Any, request: Any) -> None:
    if isinstance(request, RangeRequest) and request.sort_target != RangeRequest.KEY:
        _check_sorted(answer, request)
        kvs = sorted(answer.kvs, key=lambda kv: kv.key)
        del answer.kvs[:]
        answer.kvs.extend(kvs)
    if isinstance(request, TxnRequest):
        ops = request.success if answer.succeeded else request.failure
        for op, response in zip(ops, answer.responses, strict=True):
            kind = op.WhichOneof("request")
            if kind in ("request_range", "request_txn"):
                _untie(getattr(response, kind.replace("request", "response")), getattr(op, kind))


def _check_sorted(answer: RangeResponse, request: RangeRequest) -> None:
    attribute: Callable[[KeyValue], Any] = {
        RangeRequest.VERSION: lambda kv: kv.version,
        RangeRequest.CREATE: lambda kv: kv.create_revision,
        RangeRequest.MOD: lambda kv: kv.mod_revision,
        RangeRequest.VALUE: lambda kv: kv.value,
    }[request.sort_target]
    found = [attribute(kv) for kv in answer.kvs]
    if request.sort_target == RangeRequest.VALUE and request.keys_only:
        return
    assert found == sorted(found, reverse=request.sort_order == RangeRequest.DESCEND)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_answers_errors_and_hashes_equal_etcds(etcd: Etcd, machine: Any, seed: int) -> None:
    requests = Requests(seed)
    for step in range(700):
        request = requests.any()
        machine_answer = await ours(machine, request)
        if isinstance(request, HashKVRequest) and request.revision == machine.store.compacted_revision:
            continue
        etcd_answer = await asyncio.to_thread(etcd.ask, request)
        assert plain(machine_answer, request) == plain(etcd_answer, request), f"seed {seed}, step {step}: {_brief(request)}"
        requests.revision = machine.store.current_revision
        if step % 100 == 50:
            await machine.reopen()
    final = HashKVRequest()
    assert plain(await ours(machine, final), final) == plain(await asyncio.to_thread(etcd.ask, final), final)


async def test_hash_equals_etcds_when_every_key_is_deleted_after_a_compaction(etcd: Etcd, machine: Any) -> None:
    steps: list[PbMessage] = [PutRequest(key=key, value=b"v") for key in (b"a", b"b", b"a", b"c")]
    steps += [DeleteRangeRequest(key=b"c"), CompactionRequest(revision=5, physical=True)]
    steps += [DeleteRangeRequest(key=b"\x00", range_end=b"\x00"), HashKVRequest()]
    for request in steps:
        theirs = await asyncio.to_thread(etcd.ask, request)
        assert plain(await ours(machine, request), request) == plain(theirs, request), _brief(request)
