"""The data directory: who may use it, and where things lie in it.

    <data-dir>/member/lock     held (flock) by the one process that uses the directory
    <data-dir>/member/wal/     the write-ahead log (or `--wal-dir`)
    <data-dir>/member/snap/    the store (`db`) and snapshot files

Rules: mode 0700; the lock is taken before anything else is touched and released by closing it. A directory that can't be used is one
clear error.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from kvserver.errors import KvError


class DataDirectoryError(KvError):
    """The data directory can't be used; the text says which one and why."""


@dataclass(slots=True, kw_only=True)
class DataDirectory:
    """A locked data directory. Make one with `open_data_directory`."""

    root: Path
    wal: Path
    snap: Path
    _lock_descriptor: int

    @property
    def store(self) -> Path:
        """The store's file."""
        return self.snap / "db"

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def open_data_directory(root: Path, wal: Path) -> DataDirectory:
    """Create what is missing and lock it.

    Raises:
        DataDirectoryError: not writable, not a directory, or in use by another process.
    """
    member = root / "member"
    snap = member / "snap"
    try:
        for directory in (root, member, snap, wal.parent):
            _make_durably(directory)
        descriptor = os.open(member / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataDirectoryError(f"data directory {root} can't be used: {error.strerror}: {error.filename}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise DataDirectoryError(f"data directory {root} is in use by another kvserver process") from error
        raise DataDirectoryError(f"data directory {root} can't be locked: {error.strerror}") from error
    return DataDirectory(root=root, wal=wal, snap=snap, _lock_descriptor=descriptor)


def _make_durably(directory: Path) -> None:
    """Make the directory and what it lies in; its name survives a power cut, as what is going to be fsynced inside must."""
    if directory.is_dir():
        return
    if not directory.parent.exists():
        _make_durably(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
