"""What can be done to a simulated disk, as values: a journal of these is a history that can be replayed.

Rules: files and directories are numbered (`ROOT` is the directory that everything lies in), so that a file stays itself when it is renamed
or its name is gone. `Commit` stands for a transaction of a store that keeps its own file: all of it is on the disk or nothing. `Note`
changes nothing; it says what was promised at this point of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class CreateFile:
    """An empty file under a new name."""

    directory: int
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """An empty directory under a new name."""

    directory: int
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes from an offset on; a gap before them reads as zero."""

    number: int
    offset_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut a file, or make it longer with zeros."""

    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make a file at least this long, with zeros."""

    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The file's whole content from now on, as one transaction: a crash leaves the old content or this one."""

    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class SyncFile:
    """What was written to the file so far is durable."""

    number: int


@dataclass(frozen=True, slots=True)
class FailSync:
    """A sync of the file failed: what was written so far may or may not be on the disk, and no later sync carries it."""

    number: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A name goes."""

    directory: int
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A name becomes another one in the same directory, which it replaces."""

    directory: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """The directory's names are durable as they are now."""

    number: int


@dataclass(frozen=True, slots=True)
class Note:
    """A remark of whoever keeps the journal."""

    remark: object


FileChange = Write | Truncate | Allocate | Commit
Operation = CreateFile | MakeDirectory | FileChange | SyncFile | FailSync | Remove | Rename | SyncDirectory | Note
