"""A real member's data directory in every state that the damage table needs, and what it takes to boot it again.

`build` runs one member in this process, lets it acknowledge writes, and copies its directory at the right moments, as a kill would leave
it: every copy was taken between two operations, so it is one of the states that a crash leaves. Store and WAL are small (segments of
64 KiB, values of 3,000 bytes without a zero byte), and the store commits only when it is told to, so that it is known what each of them
holds.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import ServerConfig, parse
from kvserver.errors import KvError
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import Node
from kvserver.pb import rpc_pb2
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import member_flags
from kvserver.types import NodeId
from raft.types import Entry, HardState, Index, Term
from wal import DamagedError, Marker, OsFiles, Wal, WalError, read_metadata
from wal.record import Chain, Record, RecordType, encode_record, padding, read_record
from wal.segment import ChunkedSource, read_header

VALUE_BYTES = 3_000
FIRST_HALF = 45
PUTS = 90
DEADLINE_S = 30.0
Acked = dict[bytes, tuple[bytes, int]]


class Lines:
    """A log output that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_line(self, line: str) -> None:
        self.lines.append(line)


def value_of(number: int) -> bytes:
    """The value of put `number`: pseudo-random, no zero byte."""
    chance = random.Random(number)
    return bytes(chance.randrange(1, 256) for _ in range(VALUE_BYTES))


def put_of(number: int) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=b"k%04d" % number, value=value_of(number))


@dataclass(slots=True, kw_only=True)
class Directory:
    """A data directory of the member: where, how it is started, which writes were acknowledged, and where its log and store end."""

    root: Path
    flags: list[str]
    acked: Acked
    last_index: int
    applied_index: int
    term: int
    log: Lines = field(default_factory=Lines)

    @property
    def wal(self) -> Path:
        return self.root / "member" / "wal"

    @property
    def snap(self) -> Path:
        return self.root / "member" / "snap"

    @property
    def store(self) -> Path:
        return self.snap / "db"

    @property
    def config(self) -> ServerConfig:
        invocation = parse([*self.flags, f"--data-dir={self.root}"], {})
        return invocation.config  # type: ignore[union-attr]

    @property
    def segments(self) -> list[Path]:
        return sorted(self.wal.glob("*.wal"))

    @property
    def newest(self) -> Path:
        return self.segments[-1]

    def copy_to(self, root: Path) -> Directory:
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("db-lock", "lock"))
        return Directory(
            root=root,
            flags=self.flags,
            acked=dict(self.acked),
            last_index=self.last_index,
            applied_index=self.applied_index,
            term=self.term,
        )

    def retaining(self) -> Directory:
        """The same directory, started with what is the default: segments that nobody needs are kept; and the least log window."""
        flags = [flag for flag in self.flags if not flag.startswith("--wal-retain-bytes")]
        return replace(self, flags=[*flags, "--wal-retain-bytes=256MiB", "--log-window-bytes=64KiB"])

    def lose_store(self) -> None:
        self.store.unlink()
        self.applied_index = 0

    def wal_bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.wal.iterdir()}

    # --- records -------------------------------------------------------------------------------------------------------------------------

    def records(self, path: Path) -> tuple[list[Record], Chain]:
        """The records of an undamaged segment and the chain behind them (of a closed one: behind its seal)."""
        file = OsFiles().open(path, writable=False)
        try:
            source = ChunkedSource(file)
            _, header, chain, _ = read_header(source)
            found = [header]
            while isinstance(record := read_record(source, chain), Record):
                found.append(record)
            return found, chain
        finally:
            file.close()

    def entries(self, path: Path) -> list[Record]:
        return [record for record in self.records(path)[0] if record.type == RecordType.ENTRY]

    def end_bytes(self) -> int:
        """Where the newest segment's records end."""
        return self.records(self.newest)[1].offset_bytes

    def append_record(self, record_type: RecordType, payload: bytes, *, length_bytes: int | None = None) -> int:
        """Put one well-checksummed record behind the last one, its length field as wished; its offset."""
        _, chain = self.records(self.newest)
        offset = chain.offset_bytes
        chain.batch += 1
        chain.batch_start_bytes = offset
        if length_bytes is None:
            data = encode_record(chain, record_type, payload) + payload + padding(len(payload))
        else:
            data = header_with_length(chain, record_type, length_bytes) + payload
        overwrite(self.newest, offset, data)
        return offset


def header_with_length(chain: Chain, record_type: RecordType, length_bytes: int) -> bytes:
    """A record header whose checksum is right and whose length is not to be believed."""
    import struct

    import google_crc32c

    fields = struct.pack("<IB3sQII", length_bytes, record_type, b"\xa6WR", chain.batch, chain.batch_start_bytes, chain.previous_crc)
    header_crc = google_crc32c.extend(chain.seed, fields)
    return fields + struct.pack("<II", header_crc, header_crc)


def entry_index(record: Record) -> int:
    return int.from_bytes(record.payload[:8], "little")


def overwrite(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)


def flip(path: Path, offset_bytes: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        byte = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([byte ^ (1 << bit)]))


def truncate(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


# --- building ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """One member's directory, as a kill left it at different moments.

    behind    : everything acknowledged is in the WAL, the store holds the first half
    covered   : the store holds all of it, too
    clean     : stopped in order
    released  : the WAL no longer reaches back to the first entry
    donor     : a copy of the store at a later index, as a leader would send it
    """

    behind: Directory
    covered: Directory
    clean: Directory
    released: Directory
    donor: Path
    donor_acked: Acked
    donor_index: int
    donor_term: int

    def kept(self, store: str, *, covers: bool = True) -> Directory:
        """The state that a test of "store kept" or "store lost" begins with."""
        return self.covered if store == "kept" and covers else self.behind


async def put(node: Node, number: int, acked: Acked) -> None:
    """One acknowledged write."""
    answer = await node.proposals.propose(CommandKind.PUT, put_of(number), deadline_s=node.now_s() + DEADLINE_S)
    acked[b"k%04d" % number] = (value_of(number), answer.header.revision or node.store.current_revision)  # type: ignore[attr-defined]


async def start(directory: Directory) -> Node:
    """Boot a member from the directory, in this process."""
    return await Node.start(directory.config, metrics=Metrics(version="test"), log=Logger(directory.log))


async def build(home: Path) -> States:
    """Live one life and keep its moments."""
    ports = PortAllocator()
    peer, client, http = ports.next_port(), ports.next_port(), ports.next_port()
    flags = [flag for flag in member_flags("a", home, client, peer, http, f"a=http://127.0.0.1:{peer}") if "--data-dir" not in flag]
    flags += ["--wal-segment-bytes=64KiB", "--backend-batch-interval=60s", "--backend-batch-limit=1000000", "--wal-retain-bytes=0"]
    live = Directory(root=home / "live", flags=flags, acked={}, last_index=0, applied_index=0, term=0)
    node = await start(live)
    await node.wait_published()
    await node.releaser.wait_idle()  # and it begins nothing any more: the WAL stays whole
    for number in range(FIRST_HALF):
        await put(node, number, live.acked)
    await node.store.commit()
    live.applied_index = node.store.durable_index
    for number in range(FIRST_HALF, PUTS):
        await put(node, number, live.acked)
    live.last_index, live.term = node.store.applied_index, node.store.applied_term
    behind = live.copy_to(home / "behind")
    await node.store.commit()
    live.applied_index = node.store.durable_index
    covered = live.copy_to(home / "covered")
    more = dict(live.acked)
    for number in range(PUTS, PUTS + 10):
        await put(node, number, more)
    await node.store.commit()
    donor = home / "donor.snap"
    metadata = await asyncio.to_thread(node.store.copy_to, donor)
    await node.stop()
    live.acked, live.last_index, live.applied_index = more, metadata.index, metadata.index
    clean = live.copy_to(home / "clean")
    released = await _release(live.copy_to(home / "released"))
    return States(
        behind=behind,
        covered=covered,
        clean=clean,
        released=released,
        donor=donor,
        donor_acked=more,
        donor_index=metadata.index,
        donor_term=metadata.term,
    )


async def _release(directory: Directory) -> Directory:
    """Run on until the oldest segments are gone."""
    node = await start(directory)
    await node.wait_published()
    async with asyncio.timeout(DEADLINE_S):
        number = PUTS + 10
        while node.releaser.wal_first_index <= 2:
            await put(node, number, directory.acked)
            await node.store.commit()
            number += 1
    await node.releaser.wait_idle()
    directory.last_index = directory.applied_index = node.store.durable_index
    await node.stop()
    return directory


# --- judging -----------------------------------------------------------------------------------------------------------------------------


async def assert_boots(directory: Directory, expected: Acked | None = None) -> list[str]:
    """The member boots, holds exactly the `expected` writes (default: all that were acknowledged), takes another one, and boots again.

    Returns what the first boot logged.
    """
    held = directory.acked if expected is None else expected
    extra: Acked = {}
    for life in range(2):
        node = await start(directory)
        try:
            await node.wait_published()
            found = node.store.range(rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))
            assert {pair.key: (pair.value, pair.mod_revision) for pair in found.kvs} == {**held, **extra}
            if life == 0:
                await put(node, 9_000, extra)
                lines = list(directory.log.lines)
        finally:
            await node.stop()
    return lines


async def assert_refused(directory: Directory, *words: str | Path) -> str:
    """The member does not start, says all of these words, and leaves the WAL as it was; the text."""
    before = directory.wal_bytes() if directory.wal.is_dir() else {}
    error = await refusal_of(directory)
    text = str(error)
    for word in words:
        assert str(word) in text, f"{word!s} is not in: {text}"
    if isinstance(error, WalError):
        assert directory.wal_bytes() == before
    if isinstance(error, DamagedError):
        assert all(known in text for known in (str(error.path), f"offset {error.offset_bytes}", f"index {error.last_index}"))
    return text


async def refusal_of(directory: Directory) -> Exception:
    """The error that the member does not start with: one of those that end the process with code 1 and one line (`kvserver.__main__`)."""
    try:
        node = await start(directory)
    except (KvError, WalError) as error:
        return error
    await node.stop()
    raise AssertionError("it booted")


# --- writing a log by hand ---------------------------------------------------------------------------------------------------------------


def open_log(directory: Directory) -> Wal:
    """The directory's WAL, opened as the member would."""
    wal, _ = Wal.open(
        directory.wal,
        read_metadata(directory.wal),
        lambda entry: None,
        applied_index=Index(directory.applied_index),
        segment_size_bytes=64 * 1024,
    )
    return wal


def put_entry(index: int, term: int, number: int) -> Entry:
    """The log entry of put `number`."""
    data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, number), put_of(number).SerializeToString())
    return Entry(index=Index(index), term=Term(term), data=data)


def hard_state(term: int, commit: int) -> HardState:
    return HardState(term=Term(term), commit=Index(commit))


def marker(index: int, term: int) -> Marker:
    return Marker(Index(index), Term(term))
