"""The data directory: who may use it, and where things lie in it.

    <data-dir>/member/lock     held (flock) by the one process that uses the directory
    <data-dir>/member/wal/     the write-ahead log (or `--wal-dir`)
    <data-dir>/member/snap/    the store (`db`) and snapshot files
    <wal-dir>.lock             with `--wal-dir`: held likewise, so that two data directories can't share one log

Rules: mode 0700; the locks are taken before anything else is touched and released by closing them. A directory that can't be used is one
clear error. etcd's directory is recognised before anything is made in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvserver.errors import KvError
from kvserver.node import refusals
from kvserver.node.foreign import find_etcd_file
from wal import Files, OsFiles

OS_FILES: Final = OsFiles()

RESTORING: Final = "member.restoring"
"""Where `kvctl snapshot restore` builds what it then renames to `member`."""


class DataDirectoryError(KvError):
    """The data directory can't be used; the text says which one and why."""


@dataclass(slots=True, kw_only=True)
class DataDirectory:
    """A locked data directory. Make one with `open_data_directory`."""

    root: Path
    wal: Path
    snap: Path
    files: Files
    _locks: list[int]

    @property
    def store(self) -> Path:
        """The store's file."""
        return self.snap / "db"

    def close(self) -> None:
        """Release the locks. May be called twice."""
        while self._locks:
            os.close(self._locks.pop())


def open_data_directory(root: Path, wal: Path, *, files: Files = OS_FILES) -> DataDirectory:
    """Create what is missing and lock it. What lies in it is reached through `files` (the lock and LMDB's file excepted).

    Raises:
        DataDirectoryError: not writable, not a directory, etcd's, or in use by another process.
    """
    member = root / "member"
    snap = member / "snap"
    directory = DataDirectory(root=root, wal=wal, snap=snap, files=files, _locks=[])
    try:
        _refuse_files(directory)
        _refuse_etcd(directory)
        _refuse_unfinished_restore(directory)
        for made in (root, member, snap, wal.parent):
            _make_durably(made, files)
        directory._locks.append(_lock(member / "lock", f"data directory {root}"))
        if wal != member / "wal":
            directory._locks.append(_lock(wal.with_name(wal.name + ".lock"), f"WAL directory {wal}"))
    except OSError as error:
        directory.close()
        raise DataDirectoryError(
            f"data directory {root} can't be used: {error.strerror}: {error.filename}; check the path, its permissions and the disk"
        ) from error
    except BaseException:
        directory.close()
        raise
    return directory


def _refuse_files(directory: DataDirectory) -> None:
    """Name what is no directory, before something is made beside it. Raises DataDirectoryError, OSError."""
    for what, path in (("data directory", directory.root), ("data directory", directory.snap.parent), ("WAL directory", directory.wal)):
        if path.exists() and not path.is_dir():
            raise DataDirectoryError(refusals.not_a_directory(what, path))


def _refuse_etcd(directory: DataDirectory) -> None:
    found = find_etcd_file(directory.store, directory.wal)
    if found is not None:
        raise DataDirectoryError(
            f"data directory {directory.root} is etcd's ({found} is in etcd's format): kvserver can't run from it, nothing was changed. "
            "Choose another --data-dir; to move the data, start etcd and copy the keys over"
        )


def _refuse_unfinished_restore(directory: DataDirectory) -> None:
    part = directory.root / RESTORING
    if part.exists():
        raise DataDirectoryError(refusals.unfinished_restore(directory.root, part))


def _lock(path: Path, what: str) -> int:
    """Lock a file, for as long as the descriptor that this returns is open. Raises OSError, DataDirectoryError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise DataDirectoryError(f"{what} is in use by another kvserver process: stop that one, or choose another directory") from error
        raise DataDirectoryError(f"{what} can't be locked: {error.strerror}") from error
    return descriptor


def _make_durably(directory: Path, files: Files) -> None:
    """Make the directory and what it lies in; its name survives a power cut, as what is going to be fsynced inside must."""
    if files.is_directory(directory):
        return
    if not directory.parent.exists():
        _make_durably(directory.parent, files)
    files.make_directory(directory)
    files.fsync_dir(directory.parent)
