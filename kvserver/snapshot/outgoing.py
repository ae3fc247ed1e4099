"""Reading a copy chunk by chunk. Blocking: call on a thread."""

from __future__ import annotations

import os
from pathlib import Path

from kvserver.snapshot.errors import SnapshotStorageError


class OutgoingFile:
    """An open copy; it stays readable when its name is removed. One call at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SnapshotStorageError(f"{path}: {error.strerror or error}") from error
        self._path = path

    def read(self, offset: int, length_bytes: int) -> bytes:
        """Exactly `length_bytes` from `offset`. Raises SnapshotStorageError, also when the file is shorter than that."""
        try:
            chunk = os.pread(self._descriptor, length_bytes, offset)
        except OSError as error:
            raise SnapshotStorageError(f"{self._path}: {error.strerror or error}") from error
        if len(chunk) != length_bytes:
            raise SnapshotStorageError(f"{self._path}: {len(chunk)} bytes at offset {offset} where {length_bytes} were expected")
        return chunk

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
