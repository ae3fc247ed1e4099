"""Looking at a log without opening it: what stands in which file, what is wrong where, and what `Wal.open` would say.

Purpose: the operator's view. `inspect_log` streams everything that can be read, damage included, and goes on behind it; `verdict` runs the
very reader that a start runs.

Rules: reads only: no repair, no lock, no temporary file removed. Memory is that of the reader: one chunk and one record. Behind a place
where no record stands the next valid record header of the same segment is looked for; what lies between is the damaged range.

Caveats: of a log that a server is writing, the end may be seen half-written: a torn tail there means nothing. The records behind a closed
segment's end were written again in the next one and are not shown. The stream checks bytes; what follows from them (an index that goes
back, a segment of another log) is the verdict's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from raft.types import Entry, HardState, Index, Term
from wal.codec import Marker, PayloadError, SegmentHeader, decode_entry, decode_hard_state, decode_marker
from wal.errors import DamagedError, FormatVersionError, SegmentError, WalError, WalIOError, WalMissingError
from wal.files import Files, OsFiles
from wal.identity import read_metadata
from wal.log import recovered_hard_state
from wal.reader import Unread, read_log
from wal.record import ALIGNMENT_BYTES, HEADER_BYTES, MARK, MARK_OFFSET, BadRecord, Chain, Record, RecordType, header_is_valid, read_record
from wal.repair import judge
from wal.segment import CHUNK_BYTES, SUFFIX, ChunkedSource, is_sealed, parse_segment_name, read_header

OS_FILES: Final = OsFiles()
NO_INDEX: Final = Index(0)
UNKNOWN_TERM: Final = Term(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStart:
    """A segment begins. `header` is None if it can't be read; `follows` whether it names the segment before it (None: there is none)."""

    path: Path
    size_bytes: int
    header: SegmentHeader | None
    follows: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSeen:
    """One valid record: `index` and `term` of an entry or marker, `hard_state` of those that carry one."""

    path: Path
    offset_bytes: int
    size_bytes: int
    payload_bytes: int
    type: RecordType
    batch: int
    index: Index | None = None
    term: Term | None = None
    entry_type: str | None = None
    hard_state: HardState | None = None
    marker: Marker | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A place where no record stands and one should. `next_offset_bytes` is where the next valid one begins, None if none does."""

    path: Path
    offset_bytes: int
    last_index: Index
    reason: str
    next_offset_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TornTail:
    """The end of the newest segment, as a crash in the middle of a save leaves it: a start repairs it, nothing acknowledged is in it."""

    path: Path
    offset_bytes: int
    last_index: Index
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEnd:
    """A segment ends: how much of it is used, whether it is sealed, and the last index in it (0: no entry)."""

    path: Path
    used_bytes: int
    records: int
    entries: int
    last_index: Index
    is_sealed: bool


Event = SegmentStart | RecordSeen | Damage | TornTail | SegmentEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `Wal.open` would come to. `refusal` is its error, None if it would open; `torn` what it would repair first."""

    refusal: WalError | None
    torn: str | None = None
    hard_state: HardState | None = None
    marker: Marker | None = None
    first_index: Index = NO_INDEX
    last_index: Index = NO_INDEX
    last_term: Term = UNKNOWN_TERM


def list_log(directory: Path, *, files: Files = OS_FILES) -> tuple[list[Path], list[str]]:
    """The segments in sequence, and the names of all other files. Raises WalMissingError, WalIOError."""
    try:
        names = files.names(directory) if files.is_directory(directory) else []
    except OSError as error:
        raise WalIOError("listing it", directory, error) from error
    segments = sorted((parsed[0], name) for name in names if name.endswith(SUFFIX) and (parsed := parse_segment_name(name)) is not None)
    if not segments:
        raise WalMissingError(directory)
    taken = {name for _, name in segments}
    return [directory / name for _, name in segments], sorted(name for name in names if name not in taken)


def inspect_log(directory: Path, *, files: Files = OS_FILES) -> Iterator[Event]:
    """Everything in the log, in file order. Raises WalMissingError, WalIOError; damage is an event."""
    paths, _ = list_log(directory, files=files)
    before_crc: int | None = None
    last_index = NO_INDEX
    for position, path in enumerate(paths):
        following = paths[position + 1] if position + 1 < len(paths) else None
        try:
            pass_ = _Pass(files, path, following, before_crc, last_index)
            yield from pass_.run()
        except OSError as error:
            raise WalIOError("reading it", path, error) from error
        before_crc, last_index = pass_.end_crc, pass_.last_index


def verdict(
    directory: Path,
    *,
    applied_index: Index = NO_INDEX,
    applied_term: Term = UNKNOWN_TERM,
    recent_bytes: int | None = None,
    files: Files = OS_FILES,
) -> Verdict:
    """What a start with a store at this position would make of the log; nothing is changed. `recent_bytes` as in `Wal.open`."""
    unread = None if recent_bytes is None else Unread(through_index=applied_index, recent_bytes=recent_bytes)
    try:
        result = read_log(files, directory, read_metadata(directory, files=files), _drop, unread)
        hard_state = recovered_hard_state(result, applied_index, applied_term)
    except WalError as error:
        return Verdict(refusal=error)
    except OSError as error:
        return Verdict(refusal=WalIOError("opening the log", directory, error))
    state = result.state
    torn = None
    if result.torn is not None:
        torn = (
            f"{result.segments[-1].path}: from offset {result.torn.offset_bytes} on, behind index {state.last_index}: {result.torn.reason};"
            " a save that was never acknowledged. It is copied beside the segment and cut off"
        )
    return Verdict(
        refusal=None,
        torn=torn,
        hard_state=hard_state,
        marker=state.marker,
        first_index=Index(state.start_index + 1),
        last_index=state.last_index,
        last_term=state.last_term,
    )


def _drop(entry: Entry) -> None:
    del entry


class _Pass:
    """One segment, from its header to its end."""

    def __init__(self, files: Files, path: Path, following: Path | None, before_crc: int | None, last_index: Index) -> None:
        self._files = files
        self._path = path
        self._following = following
        self._before_crc = before_crc
        self.last_index = last_index
        self.end_crc: int | None = None
        self._records = 0
        self._entries = 0
        self._own_last = NO_INDEX

    def run(self) -> Iterator[Event]:
        """The segment's events."""
        file = self._files.open(self._path, writable=False)
        try:
            source = ChunkedSource(file)
            try:
                header, record, chain, previous_crc = read_header(source)
            except (DamagedError, SegmentError, FormatVersionError) as error:
                yield SegmentStart(path=self._path, size_bytes=source.size_bytes, header=None, follows=None)
                yield Damage(path=self._path, offset_bytes=_offset(error), last_index=self.last_index, reason=error.reason)
                return
            follows = None if self._before_crc is None else previous_crc == self._before_crc
            yield SegmentStart(path=self._path, size_bytes=source.size_bytes, header=header, follows=follows)
            self._records += 1
            yield RecordSeen(
                path=self._path,
                offset_bytes=record.offset_bytes,
                size_bytes=record.end_bytes - record.offset_bytes,
                payload_bytes=len(record.payload),
                type=RecordType.HEADER,
                batch=record.batch,
                hard_state=header.hard_state,
                marker=header.marker,
            )
            yield from self._body(source, chain)
        finally:
            file.close()

    def _body(self, source: ChunkedSource, chain: Chain) -> Iterator[Event]:
        end_bytes = self._end_bytes()
        sealed = False
        while end_bytes is None or chain.offset_bytes < end_bytes:
            offset = chain.offset_bytes
            record = read_record(source, chain)
            if isinstance(record, Record):
                sealed = record.type == RecordType.SEAL
                yield from self._record(record)
                continue
            damage = self._gap(source, chain, record, offset, end_bytes)
            if damage is None:
                break
            yield damage
            if isinstance(damage, TornTail) or damage.next_offset_bytes is None:
                break
        self.end_crc = chain.previous_crc
        yield SegmentEnd(
            path=self._path,
            used_bytes=chain.offset_bytes,
            records=self._records,
            entries=self._entries,
            last_index=self._own_last,
            is_sealed=sealed or is_sealed(source, chain),
        )

    def _record(self, record: Record) -> Iterator[Event]:
        self._records += 1
        seen = RecordSeen(
            path=self._path,
            offset_bytes=record.offset_bytes,
            size_bytes=record.end_bytes - record.offset_bytes,
            payload_bytes=len(record.payload),
            type=RecordType(record.type) if record.type in _TYPES else RecordType.HEADER,
            batch=record.batch,
        )
        try:
            if record.type == RecordType.ENTRY:
                entry = decode_entry(record.payload)
                self._entries += 1
                self.last_index = self._own_last = entry.index
                yield replace(seen, index=entry.index, term=entry.term, entry_type=entry.type.name.lower())
            elif record.type == RecordType.HARD_STATE:
                yield replace(seen, hard_state=decode_hard_state(record.payload))
            elif record.type == RecordType.MARKER:
                marker, hard_state = decode_marker(record.payload)
                self.last_index = marker.index
                yield replace(seen, index=marker.index, term=marker.term, hard_state=hard_state, marker=marker)
            elif record.type in (RecordType.PROOF, RecordType.SEAL):
                yield seen
            else:
                raise PayloadError(f"a record of type {record.type} has no place here")
        except PayloadError as error:
            yield Damage(
                path=self._path,
                offset_bytes=record.offset_bytes,
                last_index=self.last_index,
                reason=str(error),
                next_offset_bytes=record.end_bytes,
            )

    def _gap(
        self, source: ChunkedSource, chain: Chain, bad: BadRecord | None, offset: int, end_bytes: int | None
    ) -> Damage | TornTail | None:
        """What a place without a record is; the chain then stands at the next valid one, if there is one."""
        if end_bytes is None:
            try:
                torn = judge(source, offset, bad, chain.seed, self.last_index)
            except DamagedError as error:
                reason = error.reason
            else:
                if torn is None:
                    return None
                return TornTail(path=self._path, offset_bytes=offset, last_index=self.last_index, reason=torn.reason)
        else:
            reason = bad.reason if bad is not None else f"the segment's records should reach offset {end_bytes}"
        next_offset = _next_header(source, offset, chain)
        if next_offset is not None and end_bytes is not None and next_offset >= end_bytes:
            next_offset = None
        return Damage(path=self._path, offset_bytes=offset, last_index=self.last_index, reason=reason, next_offset_bytes=next_offset)

    def _end_bytes(self) -> int | None:
        """Where the segment after this one says that this one ends; None if there is none, or it doesn't say."""
        if self._following is None:
            return None
        file = self._files.open(self._following, writable=False)
        try:
            header, *_ = read_header(ChunkedSource(file))
        except WalError:
            return None
        finally:
            file.close()
        return header.previous_end_bytes


_TYPES: Final = frozenset(int(record_type) for record_type in RecordType)


def _next_header(source: ChunkedSource, offset_bytes: int, chain: Chain) -> int | None:
    """The offset of the first valid header behind the offset; the chain is put there so that it is read."""
    position = offset_bytes + ALIGNMENT_BYTES
    while position < source.size_bytes:
        chunk = source.read(position, CHUNK_BYTES)
        if not chunk:
            return None
        found = chunk.find(MARK)
        while found >= 0:
            start = position + found - MARK_OFFSET
            header = source.peek(start, HEADER_BYTES) if start > offset_bytes and start % ALIGNMENT_BYTES == 0 else b""
            if header and header_is_valid(chain.seed, header):
                chain.offset_bytes = start
                chain.batch = int.from_bytes(header[8:16], "little")
                chain.batch_start_bytes = int.from_bytes(header[16:20], "little")
                chain.previous_crc = int.from_bytes(header[20:24], "little")
                return start
            found = chunk.find(MARK, found + 1)
        position += len(chunk) - (len(MARK) - 1) if len(chunk) >= CHUNK_BYTES else len(chunk)
    return None


def _offset(error: DamagedError | SegmentError | FormatVersionError) -> int:
    """Where a segment's head is bad; a file that is empty is so from its first byte on."""
    return error.offset_bytes or 0
