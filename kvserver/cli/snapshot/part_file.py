"""The file that a snapshot is saved to: FILE.part until all of it is there, verified and on the disk; then FILE, in one step.

Rules
- FILE either is what it was before or the whole new snapshot, whatever happens and whenever the process is killed. A part left by a killed
  process is taken over by the next save.
- One save at a time writes a part: it is locked.
- After the rename the directory is synced, so that the name survives a power cut.
- Only a regular file is replaced. Behind a symbolic link that is the file it leads to; the link stays.

Errors: OSError for what the file system says, PartInUseError, UnusableTargetError.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from kvserver.errors import KvError

SUFFIX = ".part"


class PartInUseError(KvError):
    """Another process is saving to the same file."""


class UnusableTargetError(KvError):
    """What has the name is no file that a snapshot may replace."""


class PartFile:
    """A context manager: leaving it without `finish` removes the part. Owned by one task."""

    def __init__(self, target: Path) -> None:
        self.target = _behind_links(target)
        self.path = self.target.parent / (self.target.name + SUFFIX)
        self._descriptor = -1

    def __enter__(self) -> PartFile:
        _check_target(self.target)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(self.path, descriptor):
                raise BlockingIOError
            os.ftruncate(descriptor, 0)  # only now: whoever holds the lock may be writing to the same file
        except BlockingIOError:
            os.close(descriptor)
            raise PartInUseError(f"{self.path} is being written by another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """Make the part durable and give it its name."""
        os.fsync(self._descriptor)
        self.path.replace(self.target)
        os.close(self._descriptor)
        self._descriptor = -1
        directory = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)  # last: until then nobody else takes the part
        self._descriptor = -1


def _behind_links(target: Path) -> Path:
    """The file that a symbolic link leads to; the rename would replace the link itself. Raises UnusableTargetError."""
    if not target.is_symlink():
        return target
    try:
        return target.resolve()
    except RuntimeError:  # what 3.11 raises for links that lead to each other
        raise UnusableTargetError(f"{target} is a symbolic link that leads nowhere") from None


def _check_target(target: Path) -> None:
    """A rename would take the place of a device or a pipe, whatever others use it for. Raises UnusableTargetError, OSError."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "is a directory", str(target))
    if not stat.S_ISREG(mode):
        raise UnusableTargetError(f"{target} is not a regular file: a snapshot would take its place; give the name of a file")


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that the path names now (its owner may just have renamed or removed it)."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
