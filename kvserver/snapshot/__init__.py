"""Snapshots as files: taking a copy of the store, cutting it into chunks, verifying and finishing what arrives.

Purpose: everything about a snapshot that is not the network. `kvserver.peer` streams what this room reads and writes.

Rules: every file access goes through `wal.Files`. `plan` is pure; `files`, `incoming` and `outgoing` block and belong on a thread; `copies`
is the asyncio side of taking and sharing. Memory holds one chunk at a time, never a snapshot.

Source: architecture.md, "a snapshot to a peer that fell behind".
"""

from kvserver.snapshot.copies import MakeCopy, SnapshotCopies, SnapshotCopy
from kvserver.snapshot.errors import (
    SnapshotCopyError,
    SnapshotCorruptError,
    SnapshotError,
    SnapshotOfferError,
    SnapshotStorageError,
)
from kvserver.snapshot.files import ReceivedSnapshot, cleanup, discard, list_received, remove_received
from kvserver.snapshot.incoming import IncomingFile
from kvserver.snapshot.outgoing import OutgoingFile
from kvserver.snapshot.plan import SnapshotOffer
from kvserver.snapshot.threads import run_to_end

__all__ = [
    "IncomingFile",
    "MakeCopy",
    "OutgoingFile",
    "ReceivedSnapshot",
    "SnapshotCopies",
    "SnapshotCopy",
    "SnapshotCopyError",
    "SnapshotCorruptError",
    "SnapshotError",
    "SnapshotOffer",
    "SnapshotOfferError",
    "SnapshotStorageError",
    "cleanup",
    "discard",
    "list_received",
    "remove_received",
    "run_to_end",
]
