"""The versioned key-value store: etcd's v3 semantics on the engine's tables.

Purpose: holds the current and the compacted revision and hands out what reads (`snapshot`) and what writes (`put`, `delete_range`, `txn`,
`compact`). Only apply calls the writing methods, between which the revision moves.

What deletes ranges may take many slices: `begin_delete_range` and `begin_txn` give a `Writing` to drive. Until its last slice the store is
`is_unfinished`, also after a restart: then the same request has to be begun again, and goes on where it was.

Rules: deterministic (no clock, no chance); nothing of a refused request remains; the caller persists `current_revision` in the same batch
as the changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from google.protobuf.message import Message

from kvserver.mvcc import unfinished
from kvserver.mvcc.allowance import Allowance
from kvserver.mvcc.compaction import Compactor
from kvserver.mvcc.keyspace import Writer
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.mvcc.write import FROM_START, KeysFrom, Leases, NoLeases, ReadOnly, WriteTxn
from kvserver.mvcc.writing import Steps, Writing
from kvserver.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from kvserver.storage import Reader
from kvserver.types import Revision

FIRST_REVISION = Revision(1)
"""The revision of an empty store."""


NO_LEASES: Final = NoLeases()


class Mvcc:
    """Keys with their history. Belongs to the loop; other threads read through `snapshot` of a view."""

    def __init__(
        self,
        writer: Writer,
        *,
        current_revision: Revision,
        on_corrupt: Callable[[str], None],
        leases: Leases = NO_LEASES,
    ) -> None:
        self._writer = writer
        self._revision = int(current_revision)
        self._on_corrupt = on_corrupt
        self._leases = leases
        self.compactor = Compactor(writer)
        self._progress = unfinished.read_progress(writer.reader)
        self.last_changes = 0
        """How many changes the newest revision has, once one was made here."""

    @property
    def is_unfinished(self) -> bool:
        """Whether a request is on its way into the tables: some of its changes are there, and none may be read."""
        return self._progress is not None

    @property
    def unfinished_request(self) -> bytes:
        """That request, as it was given to `begin_...`; empty if there is none. Raises CorruptError."""
        return unfinished.read_request(self._writer.reader) if self._progress is not None else b""

    @property
    def current_revision(self) -> Revision:
        """The newest revision; 1 in an empty store."""
        return Revision(self._revision)

    @property
    def compacted_revision(self) -> Revision:
        """Older revisions can't be read any more; -1 before the first compaction, as etcd reports it."""
        return Revision(self.compactor.scheduled)

    def snapshot(self, reader: Reader | None = None, allowance: Allowance | None = None) -> Snapshot:
        """The present state, read through `reader` (a view made now) or through the engine's own."""
        own = self._writer.reader if reader is None else reader
        return Snapshot(own, self._revision, self.compactor.scheduled, self._on_corrupt, allowance, self._progress is not None)

    def range(self, request: RangeRequest) -> RangeResponse:
        """See `execute_range`."""
        return execute_range(self.snapshot(), request)

    def read_txn(self, request: TxnRequest, state: Snapshot) -> TxnResponse:
        """A transaction that writes nothing, within the allowance of `state` (which may be a view's, in a thread). Raises as `txn`, and
        RangeTooLargeError as `execute_range`."""
        steps = WriteTxn(state, ReadOnly(state.reader), self._leases).txn(request)
        try:
            next(steps)
        except StopIteration as end:
            answer: TxnResponse = end.value
            return answer
        raise AssertionError("a transaction without deletions was cut into slices")

    def put(self, request: PutRequest, *, answers: bool = True) -> PutResponse:
        """See WriteTxn.put; `answers`: whether anybody wants its answer."""
        txn = self._begin(answers=answers)
        response = txn.put(request)
        self._end(txn)
        return response

    def begin_delete_range(self, request: DeleteRangeRequest, source: bytes, answer: Allowance | None = None) -> Writing:
        """See WriteTxn.delete_range.

        Args:
            source: what the request is kept as while it is unfinished.
            answer: what its answer may cost; None if nobody wants it.
        """
        txn = self._resume(answer)
        return self._writing(txn, txn.delete_range(request), source)

    def begin_txn(self, request: TxnRequest, source: bytes, answer: Allowance | None = None) -> Writing:
        """See WriteTxn.txn; as `begin_delete_range`."""
        txn = self._resume(answer)
        return self._writing(txn, txn.txn(request), source)

    def begin_delete_keys(self, keys: KeysFrom, source: bytes, end: Callable[[int], Message]) -> Writing:
        """Delete those of `keys` that exist, in one revision; as `begin_delete_range`.

        Args:
            end: told, after the last, which revision it is then; changes what else belongs to the request, and answers.
        """
        txn = self._resume(None)

        def steps() -> Steps:
            yield from txn.delete_keys(keys)
            return end(txn.revision)

        return self._writing(txn, steps(), source)

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """All of it at once, for stores that nobody else uses meanwhile."""
        return cast("DeleteRangeResponse", self.begin_delete_range(request, b"", Allowance()).run())

    def txn(self, request: TxnRequest) -> TxnResponse:
        """As `delete_range`."""
        return cast("TxnResponse", self.begin_txn(request, b"", Allowance()).run())

    def compact(self, request: CompactionRequest) -> CompactionResponse:
        """Refuse reads below `request.revision` from now on; the removal is `compactor.run_slice`'s.

        Raises:
            CompactedError, FutureRevisionError.
        """
        self.compactor.schedule(request.revision, self._revision)
        return CompactionResponse(header=ResponseHeader(revision=self._revision))

    def check_begun(self, source: bytes) -> None:
        """What comes next is `source`. Raises UnfinishedMismatchError if another request was begun, and CorruptError."""
        if self._progress is not None and self.unfinished_request != source:
            raise unfinished.UnfinishedMismatchError

    def _resume(self, answer: Allowance | None) -> WriteTxn:
        resume = self._progress or FROM_START
        begin = self.snapshot(None, answer)
        return WriteTxn(begin, self._writer, self._leases, resume=resume, answers=answer is not None)

    def _writing(self, txn: WriteTxn, steps: Steps, source: bytes) -> Writing:
        def pause(txn: WriteTxn) -> None:
            if self._progress is None:
                unfinished.begin(self._writer, source)
            self._progress = txn.progress
            unfinished.save_progress(self._writer, txn.progress)

        return Writing(txn, steps, on_pause=pause, on_end=self._end)

    def _begin(self, *, answers: bool = True) -> WriteTxn:
        return WriteTxn(self.snapshot(), self._writer, self._leases, answers=answers)

    def _end(self, txn: WriteTxn) -> None:
        if txn.changes:
            self.last_changes = txn.changes
        self._revision = txn.revision
        if self._progress is not None:
            self._progress = None
            unfinished.end(self._writer)
