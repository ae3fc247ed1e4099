"""A disk in memory, as `wal.Files`: what the log and the snapshots do to it is seen at once and durable only after the right sync.

Rules: paths are absolute; the root is there, nothing else. `after_power_loss` is a new disk in one of the states that a power loss now
could leave; `after_restart` the same disk for a new process, which sees everything, durable or not.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from kvserver.testing.faults.crash import CrashStates, Tree, disk_of
from kvserver.testing.faults.disk import DirectoryNode, Disk
from kvserver.testing.faults.operations import (
    Allocate,
    CreateFile,
    FailSync,
    MakeDirectory,
    Remove,
    Rename,
    SyncDirectory,
    SyncFile,
    Truncate,
    Write,
)
from wal import File

UNLIMITED_BYTES: Final = 1 << 50


class MemoryFile:
    """A `wal.File` on a `MemoryDisk`."""

    __slots__ = ("_disk", "_node", "number", "path")

    def __init__(self, disk: Disk, path: Path, number: int) -> None:
        self._disk = disk
        self._node = disk.file(number)
        self.number = number
        self.path = path

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """As `File.pread`."""
        return bytes(self._node.content[offset_bytes : offset_bytes + length_bytes])

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        """As `File.pwritev`."""
        self._disk.apply(Write(self.number, offset_bytes, b"".join(buffers)))

    def size(self) -> int:
        """As `File.size`."""
        return len(self._node.content)

    def preallocate(self, size_bytes: int) -> None:
        """As `File.preallocate`."""
        self._disk.apply(Allocate(self.number, size_bytes))

    def truncate(self, size_bytes: int) -> None:
        """As `File.truncate`."""
        self._disk.apply(Truncate(self.number, size_bytes))

    def fdatasync(self) -> None:
        """As `File.fdatasync`."""
        self._disk.apply(SyncFile(self.number))

    def fsync(self) -> None:
        """As `File.fsync`."""
        self._disk.apply(SyncFile(self.number))

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryDisk:
    """`wal.Files` in memory."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self.disk = Disk()

    @classmethod
    def from_tree(cls, tree: Tree, seed: int = 0) -> MemoryDisk:
        """A disk that holds this tree durably."""
        memory = cls(seed)
        memory.disk = disk_of(tree)
        return memory

    @classmethod
    def load(cls, directory: Path, seed: int = 0) -> MemoryDisk:
        """A disk that holds a copy of a real directory without subdirectories, at the same path, durably."""
        parts = directory.parts[1:]
        tree: Tree = {"/".join(parts[: count + 1]): None for count in range(len(parts))}
        for path in sorted(directory.iterdir()):
            tree["/".join((*parts, path.name))] = path.read_bytes()
        return cls.from_tree(tree, seed)

    def find(self, path: Path) -> int:
        """The number of what lies at a path. Raises FileNotFoundError."""
        return self.disk.find(path.parts[1:])

    def open(self, path: Path, *, writable: bool) -> File:
        """As `Files.open`."""
        del writable
        return MemoryFile(self.disk, path, self.find(path))

    def create(self, path: Path) -> File:
        """As `Files.create`."""
        number = self.disk.next_number
        self.disk.apply(CreateFile(self._parent_of_new(path), path.name, number))
        return MemoryFile(self.disk, path, number)

    def names(self, directory: Path) -> list[str]:
        """As `Files.names`."""
        return list(self._directory(directory).names)

    def is_directory(self, path: Path) -> bool:
        """As `Files.is_directory`."""
        try:
            return isinstance(self.disk.nodes[self.find(path)], DirectoryNode)
        except FileNotFoundError:
            return False

    def make_directory(self, path: Path) -> None:
        """As `Files.make_directory`."""
        self.disk.apply(MakeDirectory(self._parent_of_new(path), path.name, self.disk.next_number))

    def remove(self, path: Path) -> None:
        """As `Files.remove`."""
        self.find(path)
        self.disk.apply(Remove(self.find(path.parent), path.name))

    def remove_directory(self, path: Path) -> None:
        """As `Files.remove_directory`."""
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, "directory not empty", str(path))
        self.disk.apply(Remove(self.find(path.parent), path.name))

    def rename(self, source: Path, target: Path) -> None:
        """As `Files.rename`; within one directory only."""
        self.find(source)
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "renames between directories are not simulated", str(source))
        self.disk.apply(Rename(self.find(source.parent), source.name, target.name))

    def fsync_dir(self, directory: Path) -> None:
        """As `Files.fsync_dir`."""
        self.disk.apply(SyncDirectory(self.find(directory)))

    def free_bytes(self, directory: Path) -> int:
        """As `Files.free_bytes`: as good as unlimited."""
        self.find(directory)
        return UNLIMITED_BYTES

    def random_u32(self) -> int:
        """As `Files.random_u32`, from the seed."""
        return self._random.getrandbits(32)

    def forget_unsynced(self, file: File) -> None:
        """A sync of the file failed (for `FaultyFiles`)."""
        assert isinstance(file, MemoryFile)
        self.disk.apply(FailSync(file.number))

    def after_power_loss(self, seed: int) -> MemoryDisk:
        """A new disk in one of the states that a power loss now could leave."""
        states = CrashStates(self.disk)
        return MemoryDisk.from_tree(states.build(states.draw(Random(seed))), seed)

    def after_restart(self, seed: int) -> MemoryDisk:
        """The same disk for a new process."""
        memory = MemoryDisk(seed)
        memory.disk = self.disk
        return memory

    def _directory(self, path: Path) -> DirectoryNode:
        return self.disk.directory(self.find(path))

    def _parent_of_new(self, path: Path) -> int:
        parent = self.find(path.parent)
        if path.name in self.disk.directory(parent).names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        return parent
