"""The few filesystem operations that the log and the snapshots need, behind a Protocol.

Purpose: every byte and every sync of the log and of the snapshot files goes through `Files`, so that tests fail the Nth operation or lose
what was not synced (kvserver/testing/faults).

Rules: no policy here; methods raise OSError as the system gives it. `pwritev` writes everything or raises. `pread` returns fewer bytes than
asked only at the end of the file. A file's content is durable after `fdatasync` or `fsync` returned; its name, a rename and a removal after
`fsync_dir` of the directory returned.

Caveat: after a failed sync the kernel may mark the unwritten pages clean, so a second sync that succeeds proves nothing (durability.md);
the callers treat the first failure as final.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from wal.reserve import DescriptorReserve

_T = TypeVar("_T")

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
MAX_BUFFERS_PER_WRITE: Final = 1_024
"""Linux's IOV_MAX: one pwritev takes no more buffers than this."""


class File(Protocol):
    """One open file."""

    @property
    def path(self) -> Path:
        """Where the file was when it was opened."""

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """The bytes [offset, offset + length), fewer only at the end of the file."""

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        """Write all the buffers, one behind the other, from the offset; no buffer is copied."""

    def size(self) -> int:
        """The file's length in bytes."""

    def preallocate(self, size_bytes: int) -> None:
        """Make the file at least this long, with blocks reserved; the new bytes read as zero."""

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to this length."""

    def fdatasync(self) -> None:
        """Return when the file's content, and the length that is needed to read it, is durable."""

    def fsync(self) -> None:
        """Return when the file's content and all its metadata are durable."""

    def close(self) -> None:
        """Release the file; syncs nothing."""


class Files(Protocol):
    """The directory operations, and the source of salts."""

    def open(self, path: Path, *, writable: bool) -> File:
        """Open an existing file."""

    def create(self, path: Path) -> File:
        """Create a file that must not exist, for reading and writing, mode 0600."""

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, in no order."""

    def is_directory(self, path: Path) -> bool:
        """Whether a directory is there."""

    def make_directory(self, path: Path) -> None:
        """Create a directory that must not exist, mode 0700."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically; a file or an empty directory at the target is replaced."""

    def fsync_dir(self, directory: Path) -> None:
        """Return when the directory's names are durable."""

    def free_bytes(self, directory: Path) -> int:
        """How much more this process may write on the directory's file system, as of now."""

    def random_u32(self) -> int:
        """An unpredictable number in [0, 2^32): a segment's salt."""


class OsFile:
    """A `File` over a descriptor."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def path(self) -> Path:
        """Where the file was when it was opened."""
        return self._path

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """As `File.pread`."""
        data = os.pread(self._descriptor, length_bytes, offset_bytes)
        if len(data) == length_bytes or not data:
            return data
        parts = [data]
        got_bytes = len(data)
        while got_bytes < length_bytes:
            data = os.pread(self._descriptor, length_bytes - got_bytes, offset_bytes + got_bytes)
            if not data:
                break
            parts.append(data)
            got_bytes += len(data)
        return b"".join(parts)

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        """As `File.pwritev`."""
        for start in range(0, len(buffers), MAX_BUFFERS_PER_WRITE):
            offset_bytes = self._write_group(buffers[start : start + MAX_BUFFERS_PER_WRITE], offset_bytes)

    def _write_group(self, buffers: Sequence[bytes], offset_bytes: int) -> int:
        """Write at most one pwritev's worth of buffers, whole; return the offset behind them."""
        pending: list[bytes | memoryview] = list(buffers)
        remaining_bytes = sum(map(len, pending))
        while remaining_bytes:
            written_bytes = os.pwritev(self._descriptor, pending, offset_bytes)
            if written_bytes == 0:
                raise OSError(errno.EIO, "the system wrote nothing", str(self._path))
            offset_bytes += written_bytes
            remaining_bytes -= written_bytes
            while pending and written_bytes >= len(pending[0]):
                written_bytes -= len(pending.pop(0))
            if written_bytes:
                pending[0] = memoryview(pending[0])[written_bytes:]
        return offset_bytes

    def size(self) -> int:
        """As `File.size`."""
        return os.fstat(self._descriptor).st_size

    def preallocate(self, size_bytes: int) -> None:
        """As `File.preallocate`; where the filesystem can not reserve blocks the file is merely made longer."""
        present_bytes = self.size()
        if size_bytes <= present_bytes:
            return
        try:
            os.posix_fallocate(self._descriptor, present_bytes, size_bytes - present_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(self._descriptor, size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """As `File.truncate`."""
        os.ftruncate(self._descriptor, size_bytes)

    def fdatasync(self) -> None:
        """As `File.fdatasync`."""
        os.fdatasync(self._descriptor)

    def fsync(self) -> None:
        """As `File.fsync`."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """As `File.close`; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OsFiles:
    """`Files` as the operating system has them; with a reserve also when the process has no descriptor left."""

    __slots__ = ("_reserve",)

    def __init__(self, reserve: DescriptorReserve | None = None) -> None:
        self._reserve = reserve

    def _opened(self, opening: Callable[[], _T]) -> _T:
        return opening() if self._reserve is None else self._reserve.open(opening)

    def open(self, path: Path, *, writable: bool) -> File:
        """As `Files.open`."""
        return OsFile(path, self._opened(lambda: os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)))

    def create(self, path: Path) -> File:
        """As `Files.create`."""
        return OsFile(path, self._opened(lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)))

    def names(self, directory: Path) -> list[str]:
        """As `Files.names`."""
        return self._opened(lambda: os.listdir(directory))

    def is_directory(self, path: Path) -> bool:
        """As `Files.is_directory`."""
        return path.is_dir()

    def make_directory(self, path: Path) -> None:
        """As `Files.make_directory`."""
        os.mkdir(path, DIRECTORY_MODE)

    def remove(self, path: Path) -> None:
        """As `Files.remove`."""
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        """As `Files.remove_directory`."""
        os.rmdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """As `Files.rename`."""
        os.rename(source, target)

    def fsync_dir(self, directory: Path) -> None:
        """As `Files.fsync_dir`."""
        descriptor = self._opened(lambda: os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, directory: Path) -> int:
        """As `Files.free_bytes`."""
        room = os.statvfs(directory)
        return room.f_bavail * room.f_frsize

    def random_u32(self) -> int:
        """As `Files.random_u32`."""
        return int.from_bytes(os.urandom(4), "little")
