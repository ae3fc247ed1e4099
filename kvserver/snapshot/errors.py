"""What can go wrong with a snapshot file. None of it stops the node: the transfer fails, and raft asks for another one.

Rules: one base; every text is one line that names the file or the number at fault.
"""

from __future__ import annotations

from kvserver.errors import KvError


class SnapshotError(KvError):
    """Base of the snapshot room's errors."""


class SnapshotOfferError(SnapshotError):
    """A sender's announcement, or a chunk, contradicts the rules or itself."""


class SnapshotCorruptError(SnapshotError):
    """The whole file's checksum is not the one announced; the received part is discarded."""


class SnapshotStorageError(SnapshotError):
    """The file system refused (disk full, no permission, IO error); the text carries its words."""


class SnapshotCopyError(SnapshotError):
    """No copy of the store could be taken."""
