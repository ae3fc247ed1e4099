"""A disk in memory that fails an operation, or loses power: `wal.Files` for the tests.

Rules: a write is seen at once and durable after a sync of its file; a name likewise, after a sync of its directory. A power loss leaves
each unsynced 512-byte sector in any of its versions, a file's length at any of its steps, and any of a directory's unsynced changes undone.
A sync that fails leaves its writes seen but never durable: no later sync carries them.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512


class Inode:
    """A file: what a process sees (`content`), what a power loss leaves at least (`durable`), and the writes between the two."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[str, int, bytes]] = []

    def apply(self, target: bytearray, operation: tuple[str, int, bytes]) -> None:
        kind, number, data = operation
        if kind == "write":
            if len(target) < number + len(data):
                target.extend(bytes(number + len(data) - len(target)))
            target[number : number + len(data)] = data
        elif kind == "truncate":
            del target[number:]
        elif len(target) < number:
            target.extend(bytes(number - len(target)))

    def do(self, operation: tuple[str, int, bytes]) -> None:
        self.apply(self.content, operation)
        self.pending.append(operation)

    def sync(self) -> None:
        for operation in self.pending:
            self.apply(self.durable, operation)
        self.pending.clear()

    def after_power_loss(self, rng: random.Random) -> bytearray:
        """One legal state: sizes change in order, and each sector holds any one of the versions since the last sync."""
        versions = [bytearray(self.durable)]
        for operation in self.pending:
            version = bytearray(versions[-1])
            self.apply(version, operation)
            versions.append(version)
        size = len(rng.choice(versions))
        result = bytearray(size)
        mode = rng.randrange(3)
        whole = rng.choice(versions)
        for start in range(0, size, SECTOR_BYTES):
            source = whole if mode == 0 else rng.choice((versions[0], versions[-1])) if mode == 1 else rng.choice(versions)
            part = source[start : min(start + SECTOR_BYTES, size)]
            result[start : start + len(part)] = part
        return result


class Directory:
    """Names, as seen and as durable, and the changes between the two."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.durable: dict[str, Any] = {}
        self.pending: list[list[tuple[str, Any]]] = []

    def do(self, changes: list[tuple[str, Any]]) -> None:
        self._apply(self.names, changes)
        self.pending.append(changes)

    @staticmethod
    def _apply(names: dict[str, Any], changes: list[tuple[str, Any]]) -> None:
        for name, node in changes:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()

    def after_power_loss(self, rng: random.Random) -> dict[str, Any]:
        """One legal state: any of the pending changes are lost, the others happen in order."""
        names = dict(self.durable)
        mode = rng.randrange(3)
        for changes in self.pending:
            if mode == 0 or (mode == 1 and rng.random() < 0.5):
                self._apply(names, changes)
        return names


class SimFile:
    """A `wal.File` on a SimDisk."""

    def __init__(self, disk: SimDisk, path: Path, inode: Inode) -> None:
        self._disk = disk
        self._inode = inode
        self.path = path

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._disk.step("pread", self.path)
        return bytes(self._inode.content[offset_bytes : offset_bytes + length_bytes])

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        data = b"".join(buffers)
        try:
            self._disk.step("pwritev", self.path)
        except OSError:
            # Cut short, but at a sector's end: the kernel copies whole pages.
            end = offset_bytes + self._disk.rng.randrange(len(data) + 1)
            self._inode.do(("write", offset_bytes, data[: max(0, end - end % SECTOR_BYTES - offset_bytes)]))
            raise
        self._inode.do(("write", offset_bytes, data))

    def size(self) -> int:
        return len(self._inode.content)

    def preallocate(self, size_bytes: int) -> None:
        self._disk.step("preallocate", self.path)
        self._inode.do(("allocate", size_bytes, b""))

    def truncate(self, size_bytes: int) -> None:
        self._disk.step("truncate", self.path)
        self._inode.do(("truncate", size_bytes, b""))

    def fdatasync(self) -> None:
        try:
            self._disk.step("fdatasync", self.path)
        except OSError:
            # The kernel drops the dirty mark: these writes are still seen, but no later sync will carry them to the disk.
            self._inode.pending.clear()
            raise
        self._inode.sync()

    fsync = fdatasync

    def close(self) -> None:
        """Nothing to let go of."""


class SimDisk:
    """`wal.Files` in memory: counts operations, fails one of them, and loses power on request."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.root = Directory()
        self.operations: list[tuple[str, str]] = []
        self.fail_at: int | None = None
        self.fail_when: Callable[[str, Path], bool] | None = None
        self.fail_errno = errno.EIO
        self.failed = 0

    def step(self, operation: str, path: Path) -> None:
        number = len(self.operations)
        self.operations.append((operation, path.name))
        if number == self.fail_at or (self.fail_when is not None and self.fail_when(operation, path)):
            self.failed += 1
            raise OSError(self.fail_errno, "injected", str(path))

    def find(self, path: Path) -> Any:
        node: Any = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Directory) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            node = node.names[part]
        return node

    def open(self, path: Path, *, writable: bool) -> SimFile:
        self.step("open-rw" if writable else "open", path)
        return SimFile(self, path, self.find(path))

    def create(self, path: Path) -> SimFile:
        self.step("create", path)
        parent = self.find(path.parent)
        if path.name in parent.names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        inode = Inode()
        parent.do([(path.name, inode)])
        return SimFile(self, path, inode)

    def names(self, directory: Path) -> list[str]:
        self.step("names", directory)
        return list(self.find(directory).names)

    def is_directory(self, path: Path) -> bool:
        try:
            return isinstance(self.find(path), Directory)
        except FileNotFoundError:
            return False

    def make_directory(self, path: Path) -> None:
        self.step("mkdir", path)
        self.find(path.parent).do([(path.name, Directory())])

    def remove(self, path: Path) -> None:
        self.step("remove", path)
        self.find(path)
        self.find(path.parent).do([(path.name, None)])

    remove_directory = remove

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename", source)
        node = self.find(source)
        assert source.parent == target.parent
        self.find(source.parent).do([(source.name, None), (target.name, node)])

    def fsync_dir(self, directory: Path) -> None:
        self.step("fsync_dir", directory)
        self.find(directory).sync()

    def random_u32(self) -> int:
        return self.rng.getrandbits(32)

    def after_power_loss(self, seed: int) -> SimDisk:
        """A new disk in one of the states that a power loss now could leave."""
        rng = random.Random(seed)
        disk = SimDisk(seed)

        def survive(node: Any) -> Any:
            if isinstance(node, Inode):
                copy = Inode()
                copy.content = node.after_power_loss(rng)
                copy.durable = bytearray(copy.content)
                return copy
            directory = Directory()
            directory.names = {name: survive(child) for name, child in sorted(node.after_power_loss(rng).items())}
            directory.durable = dict(directory.names)
            return directory

        disk.root = survive(self.root)
        return disk

    def after_restart(self, seed: int) -> SimDisk:
        """The same disk for a new process: what was written is still seen, durable or not; no fault is planned."""
        disk = SimDisk(seed)
        disk.root = self.root
        return disk

    def load(self, directory: Path) -> None:
        """Copy a real directory's files in, durably."""
        node = self.root
        for part in directory.parts[1:]:
            child = node.names.setdefault(part, Directory())
            node.durable[part] = child
            node = child
        for path in sorted(directory.iterdir()):
            inode = Inode()
            inode.content = bytearray(path.read_bytes())
            inode.durable = bytearray(inode.content)
            node.names[path.name] = node.durable[path.name] = inode
