"""The spare: one preallocated file, kept so that a full disk does not stop the log at once.

Purpose: a member must still be able to vote, and to take the alarm that says so, when the disk is full. The next segment is therefore
already on disk: a blank file under the name `spare`, which becomes the new segment's temporary file when one is cut or an open writes the
last batch again. It is refilled behind the cut.

Rules: want of space (ENOSPC, EDQUOT, EFBIG) or of file descriptors (EMFILE, ENFILE) is not an error of `refill`: there is then no spare,
`is_ready` says so, and the owner of the log stops taking writes and calls `refill` again from time to time. Every other failure is raised.
The spare is never written while it bears this name.

Blankness: a segment must be zero behind its last record, or the reader would have to take the rest for damage. Preallocation gives zeros,
but a file found under this name at a start may be anything: a segment that somebody moved there, a file restored from a backup. So what an
earlier process left is read through once (`find`), and taken only if every byte is zero; otherwise, and if its size is not the wanted one
(a changed flag, a crash while it was made), it is thrown away and made anew. Blocks that were reserved and never written are answered from
memory: reading 16 MiB of them takes about 3 ms.

Stale bytes would not be believed even so: a new segment's salt is random and seeds every checksum in it, so a record of another segment
does not validate there, and one of the same salt (2^-32) would still have to continue the chain of CRCs and batches (record.py). They would
be refused as damage, though, at the next start: that is what `find` spares the operator.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from wal.files import File, Files
from wal.reserve import OUT_OF_FILES_ERRNOS

SPARE_NAME: Final = "spare"
BLOCK_BYTES: Final = 256 * 1024
NO_SPACE_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's words for want of space: the disk is full, the user's quota is, or a file may not grow so large."""
HELD_ERRNOS: Final = NO_SPACE_ERRNOS | OUT_OF_FILES_ERRNOS
"""What passes by itself, or by the operator's hand, without harm to the log: it waits for that."""


class Spare:
    """The spare file of one log directory."""

    __slots__ = ("_directory", "_files", "_size_bytes", "is_ready")

    def __init__(self, files: Files, directory: Path, size_bytes: int) -> None:
        self._files = files
        self._directory = directory
        self._size_bytes = size_bytes
        self.is_ready = False

    @property
    def _path(self) -> Path:
        return self._directory / SPARE_NAME

    def find(self) -> None:
        """See whether an earlier process left a usable one."""
        self.is_ready = False
        if SPARE_NAME not in self._files.names(self._directory):
            return
        file = self._files.open(self._path, writable=False)
        try:
            self.is_ready = file.size() == self._size_bytes and _is_blank(file, self._size_bytes)
        finally:
            file.close()
        if not self.is_ready:
            self._files.remove(self._path)

    def refill(self) -> bool:
        """Make the spare if there is none; whether there is one now."""
        if self.is_ready:
            return True
        try:
            file = self._files.create(self._path)
        except OSError as error:
            if error.errno in HELD_ERRNOS:
                return False
            raise
        try:
            file.preallocate(self._size_bytes)
            file.fsync()
        except OSError as error:
            self._files.remove(self._path)
            if error.errno in HELD_ERRNOS:
                return False
            raise
        finally:
            file.close()
        self._files.fsync_dir(self._directory)
        self.is_ready = True
        return True

    def allocate(self, path: Path, size_bytes: int) -> File:
        """A blank file of at least `size_bytes` at this path, for writing: the spare under a new name, or a new one.

        An OSError leaves the spare as it is, and nothing at the path.
        """
        if self.is_ready and size_bytes <= self._size_bytes:
            file = self._files.open(self._path, writable=True)
            try:
                self._files.rename(self._path, path)
            except BaseException:
                file.close()
                raise
            self.is_ready = False
            return file
        return allocate(self._files, path, size_bytes)


def _is_blank(file: File, size_bytes: int) -> bool:
    """Whether the file's first `size_bytes` are zeros."""
    zeros = bytes(min(BLOCK_BYTES, size_bytes))
    for offset_bytes in range(0, size_bytes, BLOCK_BYTES):
        length_bytes = min(BLOCK_BYTES, size_bytes - offset_bytes)
        if file.pread(length_bytes, offset_bytes) != zeros[:length_bytes]:
            return False
    return True


def allocate(files: Files, path: Path, size_bytes: int) -> File:
    """A new blank file with `size_bytes` reserved, for writing. An OSError leaves nothing at the path."""
    file = files.create(path)
    try:
        file.preallocate(size_bytes)
    except BaseException:
        file.close()
        files.remove(path)
        raise
    return file
