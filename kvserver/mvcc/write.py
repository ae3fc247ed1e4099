"""Put, DeleteRange and Txn: the changes of one revision.

Purpose: `WriteTxn` is one replicated request: it reads what its own earlier operations wrote, numbers its changes main.0, main.1, ..., and
becomes visible to others only when its caller moves the store's current revision (the applier is the only writer, and readers on the loop
run between entries).

Rules
- Everything that can be refused is refused before the first change: a request either fails without a trace or runs to its end.
- All compares of a transaction, nested ones too, are decided against the state before its first operation.
- A request that changes nothing takes no revision.
- A put names its lease, which must exist; whoever keeps the leases (`Leases`) is told of every key that is attached to one or detached.

Source: etcd's etcdserver/apply.go (order of checks and the revisions in inner headers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, assert_never

from kvserver.errors import CompactedError, EmptyKeyError, FutureRevisionError, KeyNotFoundError, LeaseNotFoundError
from kvserver.mvcc import keyspace, layout
from kvserver.mvcc.check import range_bounds
from kvserver.mvcc.compare import holds
from kvserver.mvcc.layout import HISTORY, NO_REVISION, REV, Entry
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RequestOp,
    ResponseOp,
    TxnRequest,
    TxnResponse,
)
from kvserver.storage import Reader
from kvserver.types import LeaseId


class Leases(Protocol):
    """The leases as the keys need them; what is told here changes within the same entry as the keys."""

    def has(self, lease: LeaseId) -> bool:
        """Whether a key may be attached to it."""

    def attach(self, lease: LeaseId, key: bytes) -> None:
        """From now on `key` ends with this lease."""

    def detach(self, lease: LeaseId, key: bytes) -> None:
        """It does no longer: it was put without the lease, or deleted."""


class NoLeases:
    """Of a store that has none."""

    def has(self, lease: LeaseId) -> bool:
        """None exists."""
        del lease
        return False

    def attach(self, lease: LeaseId, key: bytes) -> None:
        """Never called. Raises AssertionError."""
        raise AssertionError(f"{key!r} was attached to lease {lease:x}, and there are none")

    def detach(self, lease: LeaseId, key: bytes) -> None:
        """As `attach`."""
        raise AssertionError(f"{key!r} was detached from lease {lease:x}, and there are none")


class ReadOnly:
    """The writer of a transaction that writes nothing."""

    __slots__ = ("reader",)

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def put(self, table: int, key: bytes, value: bytes) -> None:
        """Never called. Raises AssertionError."""
        raise AssertionError("a transaction without puts and deletes wrote")

    def delete(self, table: int, key: bytes) -> None:
        """As `put`."""
        raise AssertionError("a transaction without puts and deletes wrote")


class WriteTxn:
    """The operations of one request; `changes` says how many keys it has changed so far."""

    __slots__ = ("_begin", "_leases", "_writer", "changes")

    def __init__(self, begin: Snapshot, writer: keyspace.Writer, leases: Leases) -> None:
        self._begin = begin
        self._writer = writer
        self._leases = leases
        self.changes = 0

    @property
    def revision(self) -> int:
        """What a reader within the transaction sees as the newest revision."""
        return self._begin.revision + 1 if self.changes else self._begin.revision

    # --- single requests -----------------------------------------------------------------------------------------------------------------

    def put(self, request: PutRequest) -> PutResponse:
        """Put one key.

        Raises:
            EmptyKeyError, LeaseNotFoundError, KeyNotFoundError (ignore_value or ignore_lease on a missing key).
        """
        if not request.key:
            raise EmptyKeyError
        if request.lease and not self._leases.has(LeaseId(request.lease)):
            raise LeaseNotFoundError
        if (request.ignore_value or request.ignore_lease) and keyspace.find(self._writer.reader, request.key) is None:
            raise KeyNotFoundError
        return self._put(request)

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """Delete the keys of a range. Raises EmptyKeyError."""
        if not request.key:
            raise EmptyKeyError
        return self._delete_range(request)

    def delete_keys(self, keys: Sequence[bytes]) -> None:
        """Delete those of `keys` that exist, in this order."""
        for key in keys:
            entry = keyspace.find(self._writer.reader, key)
            if entry is not None:
                self._delete(key, entry)

    def txn(self, request: TxnRequest) -> TxnResponse:
        """Run a transaction.

        Raises:
            EmptyKeyError, KeyNotFoundError, LeaseNotFoundError, FutureRevisionError, CompactedError: of any operation that would run.
        """
        path = list(_decide(self._begin, request))
        ops = list(_ops_on_path(request, iter(path)))
        for op in ops:
            self._check_put(op)
        for op in ops:
            self._check_range(op)
        response = TxnResponse()
        self._run(request, iter(path), response)
        response.header.revision = self.revision
        return response

    # --- operations ----------------------------------------------------------------------------------------------------------------------

    def _put(self, request: PutRequest) -> PutResponse:
        key = request.key
        old = keyspace.find_any(self._writer.reader, key)
        response = PutResponse()
        response.header.revision = self._begin.revision + 1
        ignores_value = request.ignore_value
        value = b"" if ignores_value else request.value
        if old is not None and old.version and (ignores_value or request.prev_kv):
            previous = KeyValue()
            self._begin.load(old.revision, previous)
            if request.prev_kv:
                response.prev_kv.CopyFrom(previous)
            if ignores_value:
                value = previous.value
        lease = request.lease
        if request.ignore_lease and old is not None:
            lease = old.lease
        self._store(key, old, value, lease)
        return response

    def _store(self, key: bytes, old: Entry | None, value: bytes, lease: int) -> None:
        writer = self._writer
        main = self._begin.revision + 1
        revision = layout.pack_revision(main, self.changes)
        create_revision, version, key_id, previous = main, 1, revision, NO_REVISION
        was_gone = old is not None and old.version == 0
        if old is not None:
            previous_main = layout.main_of(old.revision)
            if not was_gone:
                create_revision, version = old.create_revision, old.version + 1
            if not was_gone or previous_main >= self._begin.compacted_revision:
                key_id, previous = old.key_id, old.revision
                writer.put(HISTORY, key_id + previous, layout.pack_superseded(was_gone, revision))
        record = layout.encode_put(
            revision, key_id, previous, key=key, value=value, create_revision=create_revision, version=version, lease=lease
        )
        writer.put(REV, revision, record)
        entry = layout.pack_entry(revision, key_id, create_revision, version, lease)
        keyspace.store_live(writer, key, entry, was_gone=was_gone)
        self.changes += 1
        old_lease = 0 if old is None else old.lease  # a deleted key has none
        if old_lease != lease:
            if old_lease:
                self._leases.detach(LeaseId(old_lease), key)
            if lease:
                self._leases.attach(LeaseId(lease), key)

    def _delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        lo, hi = range_bounds(request.key, request.range_end)
        reader = self._writer.reader
        if request.range_end:
            doomed = list(keyspace.scan(reader, lo, hi))
        else:
            entry = keyspace.find(reader, lo)
            doomed = [] if entry is None else [(lo, entry)]
        response = DeleteRangeResponse(deleted=len(doomed))
        if request.prev_kv:
            for _, entry in doomed:
                self._begin.load(entry.revision, response.prev_kvs.add())
        for key, entry in doomed:
            self._delete(key, entry)
        response.header.revision = self.revision
        return response

    def _delete(self, key: bytes, old: Entry) -> None:
        writer = self._writer
        revision = layout.pack_revision(self._begin.revision + 1, self.changes)
        writer.put(HISTORY, old.key_id + old.revision, layout.pack_superseded(False, revision))
        writer.put(REV, revision, layout.encode_tombstone(old.key_id, old.revision, key))
        keyspace.store_gone(writer, key, layout.pack_entry(revision, old.key_id, 0, 0, 0))
        self.changes += 1
        if old.lease:
            self._leases.detach(LeaseId(old.lease), key)

    # --- transactions --------------------------------------------------------------------------------------------------------------------

    def _check_put(self, op: RequestOp) -> None:
        if op.HasField("request_delete_range") and not op.request_delete_range.key:
            raise EmptyKeyError
        if not op.HasField("request_put"):
            return
        request = op.request_put
        if not request.key:
            raise EmptyKeyError
        if (request.ignore_value or request.ignore_lease) and keyspace.find(self._begin.reader, request.key) is None:
            raise KeyNotFoundError
        if request.lease and not self._leases.has(LeaseId(request.lease)):
            raise LeaseNotFoundError

    def _check_range(self, op: RequestOp) -> None:
        if not op.HasField("request_range"):
            return
        if not op.request_range.key:
            raise EmptyKeyError
        revision = op.request_range.revision
        if revision > self._begin.revision:
            raise FutureRevisionError
        if revision != 0 and revision < self._begin.compacted_revision:
            raise CompactedError  # negative ones too, before the first compaction below -1: so does etcd, within transactions only

    def _run(self, request: TxnRequest, path: Iterator[bool], response: TxnResponse) -> None:
        response.succeeded = next(path)
        for op in request.success if response.succeeded else request.failure:
            self._run_op(op, path, response.responses.add())

    def _run_op(self, op: RequestOp, path: Iterator[bool], response: ResponseOp) -> None:
        match op.WhichOneof("request"):
            case "request_range":
                begin = self._begin
                state = Snapshot(self._writer.reader, self.revision, begin.compacted_revision, begin.on_corrupt, begin.allowance)
                execute_range(state, op.request_range, response.response_range)
            case "request_put":
                response.response_put.CopyFrom(self._put(op.request_put))
            case "request_delete_range":
                response.response_delete_range.CopyFrom(self._delete_range(op.request_delete_range))
            case "request_txn":
                response.response_txn.header.SetInParent()  # etcd's nested headers are there and empty
                self._run(op.request_txn, path, response.response_txn)
            case None:
                return
            case unknown:
                assert_never(unknown)


def _decide(state: Snapshot, request: TxnRequest) -> Iterator[bool]:
    """For the transaction and those nested in the branches that run, in order: whether its compares hold."""
    succeeded = all(holds(state, compare) for compare in request.compare)
    yield succeeded
    for op in request.success if succeeded else request.failure:
        if op.HasField("request_txn"):
            yield from _decide(state, op.request_txn)


def _ops_on_path(request: TxnRequest, path: Iterator[bool]) -> Iterator[RequestOp]:
    """The operations that will run, nested transactions replaced by theirs."""
    ops: Sequence[RequestOp] = request.success if next(path) else request.failure
    for op in ops:
        if op.HasField("request_txn"):
            yield from _ops_on_path(op.request_txn, path)
        else:
            yield op
