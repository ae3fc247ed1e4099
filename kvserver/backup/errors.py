"""What can be wrong with a snapshot file or with the place that it is restored to. Each text is one line that names the path."""

from __future__ import annotations

from pathlib import Path

from kvserver.errors import KvError


class BackupError(KvError):
    """Base of the room's errors."""


class SnapshotFileError(BackupError):
    """The file is no whole, undamaged snapshot of a kvserver."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


class RestoreError(BackupError):
    """The snapshot can't be restored there, or not so; nothing was left behind."""
