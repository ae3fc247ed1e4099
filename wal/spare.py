"""The spare: one preallocated file, kept so that a full disk does not stop the log at once.

Purpose: a member must still be able to vote, and to take the alarm that says so, when the disk is full. The next segment is therefore
already on disk: a blank file under the name `spare`, which becomes the new segment's temporary file when one is cut or an open writes the
last batch again. It is refilled behind the cut.

Rules: a full disk (ENOSPC, EDQUOT) is not an error here: there is then no spare, `is_ready` says so, and the owner of the log stops taking
writes and calls `refill` again from time to time. Every other failure is raised. The spare is never written while it bears this name.

Caveat: a spare whose size is not the wanted one (a changed flag, a crash while it was made) is thrown away and made anew.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from wal.files import File, Files

SPARE_NAME: Final = "spare"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


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
            self.is_ready = file.size() == self._size_bytes
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
            if error.errno in _FULL:
                return False
            raise
        try:
            file.preallocate(self._size_bytes)
            file.fsync()
        except OSError as error:
            self._files.remove(self._path)
            if error.errno in _FULL:
                return False
            raise
        finally:
            file.close()
        self._files.fsync_dir(self._directory)
        self.is_ready = True
        return True

    def open_as(self, path: Path) -> File:
        """A blank file at this path, for writing: the spare under a new name, or a new file."""
        if not self.is_ready:
            return self._files.create(path)
        self.is_ready = False
        self._files.rename(self._path, path)
        return self._files.open(path, writable=True)
