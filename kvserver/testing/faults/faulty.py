"""A file system that fails as planned, over any other one.

Rules: an operation that is to fail is not passed on, except that a `partial` write writes its beginning,
up to a sector's end. A sync that fails is told to
`on_failed_sync`, so that a simulated disk below can forget the writes as a kernel does; over a real disk nothing more happens: whatever
that makes of the writes is legal after a failed sync. Faults see the present name of a file that was renamed while it was open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol
from weakref import WeakSet

from kvserver.testing.faults.crash import SECTOR_BYTES
from kvserver.testing.faults.injection import Fault
from wal import File, Files


class Injector(Protocol):
    """Who decides what fails (`Faults` does)."""

    def strike(self, operation: str, path: Path) -> Fault | None:
        """The fault that this operation meets, if any; it is about to begin."""

    def check(self, operation: str, path: Path) -> None:
        """The same, raised."""


class FaultyFile:
    """A `wal.File` whose operations may fail."""

    __slots__ = ("__weakref__", "_faults", "_inner", "_on_failed_sync", "name")

    def __init__(self, inner: File, faults: Injector, on_failed_sync: Callable[[File], None] | None) -> None:
        self._inner = inner
        self._faults = faults
        self._on_failed_sync = on_failed_sync
        self.name = inner.path

    @property
    def path(self) -> Path:
        """As `File.path`."""
        return self._inner.path

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """As `File.pread`."""
        self._faults.check("pread", self.name)
        return self._inner.pread(length_bytes, offset_bytes)

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        """As `File.pwritev`; a partial failure leaves the beginning written."""
        fault = self._faults.strike("pwritev", self.name)
        if fault is None:
            self._inner.pwritev(buffers, offset_bytes)
            return
        if fault.partial is not None:
            data = b"".join(buffers)
            end_bytes = offset_bytes + int(len(data) * fault.partial)
            self._inner.pwritev([data[: max(0, end_bytes - end_bytes % SECTOR_BYTES - offset_bytes)]], offset_bytes)
        raise fault.error(self.name)

    def size(self) -> int:
        """As `File.size`."""
        return self._inner.size()

    def preallocate(self, size_bytes: int) -> None:
        """As `File.preallocate`."""
        self._faults.check("preallocate", self.name)
        self._inner.preallocate(size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """As `File.truncate`."""
        self._faults.check("truncate", self.name)
        self._inner.truncate(size_bytes)

    def fdatasync(self) -> None:
        """As `File.fdatasync`."""
        self._check_sync("fdatasync")
        self._inner.fdatasync()

    def fsync(self) -> None:
        """As `File.fsync`."""
        self._check_sync("fsync")
        self._inner.fsync()

    def close(self) -> None:
        """As `File.close`."""
        self._inner.close()

    def _check_sync(self, operation: str) -> None:
        fault = self._faults.strike(operation, self.name)
        if fault is not None:
            if self._on_failed_sync is not None:
                self._on_failed_sync(self._inner)
            raise fault.error(self.name)


class FaultyFiles:
    """A `wal.Files` whose operations, and those of its files, may fail."""

    def __init__(self, inner: Files, faults: Injector, *, on_failed_sync: Callable[[File], None] | None = None) -> None:
        self._inner = inner
        self._faults = faults
        self._on_failed_sync = on_failed_sync
        self._opened: WeakSet[FaultyFile] = WeakSet()
        self._lock = Lock()

    def open(self, path: Path, *, writable: bool) -> File:
        """As `Files.open`."""
        self._faults.check("open_write" if writable else "open_read", path)
        return self._wrap(self._inner.open(path, writable=writable))

    def create(self, path: Path) -> File:
        """As `Files.create`."""
        self._faults.check("create", path)
        return self._wrap(self._inner.create(path))

    def names(self, directory: Path) -> list[str]:
        """As `Files.names`."""
        self._faults.check("names", directory)
        return self._inner.names(directory)

    def is_directory(self, path: Path) -> bool:
        """As `Files.is_directory`."""
        return self._inner.is_directory(path)

    def make_directory(self, path: Path) -> None:
        """As `Files.make_directory`."""
        self._faults.check("make_directory", path)
        self._inner.make_directory(path)

    def remove(self, path: Path) -> None:
        """As `Files.remove`."""
        self._faults.check("remove", path)
        self._inner.remove(path)

    def remove_directory(self, path: Path) -> None:
        """As `Files.remove_directory`."""
        self._faults.check("remove_directory", path)
        self._inner.remove_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        """As `Files.rename`."""
        self._faults.check("rename", source)
        self._inner.rename(source, target)
        with self._lock:
            for file in self._opened:
                if file.name.is_relative_to(source):
                    file.name = target / file.name.relative_to(source)

    def fsync_dir(self, directory: Path) -> None:
        """As `Files.fsync_dir`."""
        self._faults.check("fsync_dir", directory)
        self._inner.fsync_dir(directory)

    def free_bytes(self, directory: Path) -> int:
        """As `Files.free_bytes`."""
        self._faults.check("free_bytes", directory)
        return self._inner.free_bytes(directory)

    def random_u32(self) -> int:
        """As `Files.random_u32`."""
        return self._inner.random_u32()

    def _wrap(self, inner: File) -> File:
        file = FaultyFile(inner, self._faults, self._on_failed_sync)
        with self._lock:
            self._opened.add(file)
        return file
