"""The versioned key-value store: etcd's v3 semantics on the engine's tables.

Purpose: holds the current and the compacted revision and hands out what reads (`snapshot`) and what writes (`put`, `delete_range`, `txn`,
`compact`). Only apply calls the writing methods, between which the revision moves.

Rules: deterministic (no clock, no chance); nothing of a refused request remains; the caller persists `current_revision` in the same batch
as the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kvserver.mvcc.allowance import Allowance
from kvserver.mvcc.compaction import Compactor
from kvserver.mvcc.keyspace import Writer
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.mvcc.write import Leases, NoLeases, ReadOnly, WriteTxn
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
        self.last_changes = 0
        """How many changes the newest revision has, once one was made here."""

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
        return Snapshot(own, self._revision, self.compactor.scheduled, self._on_corrupt, allowance)

    def range(self, request: RangeRequest) -> RangeResponse:
        """See `execute_range`."""
        return execute_range(self.snapshot(), request)

    def read_txn(self, request: TxnRequest, state: Snapshot) -> TxnResponse:
        """A transaction that writes nothing, within the allowance of `state` (which may be a view's, in a thread). Raises as `txn`, and
        RangeTooLargeError as `execute_range`."""
        return WriteTxn(state, ReadOnly(state.reader), self._leases).txn(request)

    def put(self, request: PutRequest) -> PutResponse:
        """See WriteTxn.put."""
        txn = self._begin()
        response = txn.put(request)
        self._end(txn)
        return response

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """See WriteTxn.delete_range."""
        txn = self._begin()
        response = txn.delete_range(request)
        self._end(txn)
        return response

    def delete_keys(self, keys: Sequence[bytes]) -> None:
        """Delete those of `keys` that exist, in this order and in one revision."""
        txn = self._begin()
        txn.delete_keys(keys)
        self._end(txn)

    def txn(self, request: TxnRequest) -> TxnResponse:
        """See WriteTxn.txn."""
        txn = self._begin()
        response = txn.txn(request)
        self._end(txn)
        return response

    def compact(self, request: CompactionRequest) -> CompactionResponse:
        """Refuse reads below `request.revision` from now on; the removal is `compactor.run_slice`'s.

        Raises:
            CompactedError, FutureRevisionError.
        """
        self.compactor.schedule(request.revision, self._revision)
        return CompactionResponse(header=ResponseHeader(revision=self._revision))

    def _begin(self) -> WriteTxn:
        return WriteTxn(self.snapshot(), self._writer, self._leases)

    def _end(self, txn: WriteTxn) -> None:
        if txn.changes:
            self.last_changes = txn.changes
        self._revision = txn.revision
