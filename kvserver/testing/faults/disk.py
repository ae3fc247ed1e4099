"""A disk as a model: what a process sees of it, and what is certain to be there after a power loss.

Rules
- A write is seen at once and durable after a sync of its file; a name likewise, after a sync of its directory. No order between the two,
  or between two files, is assumed.
- A sync that fails leaves its writes seen, and perhaps on the disk; no later sync carries them (the kernel has marked the pages clean).
- The state after a power loss is in `crash.py`.

Invariants: `content` is the last of `versions()`; a file's `bases` are what may lie on the disk if nothing pending got there.

Source: durability.md; Pillai et al., "All File Systems Are Not Created Equal" (2014) for what file systems may reorder.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import PurePath
from typing import assert_never

from kvserver.testing.faults.operations import (
    ROOT,
    Allocate,
    Commit,
    CreateFile,
    FailSync,
    FileChange,
    MakeDirectory,
    Note,
    Operation,
    Remove,
    Rename,
    SyncDirectory,
    SyncFile,
    Truncate,
    Write,
)

NameChange = tuple[tuple[str, int | None], ...]
"""Names and what they stand for from now on (None: nothing); happens as one."""


class FileNode:
    """A file: what is seen (`content`), what may be durable (`bases`, the newest last), and the changes since the last sync."""

    __slots__ = ("bases", "content", "pending")

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.bases = [bytearray(content)]
        self.pending: list[FileChange] = []

    @property
    def is_atomic(self) -> bool:
        """What is pending are whole transactions."""
        return any(isinstance(change, Commit) for change in self.pending)

    def change(self, change: FileChange) -> None:
        """Change what is seen."""
        apply_change(self.content, change)
        self.pending.append(change)

    def sync(self) -> None:
        """Everything pending is durable."""
        for base in self.bases:
            for change in self.pending:
                apply_change(base, change)
        self.pending.clear()

    def fail_sync(self) -> None:
        """Everything pending is on the disk or not, and will not get there later."""
        if self.pending:
            self.bases = [*self.bases, bytearray(self.content)]
            self.pending.clear()

    def versions(self) -> list[bytearray]:
        """What may be durable, then the content after each pending change."""
        versions = list(self.bases)
        for change in self.pending:
            version = bytearray(versions[-1])
            apply_change(version, change)
            versions.append(version)
        return versions


class DirectoryNode:
    """Names, as seen and as durable, and the changes between the two."""

    __slots__ = ("durable", "names", "pending")

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.pending: list[NameChange] = []

    def change(self, change: NameChange) -> None:
        """Change what is seen."""
        apply_names(self.names, change)
        self.pending.append(change)

    def sync(self) -> None:
        """What is seen is durable."""
        self.durable = dict(self.names)
        self.pending.clear()


Node = FileNode | DirectoryNode


class Disk:
    """All files and directories, by number. Changed by `apply` only."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT: DirectoryNode()}
        self.next_number = ROOT + 1

    def apply(self, operation: Operation) -> None:
        """Do one operation. KeyError for a number or a name that isn't there."""
        match operation:
            case CreateFile() | MakeDirectory():
                is_file = isinstance(operation, CreateFile)
                self.nodes[operation.number] = FileNode() if is_file else DirectoryNode()
                self.next_number = max(self.next_number, operation.number + 1)
                self.directory(operation.directory).change(((operation.name, operation.number),))
            case Write() | Truncate() | Allocate() | Commit():
                self.file(operation.number).change(operation)
            case SyncFile():
                self.file(operation.number).sync()
            case FailSync():
                self.file(operation.number).fail_sync()
            case Remove():
                self.directory(operation.directory).change(((operation.name, None),))
            case Rename():
                parent = self.directory(operation.directory)
                parent.change(((operation.source, None), (operation.target, parent.names[operation.source])))
            case SyncDirectory():
                self.directory(operation.number).sync()
            case Note():
                pass
            case unknown:
                assert_never(unknown)

    def file(self, number: int) -> FileNode:
        """A file by its number."""
        node = self.nodes[number]
        if not isinstance(node, FileNode):
            raise KeyError(number)
        return node

    def directory(self, number: int) -> DirectoryNode:
        """A directory by its number."""
        node = self.nodes[number]
        if not isinstance(node, DirectoryNode):
            raise KeyError(number)
        return node

    def find(self, parts: Iterable[str]) -> int:
        """The number of what lies at these names below the root, as seen. Raises FileNotFoundError."""
        number = ROOT
        for part in parts:
            node = self.nodes[number]
            if not isinstance(node, DirectoryNode) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(PurePath(*parts)))
            number = node.names[part]
        return number


def apply_change(content: bytearray, change: FileChange) -> None:
    """Change a file's bytes."""
    match change:
        case Write(_, offset_bytes, data):
            _lengthen(content, offset_bytes + len(data))
            content[offset_bytes : offset_bytes + len(data)] = data
        case Truncate(_, size_bytes):
            del content[size_bytes:]
            _lengthen(content, size_bytes)
        case Allocate(_, size_bytes):
            _lengthen(content, size_bytes)
        case Commit(_, whole):
            content[:] = whole
        case unknown:
            assert_never(unknown)


def apply_names(names: dict[str, int], change: NameChange) -> None:
    """Change a directory's names."""
    for name, number in change:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _lengthen(content: bytearray, size_bytes: int) -> None:
    if len(content) < size_bytes:
        content.extend(bytes(size_bytes - len(content)))
