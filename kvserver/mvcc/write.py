"""Put, DeleteRange and Txn: the changes of one revision.

Purpose: `WriteTxn` is one replicated request: it reads what its own earlier operations wrote, numbers its changes main.0, main.1, ..., and
becomes visible to others only when its caller moves the store's current revision (the applier is the only writer).

Theory of operation: `delete_range` and `txn` are generators. They yield when `SLICE_KEYS` keys are deleted and there are more, with
`progress` telling where they are; what is written by then may be committed, and others may read (they see none of it,
`Snapshot.unfinished`). With `resume` the same request goes on at that place: what was decided before the first change is decided again, by
the same state, which is one revision back by then.

Rules
- Everything that can be refused is refused before the first change: a request either fails without a trace or runs to its end.
- No reader is kept over a `yield`: what is committed there closes it, and hands what it read from to its successor.
- All compares of a transaction, nested ones too, are decided against the state before its first operation.
- A request that changes nothing takes no revision.
- The changes don't depend on where the slices end, nor on whether anybody wants the answer. Without `answers` no key value is read for it.
- The answer keeps to the allowance of `begin`; one that exceeds it is incomplete, and the caller sees that by the allowance.
- A put names its lease, which must exist; whoever keeps the leases (`Leases`) is told of every key that is attached to one or detached.

Source: etcd's etcdserver/apply.go (order of checks and the revisions in inner headers).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, Protocol

from kvserver.errors import CompactedError, EmptyKeyError, FutureRevisionError, KeyNotFoundError, LeaseNotFoundError
from kvserver.mvcc import keyspace, layout
from kvserver.mvcc.allowance import KEY_OVERHEAD_BYTES
from kvserver.mvcc.check import range_bounds
from kvserver.mvcc.compare import holds
from kvserver.mvcc.layout import HISTORY, NO_REVISION, REV, Entry
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.mvcc.unfinished import Progress
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

SLICE_KEYS: Final = 64
"""Keys that are deleted in one go: about 2 ms, and 256 of a batch's changes."""
SLICE_KEY_BYTES: Final = 64 << 10
"""A slice of long keys ends here, and with one key at least."""
FROM_START: Final = Progress(0, 0, b"")

Doomed = Callable[[bytes], Iterator[tuple[bytes, Entry]]]
"""Keys that are to be deleted, from the given one on, ascending."""
KeysFrom = Callable[[bytes], Iterator[bytes]]
"""Keys behind the given one, all of them if it is empty, whether or not they exist; in an order of their own that every member has."""


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
    """The operations of one request; `changes` says how many keys it has changed so far.

    Args:
        begin: the state before it; its allowance is the answer's.
        resume: how far an earlier run of the same request has come.
        answers: whether anybody wants the answer; without, it is empty but for its shape.
    """

    __slots__ = ("_answers", "_before", "_leases", "_operation", "_resume", "_writer", "changes", "progress")

    def __init__(
        self,
        begin: Snapshot,
        writer: keyspace.Writer,
        leases: Leases,
        *,
        resume: Progress = FROM_START,
        answers: bool = True,
    ) -> None:
        self._before = begin  # for its numbers; what reads takes `_begin`
        self._writer = writer
        self._leases = leases
        self._resume = resume
        self._answers = answers
        self._operation = 0  # of those that run, the one that is being run
        self.changes = resume.changes
        self.progress = resume

    @property
    def revision(self) -> int:
        """What a reader within the transaction sees as the newest revision."""
        return self._before.revision + 1 if self.changes else self._before.revision

    @property
    def _begin(self) -> Snapshot:
        """The state before the request, through the reader of now: a commit between two slices closes the one that `begin` came with."""
        return self._before._replace(reader=self._writer.reader)

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

    def delete_range(self, request: DeleteRangeRequest) -> Generator[None, None, DeleteRangeResponse]:
        """Delete the keys of a range, in slices. Raises EmptyKeyError."""
        if not request.key:
            raise EmptyKeyError
        return (yield from self._delete_range(request))

    def delete_keys(self, keys: KeysFrom) -> Generator[None, None, int]:
        """Delete those of `keys` that exist, in slices; returns how many."""

        def doomed(first: bytes) -> Iterator[tuple[bytes, Entry]]:
            for key in keys(first[:-1]):  # empty, or the last key that was deleted and a zero byte
                entry = keyspace.find(self._writer.reader, key)
                if entry is not None:
                    yield key, entry

        return (yield from self._delete_slices(doomed, self._resume.key))

    def txn(self, request: TxnRequest) -> Generator[None, None, TxnResponse]:
        """Run a transaction, in slices.

        Raises:
            EmptyKeyError, KeyNotFoundError, LeaseNotFoundError, FutureRevisionError, CompactedError: of any operation that would run.
        """
        path = list(_decide(self._begin, request))
        if self._resume is FROM_START:
            ops = list(_ops_on_path(request, iter(path)))
            for op in ops:
                self._check_put(op)
            for op in ops:
                self._check_range(op)
        response = TxnResponse()
        yield from self._run(request, iter(path), response)
        response.header.revision = self.revision
        return response

    # --- operations ----------------------------------------------------------------------------------------------------------------------

    def _put(self, request: PutRequest) -> PutResponse:
        key = request.key
        old = keyspace.find_any(self._writer.reader, key)
        response = PutResponse()
        response.header.revision = self._before.revision + 1
        ignores_value = request.ignore_value
        value = b"" if ignores_value else request.value
        wants_previous = request.prev_kv and self._answers
        if old is not None and old.version and (ignores_value or wants_previous):
            previous = KeyValue()
            self._begin.load(old.revision, previous)
            if wants_previous and self._may_answer(len(key) + len(previous.value)):
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
        main = self._before.revision + 1
        revision = layout.pack_revision(main, self.changes)
        create_revision, version, key_id, previous = main, 1, revision, NO_REVISION
        was_gone = old is not None and old.version == 0
        if old is not None:
            previous_main = layout.main_of(old.revision)
            if not was_gone:
                create_revision, version = old.create_revision, old.version + 1
            if not was_gone or previous_main >= self._before.compacted_revision:
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

    def _delete_range(self, request: DeleteRangeRequest) -> Generator[None, None, DeleteRangeResponse]:
        lo, hi = range_bounds(request.key, request.range_end)

        def in_range(first: bytes) -> Iterator[tuple[bytes, Entry]]:
            if request.range_end:
                return keyspace.scan(self._writer.reader, first, hi)
            entry = keyspace.find(self._writer.reader, lo) if first == lo else None
            return iter(() if entry is None else ((lo, entry),))

        response = DeleteRangeResponse()
        resumes_here = self._resume.key and self._operation == self._resume.operation
        before = self._keep_previous(response) if request.prev_kv and self._answers else None
        response.deleted = yield from self._delete_slices(in_range, self._resume.key if resumes_here else lo, before)
        response.header.revision = self.revision
        return response

    def _delete_slices(self, doomed: Doomed, first: bytes, before: Callable[[Entry], None] | None = None) -> Generator[None, None, int]:
        """Delete everything that `doomed` has from the key `first` on, in slices; each entry is shown to `before`. Returns how many."""
        deleted = 0
        while True:
            # A slice is collected first: an iterator doesn't survive writing.
            part, goes_on = _take_slice(doomed(first))
            for key, entry in part:
                if before is not None:
                    before(entry)
                self._delete(key, entry)
            deleted += len(part)
            if not goes_on:
                return deleted
            first = part[-1][0] + b"\x00"
            self.progress = Progress(self._operation, self.changes, first)
            yield

    def _keep_previous(self, response: DeleteRangeResponse) -> Callable[[Entry], None]:
        def keep(entry: Entry) -> None:
            record = self._begin.record(entry.revision)
            if self._may_answer(len(record)):
                layout.parse_key_value(record, response.prev_kvs.add())

        return keep

    def _may_answer(self, size_bytes: int) -> bool:
        """Whether the answer has room for one more key value."""
        allowance = self._before.allowance
        return allowance is None or allowance.charge(KEY_OVERHEAD_BYTES + size_bytes)

    def _delete(self, key: bytes, old: Entry) -> None:
        writer = self._writer
        revision = layout.pack_revision(self._before.revision + 1, self.changes)
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
        if (request.ignore_value or request.ignore_lease) and keyspace.find(self._writer.reader, request.key) is None:
            raise KeyNotFoundError
        if request.lease and not self._leases.has(LeaseId(request.lease)):
            raise LeaseNotFoundError

    def _check_range(self, op: RequestOp) -> None:
        if not op.HasField("request_range"):
            return
        if not op.request_range.key:
            raise EmptyKeyError
        revision = op.request_range.revision
        if revision > self._before.revision:
            raise FutureRevisionError
        if revision != 0 and revision < self._before.compacted_revision:
            raise CompactedError  # negative ones too, before the first compaction below -1: so does etcd, within transactions only

    def _run(self, request: TxnRequest, path: Iterator[bool], response: TxnResponse) -> Generator[None, None, None]:
        response.succeeded = next(path)
        for op in request.success if response.succeeded else request.failure:
            if op.HasField("request_txn"):
                inner = response.responses.add().response_txn
                inner.header.SetInParent()  # etcd's nested headers are there and empty
                yield from self._run(op.request_txn, path, inner)
            else:
                yield from self._run_op(op, response.responses.add())
                self._operation += 1

    def _state_now(self) -> Snapshot:
        """What a range within the request reads: its own changes as well, and another one's that is unfinished no more than others do."""
        return self._begin._replace(revision=self.revision, unfinished=False) if self.changes else self._begin

    def _run_op(self, op: RequestOp, response: ResponseOp) -> Generator[None, None, None]:
        if self._operation < self._resume.operation:
            return  # an earlier run has done it
        match op.WhichOneof("request"):
            case "request_range":
                if self._answers:
                    execute_range(self._state_now(), op.request_range, response.response_range)
            case "request_put":
                response.response_put.CopyFrom(self._put(op.request_put))
            case "request_delete_range":
                response.response_delete_range.CopyFrom((yield from self._delete_range(op.request_delete_range)))
            case _:
                return


def _take_slice(doomed: Iterator[tuple[bytes, Entry]]) -> tuple[list[tuple[bytes, Entry]], bool]:
    """The keys of the next slice, and whether there are more."""
    part: list[tuple[bytes, Entry]] = []
    size_bytes = 0
    for key, entry in doomed:
        if len(part) == SLICE_KEYS or size_bytes >= SLICE_KEY_BYTES:
            return part, True
        part.append((key, entry))
        size_bytes += len(key)
    return part, False


def operations_that_run(state: Snapshot, request: TxnRequest) -> Iterator[RequestOp]:
    """The operations that would run in `state`, those of nested transactions in their place."""
    return _ops_on_path(request, iter(list(_decide(state, request))))


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
