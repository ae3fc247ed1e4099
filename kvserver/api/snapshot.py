"""Maintenance.Snapshot: a consistent copy of this member's store as a stream, followed by its checksum.

Rules
- The stream is the content in messages of `CHUNK_BYTES` at most, then one message with the SHA-256 of all of it; `remaining_bytes` counts
  down to 0 and leaves the checksum out. Storing every blob in order gives the file that `kvctl snapshot status` and `restore` take.
- Everything that this member had acknowledged when the call began is in it. No quorum is asked: a member that has lost it can be saved.
- A learner answers, too. Memory holds one chunk; the next one is read when the client has taken the last.
- A client that takes nothing for `STALL_S` is cut off: its copy takes room on this member's disk.

Source: etcd's v3rpc/maintenance.go for the messages and their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final, Protocol

from kvserver.api.guard import Guard
from kvserver.api.protocols import StreamCall
from kvserver.config import ETCD_API_VERSION
from kvserver.errors import RequestTimeoutError
from kvserver.pb import rpc_pb2

__all__ = ["CHUNK_BYTES", "STALL_S", "SavedCopy", "SnapshotService", "SnapshotSource"]

CHUNK_BYTES: Final = 128 * 1024
STALL_S: Final = 120.0

_STORAGE_VERSION: Final = ".".join(ETCD_API_VERSION.split(".")[:2]) + ".0"


class SavedCopy(Protocol):
    """A copy of the store that doesn't change."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> bytes: ...

    async def read(self, offset: int, length_bytes: int) -> bytes:
        """Exactly so many bytes of it, read on a thread. Raises `RequestError` leaves."""


class SnapshotSource(Protocol):
    """Where copies come from."""

    def open(self, *, deadline_s: float) -> AbstractAsyncContextManager[SavedCopy]:
        """A copy of everything acknowledged before the call; its file is gone when the block is left, for whatever reason.

        `deadline_s` (monotonic) bounds the wait for what is acknowledged to be in the store, not the copying.

        Raises:
            TooManyRequestsError: as many copies are being read as are allowed.
            SnapshotNoRoomError, SnapshotFailedError, RequestTimeoutError, CorruptError: none could be made.
        """


class SnapshotService:
    """The handler. `stall_s` is for tests."""

    def __init__(self, *, guard: Guard, source: SnapshotSource, stall_s: float = STALL_S) -> None:
        self._guard = guard
        self._source = source
        self._stall_s = stall_s

    async def snapshot(self, request: rpc_pb2.SnapshotRequest, call: StreamCall) -> AsyncGenerator[rpc_pb2.SnapshotResponse, None]:
        """The content, then the checksum. Raises as `SnapshotSource.open`."""
        self._guard.admit(call, for_learner=True)
        async with self._source.open(deadline_s=self._guard.deadline_s(call)) as copy:
            offset = 0
            while offset < copy.size_bytes:
                blob = await copy.read(offset, min(CHUNK_BYTES, copy.size_bytes - offset))
                offset += len(blob)
                with _cut_off_after(self._stall_s, call):
                    yield rpc_pb2.SnapshotResponse(remaining_bytes=copy.size_bytes - offset, blob=blob, version=_STORAGE_VERSION)
            with _cut_off_after(self._stall_s, call):
                yield rpc_pb2.SnapshotResponse(blob=copy.sha256, version=_STORAGE_VERSION)


@contextmanager
def _cut_off_after(stall_s: float, call: StreamCall) -> Iterator[None]:
    """Cut the client off if the block, in which it takes a message, lasts longer than this."""
    timer = asyncio.get_running_loop().call_later(stall_s, call.cut_off, RequestTimeoutError())
    try:
        yield
    finally:
        timer.cancel()
