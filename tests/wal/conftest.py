"""The kit of the WAL tests: a disk that can fail and lose power, a collector of streamed entries, and shorthand to build logs.

Test modules get it through the fixture `kit` (importlib mode has no sibling imports).
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raft.types import Entry, HardState, Index, NodeId, Term
from wal import Marker, Metadata, OsFiles, Recovered, Wal
from wal.record import Chain, Record, RecordType, encode_record, padding, read_record
from wal.segment import ChunkedSource, read_header

SECTOR_BYTES = 512
METADATA = Metadata(0xC1, 0xA1)


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


class Collector:
    """A sink that keeps what stands last, as `Wal.open` asks of it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, entry: Entry) -> None:
        if self.entries and entry.index > self.entries[-1].index + 1:
            self.entries.clear()
        while self.entries and self.entries[-1].index >= entry.index:
            self.entries.pop()
        self.entries.append(entry)

    def within(self, recovered: Recovered) -> list[Entry]:
        return [entry for entry in self.entries if recovered.first_index <= entry.index <= recovered.last_index]


def entry(index: int, term: int = 1, data: bytes | None = None) -> Entry:
    return Entry(term=Term(term), index=Index(index), data=f"value {index} of {term}".encode() if data is None else data)


def entries(first: int, last: int, term: int = 1, size: int | None = None) -> list[Entry]:
    """Entries [first, last]; with `size`, each has that many pseudo-random bytes without a zero byte."""
    if size is None:
        return [entry(index, term) for index in range(first, last + 1)]
    result = []
    for index in range(first, last + 1):
        rng = random.Random(index * 1000 + term)
        result.append(entry(index, term, bytes(rng.randrange(1, 256) for _ in range(size))))
    return result


def state(term: int = 1, vote: int = 0, commit: int = 0) -> HardState:
    return HardState(term=Term(term), vote=NodeId(vote), commit=Index(commit))


def reopen(directory: Path, applied: int = 0, **options: Any) -> tuple[Wal, Recovered, list[Entry]]:
    """Open a log; the entries that stand."""
    sink = Collector()
    wal, recovered = Wal.open(directory, METADATA, sink, applied_index=Index(applied), **options)
    return wal, recovered, sink.within(recovered)


def newest(directory: Path) -> Path:
    return sorted(directory.glob("*.wal"))[-1]


class State:
    """What a log holds, as a plain value: everything since its start or its last marker, whatever was released."""

    def __init__(self, start: Marker, entries: tuple[Entry, ...], hard_state: HardState, marker: Marker | None) -> None:
        self.start = start
        self.entries = entries
        self.hard_state = hard_state
        self.marker = marker

    @property
    def last_index(self) -> int:
        return self.start.index + len(self.entries)

    def term_at(self, index: int) -> int:
        return self.start.term if index == self.start.index else self.entries[index - self.start.index - 1].term

    @property
    def last_term(self) -> int:
        return self.term_at(self.last_index)

    def with_entry(self, new: Entry) -> State:
        return State(self.start, (*self.entries[: new.index - self.start.index - 1], new), self.hard_state, self.marker)

    def with_hard_state(self, hard_state: HardState) -> State:
        return State(self.start, self.entries, hard_state, self.marker)

    def with_marker(self, marker: Marker, hard_state: HardState) -> State:
        return State(marker, (), HardState(term=hard_state.term, vote=hard_state.vote, commit=marker.index), marker)

    def boots_as(self, applied: int) -> HardState:
        """The hard state that opening this log gives."""
        old = self.hard_state
        commit = Index(max(old.commit, applied))
        if old.term < self.last_term:
            return HardState(term=Term(self.last_term), commit=commit)
        return HardState(term=old.term, vote=old.vote, commit=commit)


class Life:
    """A log beside its model: every operation on both; `open` asks that what comes back is a state that the model allows.

    `durable` is the state at the last completed sync, `since` the states after each record written since; a crash may leave any of these.
    """

    DIRECTORY = Path("/wal")
    SEGMENT_BYTES = 4096

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.durable = State(Marker(Index(0), Term(0)), (), HardState(), None)
        self.since: list[State] = []
        self.applied = 0
        self.was_created = False
        self.wal: Wal | None = None

    @property
    def state(self) -> State:
        return self.since[-1] if self.since else self.durable

    def start(self) -> None:
        """Create the log, or open it, as a node does at boot."""
        if Wal.exists(self.DIRECTORY, files=self.disk):
            self.open()
            return
        assert not self.was_created, "the whole log is gone"
        self.wal = Wal.create(self.DIRECTORY, METADATA, files=self.disk, segment_size_bytes=self.SEGMENT_BYTES)
        self.was_created = True

    def open(self) -> None:
        self.wal, recovered, found = reopen(self.DIRECTORY, self.applied, files=self.disk, segment_size_bytes=self.SEGMENT_BYTES)
        self.was_created = True
        for state in [self.durable, *self.since]:
            if self.matches(state, recovered, found):
                self.durable, self.since = state.with_hard_state(recovered.hard_state), []
                return
        raise AssertionError(f"opened as {recovered}, which is none of the {1 + len(self.since)} allowed states")

    def matches(self, state: State, recovered: Recovered, found: list[Entry]) -> bool:
        skipped = recovered.first_index - 1 - state.start.index
        return (
            0 <= skipped <= max(0, self.applied - state.start.index)
            and recovered.prev_term == state.term_at(recovered.first_index - 1)
            and found == list(state.entries[skipped:])
            and (recovered.last_index, recovered.last_term) == (state.last_index, state.last_term)
            and recovered.hard_state == state.boots_as(self.applied)
            and recovered.marker == state.marker
        )

    def save(self, new: list[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        for item in new:
            self.since.append(self.state.with_entry(item))
        if hard_state is not None:
            self.since.append(self.state.with_hard_state(hard_state))
        self.wal.save(new, hard_state, sync=sync)
        if sync:
            self.durable, self.since = self.state, []

    def save_marker(self, marker: Marker, hard_state: HardState) -> None:
        self.since.append(self.state.with_marker(marker, hard_state))
        self.wal.save_marker(marker, hard_state)
        self.durable, self.since = self.state, []
        self.applied = max(self.applied, marker.index)

    def apply(self, index: int) -> None:
        """The store holds entries through `index` durably."""
        self.applied = max(self.applied, min(index, self.state.hard_state.commit, self.durable.last_index))

    def release(self) -> None:
        self.wal.release(Index(self.applied))

    def close(self) -> None:
        self.wal.close()
        self.durable, self.since = self.state, []

    def restart(self, seed: int) -> None:
        """The process was killed; the machine was not."""
        self.disk = self.disk.after_restart(seed)

    def power_loss(self, seed: int) -> None:
        self.disk = self.disk.after_power_loss(seed)


def records(path: Path) -> tuple[list[Record], Chain]:
    """The records of an undamaged segment, its header's first, and the chain behind them."""
    file = OsFiles().open(path, writable=False)
    try:
        source = ChunkedSource(file)
        _, header, chain, _ = read_header(source)
        found = [header]
        while isinstance(record := read_record(source, chain), Record):
            found.append(record)
        assert record is None
        return found, chain
    finally:
        file.close()


def append_record(path: Path, record_type: RecordType, payload: bytes, **changes: int) -> None:
    """Put one well-checksummed record of any content behind the last one of a segment; `changes` go into its chain."""
    _, chain = records(path)
    offset = chain.offset_bytes
    chain.batch += 1
    chain.batch_start_bytes = offset
    for name, value in changes.items():
        setattr(chain, name, value)
    data = encode_record(chain, record_type, payload) + payload + padding(len(payload))
    overwrite(path, offset, data)


def overwrite(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)


def flip(path: Path, offset_bytes: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = path.read_bytes()
    overwrite(path, offset_bytes, bytes([data[offset_bytes] ^ (1 << bit)]))


def truncate(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Everything above, by name."""
    return SimpleNamespace(
        METADATA=METADATA,
        Path=Path,
        SimDisk=SimDisk,
        Life=Life,
        Collector=Collector,
        entry=entry,
        entries=entries,
        state=state,
        reopen=reopen,
        newest=newest,
        records=records,
        append_record=append_record,
        overwrite=overwrite,
        flip=flip,
        truncate=truncate,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a test's log goes; not yet there."""
    return tmp_path / "wal"


@pytest.fixture
def wal(directory: Path) -> Iterator[Wal]:
    """A new log with small segments, closed afterwards."""
    log = Wal.create(directory, METADATA, segment_size_bytes=4096)
    yield log
    log.close()


@pytest.fixture
def seeds() -> Iterator[int]:
    """Numbers that differ within a test and repeat between runs."""
    return itertools.count(1)
