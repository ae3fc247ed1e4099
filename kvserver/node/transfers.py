"""Snapshots as the node sees them: asking for them, receiving them, installing them.

Purpose: the steps between raft's MsgSnap and the streams of `peer` and the files of `snapshot`.

Rules
- Sending: one transfer per peer; its position is pinned in the window from the moment it is wanted, and raft hears of its end exactly once.
- Receiving: the file is whole and durable before raft sees the message; a file that raft does not want is removed.
- Installing, in this order: the file proves to be an intact store; everything committed before is applied; the WAL's marker (with hard
  state) is durable; the store is swapped; the window begins behind the snapshot. A crash after the marker is finished at the next start
  (`bootstrap`), a crash before it leaves a file that is removed. An install that is cancelled (by a stop) ends as by a crash.
- All that touches files runs in threads; the loop serves meanwhile, from the old store until the new one takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from kvserver.apply import Meta
from kvserver.errors import FatalError
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.log_window import LogWindow
from kvserver.node.opening import inspect_received
from kvserver.snapshot import discard, list_received, remove_received
from kvserver.storage import StoreUnreadableError
from raft.messages import Message
from raft.types import HardState, Index, SnapshotMetadata, Term
from wal import Files, Marker, OsFiles


class MarkerWriter(Protocol):
    """What installing needs of the WAL; blocks, on the WAL thread."""

    def save_marker(self, marker: Marker, hard_state: HardState | None) -> None: ...


class InstallableStore(Protocol):
    """What installing needs of the store."""

    async def install(self, path: Path, found: Meta) -> SnapshotMetadata: ...


@dataclass(slots=True, kw_only=True)
class Installer:
    """Puts a received snapshot in force. Runs as part of the append queue: nothing is saved meanwhile.

    `write` runs a write on the WAL's thread, and waits for space where there is none.
    """

    directory: Path
    wal: MarkerWriter
    write: Callable[[Callable[[], None]], Awaitable[None]]
    store: InstallableStore
    window: LogWindow
    apply_queue: ApplyQueue
    on_installed: Callable[[SnapshotMetadata], None]
    metrics: Metrics
    log: Logger
    files: Files = field(default_factory=OsFiles)

    async def install(self, message: Message, hard_state: HardState) -> None:
        """Install the snapshot that raft accepted with `message`.

        Raises:
            FatalError: its file is gone.
        """
        assert message.snapshot is not None
        metadata = message.snapshot.metadata
        received = await asyncio.to_thread(self._find, metadata.index, metadata.term)
        found = await self._inspect(received, metadata.index)
        await self.apply_queue.wait_idle()
        marker = Marker(metadata.index, metadata.term)
        await self.write(partial(self.wal.save_marker, marker, hard_state))
        await self.store.install(received, found)
        self.window.reset(metadata.index, metadata.term)
        self.metrics.snapshots_received.add()
        self.log.info("applied snapshot", index=metadata.index, term=metadata.term)
        self.on_installed(metadata)
        # The installed one has moved into place; what is left is older.
        await asyncio.to_thread(remove_received, self.directory, metadata.index, files=self.files)

    async def _inspect(self, received: Path, index: Index) -> Meta:
        """Look into the file before the marker commits this member to it; a damaged one is removed, and the next start asks for another."""
        try:
            found = await inspect_received(received, self.log)
        except StoreUnreadableError:
            await asyncio.to_thread(discard, self.files, received)
            raise
        if found.index != index:
            await asyncio.to_thread(discard, self.files, received)
            raise FatalError(f"the snapshot at index {index} holds a store at index {found.index}: it was removed; start this member again")
        return found

    def _find(self, index: Index, term: Term) -> Path:
        """The received file. Blocking. Raises FatalError."""
        for found in list_received(self.directory, files=self.files):
            if (found.index, found.term) == (index, term):
                return found.path
        raise FatalError(f"the snapshot at index {index}, term {term} was received, but its file is not in {self.directory}")
