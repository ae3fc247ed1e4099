"""The kit of the WAL tests, through the fixture `kit`: the disk that fails, the life beside its model, and shorthand to build and damage
logs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft.types import Entry, HardState, Index, NodeId, Term
from tests.wal.life import METADATA, Collector, Life, reopen
from tests.wal.simdisk import SimDisk
from wal import OsFiles, Wal
from wal.record import Chain, Record, RecordType, encode_record, padding, read_record
from wal.segment import ChunkedSource, read_header


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


def newest(directory: Path) -> Path:
    return sorted(directory.glob("*.wal"))[-1]


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
