"""Saved snapshots without a server: what one holds, and making a new cluster's data directory of it.

Purpose: `kvctl snapshot status` and `kvctl snapshot restore`. The commands are kvctl's, but what they do is the server's: they read the
store's file and write a store and a WAL. So this room stands above `cli`, which knows it by name only (cli/snapshot).

Rules: every byte is checked before it is believed: the file's checksum first, then every page and row, without LMDB. A restore either ends
with a whole data directory or leaves nothing.
"""

from kvserver.backup.errors import BackupError, RestoreError, SnapshotFileError
from kvserver.backup.restoring import Restored, RestoreOrder, restore
from kvserver.backup.saved_file import SnapshotSummary, examine, summarize

__all__ = [
    "BackupError",
    "RestoreError",
    "RestoreOrder",
    "Restored",
    "SnapshotFileError",
    "SnapshotSummary",
    "examine",
    "restore",
    "summarize",
]
