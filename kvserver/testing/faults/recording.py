"""A real directory as `wal.Files`, with a journal of everything that is done to it.

Purpose: what a real process does to real files is replayed on the model (`disk.py`), operation by operation, to enumerate what a power loss
at any point would have left.

Rules
- An operation is done first and recorded when it has succeeded. Only what lies below `root` may be used; reads are not recorded.
- What another library does to a file beside `Files` is told: `adopt` records a file that has appeared (LMDB's copy of itself), not synced;
  `committed` records the whole content of a store's file after a transaction, durable; with `since` the transaction counts as under way
  from that position of the journal on, so that a power loss there may or may not have it.
- Thread-safe: the log, the snapshots and the loop may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from threading import RLock

from kvserver.testing.faults.disk import Disk
from kvserver.testing.faults.operations import (
    Allocate,
    Commit,
    CreateFile,
    FailSync,
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
from wal import File, Files, OsFiles


class RecordingFile:
    """A `wal.File` whose changes are recorded."""

    __slots__ = ("_inner", "_recorder", "number")

    def __init__(self, recorder: RecordingFiles, inner: File, number: int) -> None:
        self._recorder = recorder
        self._inner = inner
        self.number = number

    @property
    def path(self) -> Path:
        """As `File.path`."""
        return self._inner.path

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """As `File.pread`."""
        return self._inner.pread(length_bytes, offset_bytes)

    def pwritev(self, buffers: Sequence[bytes], offset_bytes: int) -> None:
        """As `File.pwritev`."""
        self._inner.pwritev(buffers, offset_bytes)
        self._recorder.record(Write(self.number, offset_bytes, b"".join(buffers)))

    def size(self) -> int:
        """As `File.size`."""
        return self._inner.size()

    def preallocate(self, size_bytes: int) -> None:
        """As `File.preallocate`."""
        self._inner.preallocate(size_bytes)
        self._recorder.record(Allocate(self.number, size_bytes))

    def truncate(self, size_bytes: int) -> None:
        """As `File.truncate`."""
        self._inner.truncate(size_bytes)
        self._recorder.record(Truncate(self.number, size_bytes))

    def fdatasync(self) -> None:
        """As `File.fdatasync`."""
        self._inner.fdatasync()
        self._recorder.record(SyncFile(self.number))

    def fsync(self) -> None:
        """As `File.fsync`."""
        self._inner.fsync()
        self._recorder.record(SyncFile(self.number))

    def close(self) -> None:
        """As `File.close`."""
        self._inner.close()


class RecordingFiles:
    """`wal.Files` over the system's, below `root`. `journal` is what was done, `disk` the model as of now (given: as of the beginning)."""

    def __init__(self, root: Path, seed: int = 0, *, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk or Disk()
        self.journal: list[Operation] = []
        self._inner: Files = OsFiles()
        self._random = Random(seed)
        self._lock = RLock()
        self._open: list[File] = []

    def record(self, operation: Operation) -> None:
        """Take down what was done."""
        with self._lock:
            self.disk.apply(operation)
            self.journal.append(operation)

    def note(self, remark: object) -> None:
        """Take down a remark."""
        self.record(Note(remark))

    def adopt(self, path: Path) -> None:
        """A file has appeared here, and nothing says that it is durable."""
        with self._lock:
            number = self.disk.next_number
            self.record(CreateFile(self._find(path.parent), path.name, number))
            self.record(Write(number, 0, path.read_bytes()))

    def committed(self, path: Path, *, since: int | None = None) -> None:
        """A store has committed a transaction to its file here."""
        with self._lock:
            if path.name not in self.disk.directory(self._find(path.parent)).names:
                since = None
                self.record(CreateFile(self._find(path.parent), path.name, self.disk.next_number))
                self.record(SyncDirectory(self._find(path.parent)))
            number = self._find(path)
            commit = Commit(number, path.read_bytes())
            self.disk.apply(commit)
            self.journal.insert(len(self.journal) if since is None else since, commit)
            self.record(SyncFile(number))

    def open(self, path: Path, *, writable: bool) -> File:
        """As `Files.open`."""
        file = self._inner.open(path, writable=writable)
        self._open.append(file)
        return RecordingFile(self, file, self._find(path))

    def create(self, path: Path) -> File:
        """As `Files.create`."""
        with self._lock:
            file = self._inner.create(path)
            self._open.append(file)
            number = self.disk.next_number
            self.record(CreateFile(self._find(path.parent), path.name, number))
        return RecordingFile(self, file, number)

    def names(self, directory: Path) -> list[str]:
        """As `Files.names`."""
        return self._inner.names(directory)

    def is_directory(self, path: Path) -> bool:
        """As `Files.is_directory`."""
        return self._inner.is_directory(path)

    def make_directory(self, path: Path) -> None:
        """As `Files.make_directory`."""
        with self._lock:
            self._inner.make_directory(path)
            self.record(MakeDirectory(self._find(path.parent), path.name, self.disk.next_number))

    def remove(self, path: Path) -> None:
        """As `Files.remove`."""
        with self._lock:
            self._inner.remove(path)
            self.record(Remove(self._find(path.parent), path.name))

    def remove_directory(self, path: Path) -> None:
        """As `Files.remove_directory`."""
        with self._lock:
            self._inner.remove_directory(path)
            self.record(Remove(self._find(path.parent), path.name))

    def rename(self, source: Path, target: Path) -> None:
        """As `Files.rename`; within one directory only."""
        assert source.parent == target.parent, "renames between directories are not modelled"
        with self._lock:
            self._inner.rename(source, target)
            self.record(Rename(self._find(source.parent), source.name, target.name))

    def fsync_dir(self, directory: Path) -> None:
        """As `Files.fsync_dir`."""
        self._inner.fsync_dir(directory)
        self.record(SyncDirectory(self._find(directory)))

    def free_bytes(self, directory: Path) -> int:
        """As `Files.free_bytes`."""
        return self._inner.free_bytes(directory)

    def random_u32(self) -> int:
        """As `Files.random_u32`, from the seed."""
        return self._random.getrandbits(32)

    def end_process(self) -> None:
        """Close whatever is open, as the end of a process does."""
        for file in self._open:
            file.close()
        self._open.clear()

    def forget_unsynced(self, file: File) -> None:
        """A sync of the file failed (for `FaultyFiles`)."""
        assert isinstance(file, RecordingFile)
        self.record(FailSync(file.number))

    def _find(self, path: Path) -> int:
        return self.disk.find(path.relative_to(self.root).parts)
