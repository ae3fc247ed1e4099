"""Reading a copy chunk by chunk. Blocking: call on a thread."""

from __future__ import annotations

from pathlib import Path

from kvserver.snapshot.errors import SnapshotStorageError
from kvserver.snapshot.files import OS_FILES
from wal import Files


class OutgoingFile:
    """An open copy; it stays readable when its name is removed. One call at a time."""

    def __init__(self, path: Path, *, files: Files = OS_FILES) -> None:
        try:
            self._file = files.open(path, writable=False)
        except OSError as error:
            raise SnapshotStorageError(f"{path}: {error.strerror or error}") from error
        self._path = path

    def read(self, offset: int, length_bytes: int) -> bytes:
        """Exactly `length_bytes` from `offset`. Raises SnapshotStorageError, also when the file is shorter than that."""
        try:
            chunk = self._file.pread(length_bytes, offset)
        except OSError as error:
            raise SnapshotStorageError(f"{self._path}: {error.strerror or error}") from error
        if len(chunk) != length_bytes:
            raise SnapshotStorageError(f"{self._path}: {len(chunk)} bytes at offset {offset} where {length_bytes} were expected")
        return chunk

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()
