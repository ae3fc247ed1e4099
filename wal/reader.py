"""Reads the whole log back, record by record, and trusts nothing.

Purpose: `read_log` streams every valid entry to a sink in file order and returns where the log stands; it changes no file. What it finds
at the end of the last segment (a torn record, an unproven batch) it describes; repair.py acts on that, after log.py has made sure that no
committed entry is missing.

Rules: segments come in sequence, each naming the end and the last CRC of the one before. In every segment but the last the records reach
exactly that end; of those that are not read (`Unread`: nobody needs them) only header and length are looked at. In the last one the
records reach a blank rest, or one that a crash may have torn (repair.judge); everything else is refused. The positions obey state.py.
Bytes behind a closed segment's end are not read: a repair moved them into the next segment.

Memory: one chunk and one record (at most 64 MiB), whatever the size of the log; plus one `Segment` for each file.

Caveat: the sink sees entries that a later one overwrites, and entries before a marker; its owner keeps what stands last (log.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from raft.types import Entry, HardState, Index, Term
from wal.codec import Marker, Metadata, PayloadError, SegmentHeader, decode_entry, decode_hard_state, decode_marker
from wal.errors import DamagedError, MetadataMismatchError, SegmentError, WalMissingError
from wal.files import Files
from wal.record import CONTENT_TYPES, BadRecord, Chain, Record, RecordType, read_record
from wal.repair import BatchStart, Torn, judge
from wal.segment import SUFFIX, TEMPORARY_SUFFIX, ChunkedSource, Segment, is_sealed, parse_segment_name, read_header, supersede
from wal.state import LogState

EntrySink = Callable[[Entry], None]

_ENTRY: Final = RecordType.ENTRY


@dataclass(slots=True, kw_only=True)
class ReadResult:
    """Where the log stands.

    `chain` is behind the last good record of the last segment that is to stay; `has_bare_proof` says that a proof record of a clean close
    stands there, and is to go. `rewrite` is set if the end of the log goes into a new segment from this batch on: because the batch may
    not be durable although it reads well (no later record says that its sync returned), or because a torn record follows (then the batch
    may be empty). `unsealed` lists closed segments that still need their seal, `leftovers` the temporary files of a crash.
    """

    state: LogState
    segments: list[Segment]
    chain: Chain
    torn: Torn | None
    has_bare_proof: bool
    rewrite: BatchStart | None
    unsealed: list[tuple[Segment, Chain]] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """What need not be read: closed segments that hold nothing above `through_index` (which the store has, durably), but for the newest
    ones, `recent_bytes` of them at least. One in which the term or the marker changes is read all the same.

    `recent_bytes` counts records of every kind: if the newest segments hold hard states only, the sink sees no entry of the log's end.
    """

    through_index: Index
    recent_bytes: int


def read_log(files: Files, directory: Path, metadata: Metadata, sink: EntrySink, unread: Unread | None = None) -> ReadResult:
    """Stream the log in `directory`; raises a WalError that says what is wrong and where, or OSError."""
    paths, leftovers = _list_segments(files, directory)
    headers = [_open_header(files, path, metadata) for path in paths]
    _check_sequence(headers)
    reader = _Reader(files, headers, sink)
    result = reader.run(0 if unread is None else _count_unread(headers, unread))
    result.leftovers = leftovers
    return result


@dataclass(slots=True)
class _OpenedHeader:
    path: Path
    header: SegmentHeader
    batch: int
    previous_crc: int


def _list_segments(files: Files, directory: Path) -> tuple[list[Path], list[Path]]:
    """The segments in sequence, and the temporary files that a crash left."""
    if not files.is_directory(directory):
        raise WalMissingError(directory)
    segments: list[tuple[int, Path]] = []
    leftovers: list[Path] = []
    for name in sorted(files.names(directory)):
        if name.endswith(TEMPORARY_SUFFIX):
            leftovers.append(directory / name)
        elif name.endswith(SUFFIX):
            parsed = parse_segment_name(name)
            if parsed is None:
                raise SegmentError(directory / name, "this is not the name of a WAL segment")
            segments.append((parsed[0], directory / name))
    if not segments:
        raise WalMissingError(directory)
    return [path for _, path in sorted(segments)], leftovers


def _open_header(files: Files, path: Path, metadata: Metadata) -> _OpenedHeader:
    """Read one segment's header and check whose it is and that it bears its own name."""
    file = files.open(path, writable=False)
    try:
        header, record, _, previous_crc = read_header(ChunkedSource(file))
    finally:
        file.close()
    for field_name, expected, found in (
        ("cluster", metadata.cluster_id, header.metadata.cluster_id),
        ("member", metadata.member_id, header.metadata.member_id),
    ):
        if expected != found:
            raise MetadataMismatchError(path, field_name, expected, found)
    if parse_segment_name(path.name) != (header.sequence, header.first_index):
        raise SegmentError(path, f"the file holds segment {header.sequence} (first index {header.first_index}) under another one's name")
    return _OpenedHeader(path, header, record.batch, previous_crc)


def _check_sequence(headers: list[_OpenedHeader]) -> None:
    for before, after in pairwise(headers):
        if after.header.sequence == before.header.sequence:
            raise SegmentError(after.path, f"it has the same sequence number as {before.path.name}")
        if after.header.sequence != before.header.sequence + 1:
            raise SegmentError(after.path, f"the segment before it (sequence {after.header.sequence - 1}) is missing")


def _count_unread(headers: list[_OpenedHeader], unread: Unread) -> int:
    """How many segments, from the oldest on, need not be read. Never the last two: the one before the newest may lack its seal."""
    recent_bytes = 0
    for position in range(len(headers) - 2, 0, -1):
        following = headers[position].header
        recent_bytes += headers[position + 1].header.previous_end_bytes
        if recent_bytes >= unread.recent_bytes and following.first_index - 1 <= unread.through_index:
            return position
    return 0


class _Reader:
    """The state of one pass over the segments."""

    def __init__(self, files: Files, headers: list[_OpenedHeader], sink: EntrySink) -> None:
        first = headers[0].header
        self._files = files
        self._headers = headers
        self._sink = sink
        self._state = LogState(
            start_index=Index(first.first_index - 1), start_term=first.previous_term, hard_state=first.hard_state, marker=first.marker
        )
        self._segments: list[Segment] = []
        self._unsealed: list[tuple[Segment, Chain]] = []

    def run(self, unread_count: int) -> ReadResult:
        """Read every segment but the first `unread_count`."""
        for position, (opened, following) in enumerate(pairwise(self._headers)):
            before, after = opened.header, following.header
            if position < unread_count and (before.previous_term, before.marker) == (after.previous_term, after.marker):
                self._pass_over(opened, after)
            else:
                self._read_closed(opened, following)
        return self._read_last(self._headers[-1])

    def _pass_over(self, opened: _OpenedHeader, following: SegmentHeader) -> None:
        """Take a segment's content from the headers: terms never fall along the log, so all of its entries are of the one term."""
        file = self._files.open(opened.path, writable=False)
        try:
            source = ChunkedSource(file)
            chain = self._begin(source, opened)
        finally:
            file.close()
        state, segment = self._state, self._segments[-1]
        segment.end_bytes = following.previous_end_bytes
        if not chain.offset_bytes <= segment.end_bytes <= source.size_bytes:
            reason = f"the segment's records should reach offset {segment.end_bytes}, the file ends at {source.size_bytes}"
            raise DamagedError(opened.path, source.size_bytes, state.last_index, reason)
        last_index = Index(following.first_index - 1)
        if last_index > state.last_index:
            state.append(last_index, following.previous_term)
            segment.max_index = last_index
        elif last_index < state.last_index:
            raise SegmentError(opened.path, f"it begins at index {opened.header.first_index}, the one behind it at {following.first_index}")
        # Its hard state is the last one recorded in this segment, or a later one: `_begin` of the next segment takes it over.

    def _begin(self, source: ChunkedSource, opened: _OpenedHeader) -> Chain:
        """Check the header against the state so far, adopt its hard state, and start the segment's own account."""
        header, _, chain, _ = read_header(source)
        state = self._state
        continues = (header.first_index, header.previous_term, header.marker) == (state.last_index + 1, state.last_term, state.marker)
        if not continues:
            raise SegmentError(opened.path, f"it begins at index {header.first_index}, but the log before it ends at {state.last_index}")
        # The header may say more than the records did: a member that opened its log knows a higher commit index from its store.
        reason = state.hard_state_fault(header.hard_state, state.last_index, Term(0))
        if reason is not None:
            raise SegmentError(opened.path, f"its header contradicts the segments before it: {reason}")
        state.hard_state = header.hard_state
        segment = Segment(
            path=opened.path,
            sequence=header.sequence,
            first_index=header.first_index,
            header_batch=opened.batch,
            end_bytes=chain.offset_bytes,
            size_bytes=source.size_bytes,
        )
        self._segments.append(segment)
        return chain

    def _read_closed(self, opened: _OpenedHeader, following: _OpenedHeader) -> None:
        """Read a segment that has a successor: all of it must be there, up to the end that the successor names."""
        file = self._files.open(opened.path, writable=False)
        try:
            source = ChunkedSource(file)
            chain = self._begin(source, opened)
            end_bytes = following.header.previous_end_bytes
            while chain.offset_bytes < end_bytes:
                offset = chain.offset_bytes
                record = read_record(source, chain)
                if record is None:
                    raise DamagedError(
                        opened.path, offset, self._state.last_index, f"the segment's records should reach offset {end_bytes}"
                    )
                if isinstance(record, BadRecord):
                    raise DamagedError(opened.path, offset, self._state.last_index, record.reason)
                self._take(opened.path, record)
            if (chain.offset_bytes, chain.previous_crc, chain.batch + 1) != (end_bytes, following.previous_crc, following.batch):
                raise SegmentError(following.path, f"it does not continue {opened.path.name}")
            self._segments[-1].end_bytes = end_bytes
            if not is_sealed(source, chain):
                self._unsealed.append((self._segments[-1], chain))
        finally:
            file.close()

    def _read_last(self, opened: _OpenedHeader) -> ReadResult:
        """Read the newest segment, up to its blank rest or a torn record."""
        file = self._files.open(opened.path, writable=False)
        try:
            source = ChunkedSource(file)
            chain = self._begin(source, opened)
            last_batch: BatchStart | None = None
            has_content = False
            while True:
                offset, previous_crc, batch = chain.offset_bytes, chain.previous_crc, chain.batch
                record = read_record(source, chain)
                if not isinstance(record, Record):
                    break
                if record.batch != batch:
                    last_batch, has_content = self._batch_start(offset, previous_crc, record.batch), False
                has_content = has_content or record.type in CONTENT_TYPES
                self._take(opened.path, record)
            torn = judge(source, chain.offset_bytes, record, chain.seed, self._state.last_index)
            rewrite = last_batch if has_content else None
            has_bare_proof = last_batch is not None and not has_content
            if last_batch is not None and not has_content:
                # The proof has served: it may not be durable itself, so nothing may be written behind it.
                chain.offset_bytes, chain.previous_crc, chain.batch = last_batch.offset_bytes, last_batch.previous_crc, last_batch.batch - 1
            if torn is not None and rewrite is None:
                rewrite = self._batch_start(chain.offset_bytes, chain.previous_crc, chain.batch + 1)
            self._segments[-1].end_bytes = chain.offset_bytes
        finally:
            file.close()
        return ReadResult(
            state=self._state,
            segments=self._segments,
            chain=chain,
            torn=torn,
            has_bare_proof=has_bare_proof,
            rewrite=rewrite,
            unsealed=self._unsealed,
        )

    def _batch_start(self, offset_bytes: int, previous_crc: int, batch: int) -> BatchStart:
        """The state as it is now, before a batch's first record is taken."""
        state = self._state
        return BatchStart(
            offset_bytes=offset_bytes,
            previous_crc=previous_crc,
            batch=batch,
            first_index=Index(state.last_index + 1),
            previous_term=state.last_term,
            marker=state.marker,
            hard_state=state.hard_state,
        )

    def _take(self, path: Path, record: Record) -> None:
        """Apply one record; entries go to the sink."""
        try:
            if record.type == _ENTRY:
                entry = decode_entry(record.payload)
                reason = self._take_entry(entry)
                if reason is None:
                    self._sink(entry)
            elif record.type == RecordType.HARD_STATE:
                reason = self._take_hard_state(decode_hard_state(record.payload))
            elif record.type == RecordType.MARKER:
                reason = self._take_marker(*decode_marker(record.payload))
            elif record.type == RecordType.SEAL:
                raise SegmentError(path, f"the log goes on in segment {self._segments[-1].sequence + 1}, which is missing")
            elif record.type == RecordType.PROOF:
                reason = None if not record.payload else "a proof record is not empty"
            else:
                reason = f"a record of type {record.type} has no place here"
        except PayloadError as error:
            reason = str(error)
        if reason is not None:
            raise DamagedError(path, record.offset_bytes, self._state.last_index, reason)

    def _take_entry(self, entry: Entry) -> str | None:
        state = self._state
        reason = state.entry_fault(entry.index, entry.term)
        if reason is None:
            if entry.index <= state.last_index:
                supersede(self._segments, entry.index)
            state.append(entry.index, entry.term)
            self._segments[-1].max_index = entry.index
        return reason

    def _take_hard_state(self, hard_state: HardState) -> str | None:
        state = self._state
        reason = state.hard_state_fault(hard_state, state.last_index, state.last_term)
        if reason is None:
            state.hard_state = hard_state
        return reason

    def _take_marker(self, marker: Marker, hard_state: HardState) -> str | None:
        reason = self._state.marker_fault(marker, hard_state)
        if reason is None:
            supersede(self._segments, marker.index)
            self._state.mark(marker, hard_state)
        return reason
