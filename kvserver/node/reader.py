"""The node's store as the api reads it."""

from __future__ import annotations

from kvserver.apply import AnswerRoom, LeaseKeys, Store
from kvserver.pb import rpc_pb2
from kvserver.types import LeaseId, Revision


class StoreReader:
    """Reads of the local store; small ones on the loop, large ones on the store's threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read_range(self, request: rpc_pb2.RangeRequest, room: AnswerRoom) -> rpc_pb2.RangeResponse:
        """Answer a checked range request, when there is room for the answer. Raises CompactedError, FutureRevisionError."""
        return await self._store.read(request, room)

    async def read_txn(self, request: rpc_pb2.TxnRequest, room: AnswerRoom) -> rpc_pb2.TxnResponse:
        """Answer a checked transaction that writes nothing, at one revision; as `read_range`."""
        return await self._store.read_txn(request, room)

    async def measure_write(self, request: rpc_pb2.TxnRequest | rpc_pb2.DeleteRangeRequest, limit_bytes: int) -> int:
        """What a checked write would answer if it were applied now, in bytes; exact up to the limit."""
        return await self._store.measure(request, limit_bytes)

    async def hash_kv(self, revision: Revision) -> rpc_pb2.HashKVResponse:
        """Hash what is held up to `revision` (0: the newest), on a thread. Raises as `read_range` does."""
        found = await self._store.hash_kv(revision)
        return rpc_pb2.HashKVResponse(
            header=rpc_pb2.ResponseHeader(revision=found.current_revision),
            hash=found.hash,
            compact_revision=found.compacted_revision,
            hash_revision=found.revision,
        )

    async def wait_compacted(self, revision: Revision) -> None:
        """Return when what a compaction at `revision` made unreachable is removed from the disk."""
        await self._store.wait_compacted(revision)

    async def read_leases(self, room: AnswerRoom) -> rpc_pb2.LeaseLeasesResponse:
        """All leases, ascending."""
        return await self._store.read_leases(room)

    async def read_lease(self, lease: LeaseId, room: AnswerRoom, *, with_keys: bool) -> LeaseKeys:
        """A lease's TTL, and if wanted the keys attached to it."""
        return await self._store.read_lease(lease, room, with_keys=with_keys)
