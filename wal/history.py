"""Reading old entries back while the log is being written: for members that are behind what memory holds.

Purpose: `HistoryReader.read` gives the entries `[lo, hi)`, as many as fit, from the segments on disk. The caller names the term of each; an
index and its term name one entry for ever (raft's log matching), so a version that was overwritten later is never taken for the one asked.

Rules
- Every record passes the checks of `record.read_record` (header and payload CRC, chain) from the segment's header, or from a mark, on. What
  fails them raises DamagedError, and nothing behind it is given out. What was synced and below the caller's `hi` is all that is looked at.
- Marks: the chain's place behind an entry, one for each 256 KiB that was read and one behind each answer, so that the next answer begins
  where this one ended. A place that nobody has read yet is found by reading its segment from the start, once. A mark of an overwritten
  version is superseded when the newer one is read; it would cost time, never a wrong entry.
- The open file pins a segment: released meanwhile, it can still be read to the end. One that is gone when it is to be opened raises
  HistoryGoneError: the log begins later now.

Caveat: what lies before the oldest segment's first index counts as released. An overwrite that went back behind that start can stand
in the segment all the same; whoever asks for it then gets a snapshot that was not needed.

One thread at a time (not the WAL's own). The list of segments is copied in one step; what the writer changes in it meanwhile (`max_index`,
`end_bytes`) concerns entries behind `hi` only.

Memory: one answer, a chunk of 256 KiB, and about 250 bytes for each 256 KiB of log that was read.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Final

from raft.types import Entry, Index, Term
from wal.codec import ENTRY_PREFIX, ENTRY_PREFIX_BYTES, PayloadError, decode_entry
from wal.errors import DamagedError, WalError, WalIOError
from wal.files import Files
from wal.record import Chain, Record, RecordType, read_record
from wal.segment import ChunkedSource, Segment, read_header

MARK_EVERY_BYTES: Final = 256 * 1024
MAX_ENTRIES: Final = 4_096
"""In one answer: small entries cost time, not bytes."""

_ENTRY: Final = RecordType.ENTRY
_SEAL: Final = RecordType.SEAL
_place = itemgetter(0)


class HistoryGoneError(WalError):
    """What was asked for was released: the log begins behind `index` now."""

    deterministic = True

    def __init__(self, path: Path, index: Index) -> None:
        super().__init__(f"{path}: the entries through {index} were released; the log begins behind them")
        self.path = path
        self.index = index


class HistoryReader:
    """Reads committed entries from the segments of an open log.

    Args:
        files: the log's.
        segments: a copy of the list of segments, oldest first, as the writer has it.
    """

    def __init__(self, files: Files, segments: Callable[[], Sequence[Segment]]) -> None:
        self._files = files
        self._segments = segments
        self._marks: dict[Path, list[tuple[int, Chain]]] = {}

    @property
    def mark_count(self) -> int:
        """How many places are known."""
        return sum(map(len, self._marks.values()))

    def read(self, lo: Index, hi: Index, max_bytes: int, term_at: Callable[[int], Term]) -> list[Entry]:
        """Entries from `lo` on, below `hi`, with the terms that `term_at` says: at least one; no further one once there are `max_bytes` of
        data or `MAX_ENTRIES`. All of `[lo, hi)` must be committed and durable.

        Raises:
            HistoryGoneError: the segment was released.
            DamagedError: a record on the way is not what was written, or the entry is nowhere.
            WalIOError: the system could not read.
        """
        segments = self._segments()
        self._forget(segments)
        if lo < segments[0].first_index:
            raise HistoryGoneError(segments[0].path, Index(segments[0].first_index - 1))
        answer = _Answer(lo, hi, max_bytes, term_at)
        last = segments[-1]
        for segment in segments:
            if segment.max_index >= answer.want:
                last = segment
                self._read_segment(segment, answer)
                if answer.is_full:
                    break
        if not answer.entries:
            raise DamagedError(last.path, last.end_bytes, Index(lo - 1), f"entry {lo} should be in the log, and is not")
        return answer.entries

    def _forget(self, segments: Sequence[Segment]) -> None:
        """Drop the marks of segments that were released."""
        if len(self._marks) > 0:
            present = {segment.path for segment in segments}
            for path in [path for path in self._marks if path not in present]:
                del self._marks[path]

    def _read_segment(self, segment: Segment, answer: _Answer) -> None:
        end_bytes = segment.end_bytes
        try:
            file = self._files.open(segment.path, writable=False)
        except FileNotFoundError as error:
            raise HistoryGoneError(segment.path, Index(answer.want)) from error
        except OSError as error:
            raise WalIOError("opening it", segment.path, error) from error
        try:
            source = ChunkedSource(file)
            self._scan(source, self._start(source, answer.want), end_bytes, answer)
        except OSError as error:
            raise WalIOError("reading it back", segment.path, error) from error
        finally:
            file.close()

    def _start(self, source: ChunkedSource, index: int) -> Chain:
        """The chain at the nearest known place in front of `index`."""
        marks = self._marks.setdefault(source.path, [])
        position = bisect_right(marks, index, key=_place)
        if position:
            return replace(marks[position - 1][1])
        _, _, chain, _ = read_header(source)
        return chain

    def _scan(self, source: ChunkedSource, chain: Chain, end_bytes: int, answer: _Answer) -> None:
        """Take what the answer wants from one segment, record by record."""
        marked_bytes = chain.offset_bytes
        while chain.offset_bytes < end_bytes and not answer.is_full:
            offset = chain.offset_bytes
            record = read_record(source, chain)
            if not isinstance(record, Record):
                reason = f"the records should reach offset {end_bytes}" if record is None else record.reason
                raise DamagedError(source.path, offset, Index(answer.want - 1), reason)
            if record.type == _SEAL:
                break
            if record.type == _ENTRY:
                index = _take(source.path, record, answer)
                if index is not None and chain.offset_bytes - marked_bytes >= MARK_EVERY_BYTES:
                    marked_bytes = chain.offset_bytes
                    self._mark(source.path, index + 1, chain)
        if answer.entries and answer.is_full:
            self._mark(source.path, answer.want, chain)

    def _mark(self, path: Path, index: int, chain: Chain) -> None:
        """Entries from `index` on stand at or behind this place of the file, in the versions that count."""
        marks = self._marks[path]
        position = bisect_right(marks, index, key=_place)
        if position and marks[position - 1][0] == index:
            if marks[position - 1][1].offset_bytes >= chain.offset_bytes:
                return
            del marks[position - 1]
        insort(marks, (index, replace(chain)), key=_place)


class _Answer:
    """What is being gathered for one read."""

    __slots__ = ("_hi", "_max_bytes", "_size_bytes", "_term", "_term_at", "entries", "want")

    def __init__(self, lo: int, hi: int, max_bytes: int, term_at: Callable[[int], Term]) -> None:
        self.entries: list[Entry] = []
        self.want = lo
        self._hi = hi
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._term_at = term_at
        self._term = term_at(lo)

    @property
    def is_full(self) -> bool:
        """Nothing more is wanted."""
        return self.want >= self._hi or self._size_bytes >= self._max_bytes or len(self.entries) >= MAX_ENTRIES

    def wants(self, index: int, term: int) -> bool:
        """This is the next entry."""
        return index == self.want and term == self._term

    def take(self, entry: Entry) -> None:
        """Add the entry wanted."""
        self.entries.append(entry)
        self._size_bytes += len(entry.data)
        self.want += 1
        if self.want < self._hi:
            self._term = self._term_at(self.want)


def _take(path: Path, record: Record, answer: _Answer) -> int | None:
    """Look at one ENTRY record; its index if it is the version that counts and lies before what is wanted next."""
    if len(record.payload) < ENTRY_PREFIX_BYTES:
        raise DamagedError(path, record.offset_bytes, Index(answer.want - 1), "an entry is too short")
    index, term, _ = ENTRY_PREFIX.unpack_from(record.payload)
    if answer.wants(index, term):
        try:
            answer.take(decode_entry(record.payload))
        except PayloadError as error:
            raise DamagedError(path, record.offset_bytes, Index(answer.want - 1), str(error)) from error
    return index if index < answer.want else None
