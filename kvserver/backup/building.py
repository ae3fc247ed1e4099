"""The place where a data directory is built: there at once, or not at all.

    <data-dir>/member.restoring/snap/db    becomes <data-dir>/member/snap/db
    <data-dir>/member.restoring/wal/       becomes <data-dir>/member/wal/, unless a --wal-dir of its own was given

Rules
- The data directory may exist if it is empty (a mounted volume is); so may the WAL directory. What an earlier restore left behind when it
  was killed doesn't count and is removed.
- `finish` syncs what was built and renames it, which is the one step that makes it a data directory. Leaving the block without it removes
  everything that was made, the directories themselves included if they weren't there before.
- One restore at a time works in a data directory: it is locked (flock on the directory itself).

Errors: RestoreError for a place that is taken; OSError for what the file system says.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from kvserver.backup.errors import RestoreError
from kvserver.node.directory import RESTORING
from wal.segment import TEMPORARY_SUFFIX


class Building:
    """A context manager; see the module. Attributes: where the store and the WAL are to be made."""

    def __init__(self, data_dir: Path, wal_dir: Path | None) -> None:
        self._root = data_dir
        self._wal_dir = wal_dir
        self._made: list[Path] = []
        self._lock = -1
        self._finished = False
        self._had_wal_dir = wal_dir is not None and wal_dir.is_dir()
        self._part = data_dir / RESTORING
        self.store = self._part / "snap" / "db"
        self.wal = wal_dir if wal_dir is not None else self._part / "wal"

    def __enter__(self) -> Building:
        self._check_free(self._root, "data-dir", leftovers={RESTORING})
        if self._wal_dir is not None:
            self._check_free(self._wal_dir, "wal-dir")
        try:
            self._make(self._root)
            self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_part()
            self._make(self._part / "snap")
            if self._wal_dir is not None:
                self._make(self._wal_dir.parent)
        except BlockingIOError:
            self._close_lock()  # and nothing else: what is there is the other's
            raise RestoreError(f"another restore is working in {self._root}") from None
        except BaseException:
            self._undo()
            raise
        return self

    def finish(self) -> None:
        """Make what was built durable and put it in its place. Raises OSError."""
        for directory in (self._part / "snap", self._part, self._root):
            _sync(directory)
        os.rename(self._part, self._root / "member")
        self._finished = True
        _sync(self._root)
        for made in self._made:
            _sync(made.parent)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._finished:
            self._close_lock()
        else:
            self._undo()

    def _check_free(self, directory: Path, flag: str, leftovers: frozenset[str] | set[str] = frozenset()) -> None:
        if not directory.exists():
            return
        if not directory.is_dir():
            raise RestoreError(f"--{flag}: {directory} is not a directory")
        if {entry.name for entry in directory.iterdir()} - leftovers:
            raise RestoreError(f'{flag} "{directory}" is not empty: restore to a new directory, and keep the old one until all is well')

    def _make(self, directory: Path) -> None:
        """Make the directory and those it lies in; remember what wasn't there."""
        if directory.is_dir():
            return
        if not directory.parent.is_dir():
            self._make(directory.parent)
        directory.mkdir(mode=0o700)
        if self._part not in (directory, *directory.parents):
            self._made.append(directory)

    def _undo(self) -> None:
        """Remove what was made, the newest first; whatever can't be removed is named `member.restoring`, which no server starts from."""
        if self._lock >= 0:
            self._remove_wal()
            self._remove_part()
        for directory in reversed(self._made):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        self._made.clear()
        self._close_lock()

    def _remove_wal(self) -> None:
        """Remove a WAL outside the data directory, whole or half-made; the directory itself stays if it was there before."""
        if self._wal_dir is None:
            return
        shutil.rmtree(self._wal_dir.with_name(self._wal_dir.name + TEMPORARY_SUFFIX), ignore_errors=True)
        shutil.rmtree(self._wal_dir, ignore_errors=True)
        if self._had_wal_dir:
            self._wal_dir.mkdir(mode=0o700, exist_ok=True)

    def _remove_part(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)

    def _close_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
