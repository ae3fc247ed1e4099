"""Where things lie in a data directory, and whether a server uses it.

Rules: nothing is created. The lock is probed by asking for it shared and letting go at once; `kvserver check` holds it shared while it
reads, so that no server starts under it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvserver.errors import KvError
from kvserver.node import refusals
from kvserver.node.directory import RESTORING


class UnusablePlaceError(KvError):
    """There is nothing to look at, or it can't be read; the text says why. Exit code 2."""


class InUseError(UnusablePlaceError):
    """A server holds the directory."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"data directory {root} is in use by a running kvserver: stop it first, or check a copy of the directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A member's directories, as `--data-dir` and `--wal-dir` name them."""

    root: Path
    wal: Path

    @property
    def snap(self) -> Path:
        """The store and the snapshot files."""
        return self.root / "member" / "snap"

    @property
    def store(self) -> Path:
        """The store's file."""
        return self.snap / "db"

    @property
    def lock(self) -> Path:
        """The file that a server keeps locked."""
        return self.root / "member" / "lock"


def find_place(root: Path, wal_dir: Path | None) -> Place:
    """The places of a data directory. Raises UnusablePlaceError if it is none, or if a restore to it was not finished; OSError."""
    if root.exists() and not root.is_dir():
        raise UnusablePlaceError(refusals.not_a_directory("data directory", root))
    if (root / RESTORING).exists():
        raise UnusablePlaceError(refusals.unfinished_restore(root, root / RESTORING))
    if not root.exists():
        raise UnusablePlaceError(f"{root} is no data directory: it does not exist")
    if not (root / "member").is_dir():
        raise UnusablePlaceError(f"{root} is no data directory: there is no {root / 'member'}")
    if wal_dir is not None and not wal_dir.is_dir():
        what = "is not a directory" if wal_dir.exists() else "does not exist"
        raise UnusablePlaceError(f"--wal-dir: {wal_dir} {what}: check the path")
    return Place(root=root, wal=wal_dir or root / "member" / "wal")


def is_in_use(place: Place) -> bool:
    """Whether a server uses the directory now."""
    try:
        with hold(place):
            return False
    except InUseError:
        return True


@contextmanager
def hold(place: Place) -> Iterator[None]:
    """Keep servers away while the block runs. Raises InUseError, UnusablePlaceError; a directory without a lock file was never used."""
    try:
        descriptor = os.open(place.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise UnusablePlaceError(f"{place.lock}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(place.root) from error
        yield
    finally:
        os.close(descriptor)
