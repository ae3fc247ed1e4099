"""The write-ahead log: create, open, save, release, close.

Purpose: `save` makes entries and hard state durable before anybody is told of them; `open` gives back exactly that, or refuses.

Rules:
- One writer, one thread at a time. Every call blocks on the disk; the caller runs it on the WAL's own thread.
- A save writes its entries first, then its hard state, as one write; so a save that is torn never leaves a commit index beyond the
  entries that survive. Everything between two completed syncs is one batch (record.py).
- Want of space for the next segment is the one failure that changes nothing: WalNoSpaceError, and the same call again goes on.
- After the first failed write or sync the instance is dead: every later call raises WalFailedError, because what reached the disk is
  unknown and a second sync would prove nothing. The next `open` proves the tail again (repair.py).
- `open` reads and checks everything that is needed (everything at all, unless told otherwise) before it changes anything.
- What the log would refuse to read it refuses to write (state.py).

Invariants: the last segment is never released; released segments lose no state, because every segment's header repeats it.

Source: durability.md. The lock on the data directory is the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from raft.types import NO_NODE, Entry, HardState, Index, Term
from wal.begun import Begun
from wal.codec import MAX_INDEX, MAX_TERM, Marker, Metadata, SegmentHeader, encode_hard_state, encode_marker
from wal.errors import (
    AppliedMismatchError,
    IllegalSaveError,
    LostEntriesError,
    WalClosedError,
    WalFailedError,
    WalIOError,
    WalNoSpaceError,
)
from wal.files import Files, OsFiles
from wal.history import HistoryReader
from wal.reader import EntrySink, ReadResult, Unread, read_log
from wal.record import RecordType
from wal.repair import back_up, cut_tail, rewrite_batch
from wal.segment import MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, SUFFIX, NewSegment, create_directory, seal, supersede
from wal.spare import Spare
from wal.state import LogState
from wal.writer import MAX_ENTRY_DATA_BYTES, Writer

DEFAULT_SEGMENT_BYTES: Final = 16 * 1024 * 1024
OS_FILES: Final = OsFiles()
UNKNOWN_TERM: Final = Term(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What `Wal.open` found.

    The readable entries are [first_index, last_index] (none if last_index = first_index - 1); the sink's owner drops what it was given
    outside of them. `prev_term` is the term of first_index - 1. `hard_state.commit` is already max(the recorded one, the applied index,
    the marker's). `repaired` says in words what was cut off and where the copy is; None if nothing was.
    """

    hard_state: HardState
    marker: Marker | None
    first_index: Index
    prev_term: Term
    last_index: Index
    last_term: Term
    repaired: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInfo:
    """One segment in `Wal.segments()`: the file, the index it begins at, its length on disk and how much of it is used."""

    path: Path
    first_index: Index
    size_bytes: int
    used_bytes: int


class Wal:
    """An open log. Make one with `create` or `open`."""

    def __init__(self, writer: Writer, state: LogState) -> None:
        self._writer = writer
        self._state = state
        self._is_closed = False
        self._failure: BaseException | None = None
        self._begun: Begun | None = None

    @property
    def on_sync(self) -> Callable[[float], None] | None:
        """Called on the WAL's thread with the seconds that each sync took."""
        return self._writer.on_sync

    @on_sync.setter
    def on_sync(self, hook: Callable[[float], None] | None) -> None:
        self._writer.on_sync = hook

    @property
    def on_spare_lost(self) -> Callable[[], None] | None:
        """Called on the WAL's thread when a cut took the spare and the disk has no room for another one."""
        return self._writer.on_spare_lost

    @on_spare_lost.setter
    def on_spare_lost(self, hook: Callable[[], None] | None) -> None:
        self._writer.on_spare_lost = hook

    @classmethod
    def exists(cls, directory: Path, *, files: Files = OS_FILES) -> bool:
        """Whether the directory holds a log (any segment at all)."""
        try:
            return files.is_directory(directory) and any(name.endswith(SUFFIX) for name in files.names(directory))
        except OSError as error:
            raise WalIOError("listing it", directory, error) from error

    @classmethod
    def create(
        cls,
        directory: Path,
        metadata: Metadata,
        *,
        marker: Marker | None = None,
        files: Files = OS_FILES,
        segment_size_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> Wal:
        """Make a new log that starts behind `marker` (behind index 0 without one); it is whole and durable when this returns.

        The parent directory must exist. Raises WalExistsError if the directory holds anything, WalIOError.
        """
        _check_segment_size(segment_size_bytes)
        start = marker or Marker(Index(0), Term(0))
        hard_state = HardState(term=start.term, commit=start.index)
        header = SegmentHeader(
            metadata=metadata,
            sequence=0,
            previous_end_bytes=0,
            first_index=Index(start.index + 1),
            previous_term=start.term,
            marker=marker,
            hard_state=hard_state,
        )
        try:
            new = create_directory(files, directory, header, segment_size_bytes)
            spare = Spare(files, directory, segment_size_bytes)
            _refill_or_close(spare, new)
        except WalNoSpaceError as error:
            raise WalIOError("creating the log", directory, error.cause) from error
        except OSError as error:
            raise WalIOError("creating the log", directory, error) from error
        state = LogState(start_index=start.index, start_term=start.term, hard_state=hard_state, marker=marker)
        return cls(Writer(files, directory, metadata, segment_size_bytes, state, [new.segment], new, spare), state)

    @classmethod
    def open(
        cls,
        directory: Path,
        metadata: Metadata,
        sink: EntrySink,
        *,
        applied_index: Index,
        applied_term: Term = UNKNOWN_TERM,
        recent_bytes: int | None = None,
        files: Files = OS_FILES,
        segment_size_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> tuple[Wal, Recovered]:
        """Read the log back, make its end whole and durable again, and return it ready for `save`.

        Streams every valid entry in file order to `sink`. An entry at or below the last one seen overwrites: the sink drops from there
        on. One that leaves a gap stands behind a snapshot marker: the sink drops everything before it. `applied_index` and `applied_term`
        are what the store holds durably (term 0: not known, not compared). With `recent_bytes`, of the segments that hold nothing above the
        applied index only the newest are read, so many bytes of them at least; of older ones the headers: the sink may see nothing of the
        log's last entries then, if all are applied. Raises a WalError (see errors.py); until every check has passed no file is changed.
        """
        _check_segment_size(segment_size_bytes)
        try:
            unread = None if recent_bytes is None else Unread(through_index=applied_index, recent_bytes=recent_bytes)
            result = read_log(files, directory, metadata, sink, unread)
            hard_state = recovered_hard_state(result, applied_index, applied_term)
            # The process before this one may have died between a rename and the sync of the directory: make the names that were read
            # durable before anything relies on them (a seal, say, on the segment after it).
            files.fsync_dir(directory.parent)
            files.fsync_dir(directory)
            spare = Spare(files, directory, segment_size_bytes)
            spare.find()
            repaired, new = _make_whole(files, metadata, result, segment_size_bytes, spare)
            _refill_or_close(spare, new)
        except WalNoSpaceError as error:
            raise WalIOError("making room for the next segment", directory, error.cause) from error
        except OSError as error:
            raise WalIOError("opening the log", directory, error) from error
        state = result.state
        state.hard_state = hard_state
        wal = cls(Writer(files, directory, metadata, segment_size_bytes, state, result.segments, new, spare), state)
        recovered = Recovered(
            hard_state=hard_state,
            marker=state.marker,
            first_index=wal.first_index,
            prev_term=state.start_term,
            last_index=state.last_index,
            last_term=state.last_term,
            repaired=repaired,
        )
        return wal, recovered

    @property
    def first_index(self) -> Index:
        """The lowest index that can still be read back; last_index + 1 if there is none."""
        return Index(self._state.start_index + 1)

    @property
    def last_index(self) -> Index:
        """The highest index saved."""
        return self._state.last_index

    @property
    def has_spare(self) -> bool:
        """Whether a blank segment is in reserve. False means that the disk is full: take no more writes, but votes and alarms still fit."""
        return self._writer.spare.is_ready

    def refill_spare(self) -> bool:
        """Try again to put a blank segment in reserve; whether there is one now. Raises WalFailedError for anything but a full disk."""
        self._check_usable()
        with self._fatal():
            return self._writer.spare.refill()

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The files, oldest first."""
        return tuple(
            SegmentInfo(path=segment.path, first_index=segment.first_index, size_bytes=segment.size_bytes, used_bytes=segment.end_bytes)
            for segment in self._writer.segments
        )

    def term_runs(self) -> list[tuple[Index, Term]]:
        """(first index, term) for each run of equal terms from `first_index - 1` on."""
        return self._state.term_runs()

    def history(self, files: Files) -> HistoryReader:
        """A reader of old entries, for a thread of its own; `files` are the log's."""
        return HistoryReader(files, lambda: list(self._writer.segments))

    def save(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        """Append the entries, then the hard state; with `sync`, return when all of it and everything saved before is durable.

        Entries are contiguous; the first one follows the last index or overwrites above the commit index. Raises IllegalSaveError
        (nothing was written, the log goes on), WalNoSpaceError (nothing of this save may be acknowledged yet: call again with the same
        arguments, as often as it takes) and WalFailedError (the log is dead; nothing of this save may be acknowledged).
        """
        self._check_usable()
        begun, self._begun = self._begun, None
        done = 0 if begun is None else begun.part_of(entries)
        whole, entries = entries, entries[done:] if done else entries
        reason = self._save_fault(entries, hard_state)
        if reason is not None:
            raise IllegalSaveError(reason)
        with self._fatal():
            try:
                if entries:
                    self._writer.append_entries(entries)
                if hard_state is not None:
                    self._writer.append(RecordType.HARD_STATE, encode_hard_state(hard_state))
                    self._state.hard_state = hard_state
            except WalNoSpaceError as error:
                self._begun = Begun.of(whole, done + (len(entries) if error.saved_entries is None else error.saved_entries))
                raise
            self._writer.flush()
            if sync:
                self._writer.sync()

    def save_marker(self, marker: Marker, hard_state: HardState | None) -> None:
        """Record that a snapshot was installed, durably: the log now starts and ends at the marker.

        `hard_state.commit` must reach the marker; what lies beyond it is recorded by the next save, with the entries that it commits.
        None means the hard state in force. Call it after the snapshot itself is durable. Raises as `save` does.
        """
        self._check_usable()
        recorded = replace(hard_state or self._state.hard_state, commit=marker.index)
        if hard_state is not None and hard_state.commit < marker.index:
            raise IllegalSaveError(f"the snapshot marker {marker.index} is beyond the commit index {hard_state.commit}")
        if not (0 < marker.index < MAX_INDEX and 0 < marker.term <= MAX_TERM):
            raise IllegalSaveError(f"the snapshot marker {marker.index} (term {marker.term}) is out of range")
        reason = self._state.marker_fault(marker, recorded)
        if reason is not None:
            raise IllegalSaveError(reason)
        with self._fatal():
            self._writer.append(RecordType.MARKER, encode_marker(marker, recorded))
            supersede(self._writer.segments, marker.index)
            self._state.mark(marker, recorded)
            self._writer.flush()
            self._writer.sync()

    def release(self, index: Index, *, retain_bytes: int = 0) -> int:
        """Remove the oldest segments whose entries are all <= `index`, never the last one; return how many.

        Closed segments that need not stay do so as long as they take at most `retain_bytes` together: for members that are behind.

        `index` must be held durably by the store. Above the commit index that was saved here (apply may be ahead of it) nothing goes: such
        an entry could still be overwritten. Each removal is durable before the next, so a crash leaves no gap.
        """
        self._check_usable()
        index = min(index, self._state.hard_state.commit)
        with self._fatal():
            count = self._writer.remove_segments(index, retain_bytes)
        if count:
            oldest = self._writer.segments[0].first_index - 1
            self._state.forget(Index(min(oldest, index, self._state.last_index)))
        return count

    def close(self) -> None:
        """Sync, note that this was a clean end, and let go of the file. On a dead log only the last; on a closed one nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._failure is None:
                with self._fatal():
                    self._writer.finish()
        finally:
            self._writer.close()

    @contextmanager
    def _fatal(self) -> Iterator[None]:
        """Whatever goes wrong inside makes this instance dead: what reached the disk is unknown."""
        try:
            yield
        except WalNoSpaceError:
            raise  # what it could not make was not part of the log yet
        except OSError as error:
            self._failure = error
            raise WalFailedError(self._writer.path, error) from error
        except BaseException as error:
            self._failure = error
            raise

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise WalFailedError(self._writer.path, self._failure)
        if self._is_closed:
            raise WalClosedError(self._writer.path)

    def _save_fault(self, entries: Sequence[Entry], hard_state: HardState | None) -> str | None:
        """Why this save would break the log's rules; None if it keeps them."""
        state = self._state
        last_index, last_term = state.last_index, state.last_term
        if entries:
            first = entries[0]
            if first.index <= 0 or first.term <= 0:
                return f"entry {first.index} of term {first.term} is out of range"
            reason = state.entry_fault(first.index, first.term)
            if reason is not None:
                return reason
            last_index, last_term = Index(first.index - 1), first.term
            for entry in entries:
                if entry.index != last_index + 1 or entry.term < last_term:
                    return f"entry {entry.index} (term {entry.term}) does not follow entry {last_index} (term {last_term})"
                if len(entry.data) > MAX_ENTRY_DATA_BYTES:
                    return f"entry {entry.index} holds {len(entry.data)} bytes, more than {MAX_ENTRY_DATA_BYTES}"
                last_index, last_term = entry.index, entry.term
            if last_index >= MAX_INDEX or last_term > MAX_TERM:
                return f"entry {last_index} of term {last_term} is out of range"
        if hard_state is not None:
            return state.hard_state_fault(hard_state, last_index, last_term)
        if last_term > state.hard_state.term and entries:
            return f"entry {last_index} has term {last_term}, above the hard state's term {state.hard_state.term}"
        return None


def _refill_or_close(spare: Spare, new: NewSegment) -> None:
    """Make the spare; if that fails, let go of the segment that was to be written."""
    try:
        spare.refill()
    except BaseException:
        new.file.close()
        raise


def _check_segment_size(segment_size_bytes: int) -> None:
    if not MIN_SEGMENT_BYTES <= segment_size_bytes <= MAX_SEGMENT_BYTES or segment_size_bytes % 8:
        raise ValueError(
            f"segment_size_bytes must be a multiple of 8 in [{MIN_SEGMENT_BYTES}, {MAX_SEGMENT_BYTES}], not {segment_size_bytes}"
        )


def recovered_hard_state(result: ReadResult, applied_index: Index, applied_term: Term) -> HardState:
    """The hard state to boot with. Raises LostEntriesError if the log ends before what is known to be committed, AppliedMismatchError if
    it holds another entry than the one applied.
    """
    state = result.state
    hard_state = state.hard_state
    commit = max(hard_state.commit, applied_index, state.marker.index if state.marker else 0)
    if state.last_index < commit:
        raise LostEntriesError(result.segments[-1].path, result.chain.offset_bytes, state.last_index, Index(commit))
    if applied_term != UNKNOWN_TERM and applied_index >= state.start_index:
        wal_term = state.term_at(applied_index)
        if wal_term != applied_term:
            raise AppliedMismatchError(result.segments[-1].path, applied_index, wal_term, applied_term)
    if hard_state.term < state.last_term:
        # A crash kept the entries of a save but not the hard state behind them. Nothing was answered in that term, so no vote was given
        # in it.
        hard_state = HardState(term=state.last_term, vote=NO_NODE, commit=hard_state.commit)
    return replace(hard_state, commit=Index(commit))


def _make_whole(
    files: Files, metadata: Metadata, result: ReadResult, segment_size_bytes: int, spare: Spare
) -> tuple[str | None, NewSegment]:
    """Seal, back up, cut, prove: every step may be repeated after a crash. Returns what was repaired, and the segment to go on in."""
    for path in result.leftovers:
        files.remove(path)
    for segment, chain in result.unsealed:
        segment.size_bytes = seal(files, segment.path, chain)
    last = result.segments[-1]
    repaired = None
    if result.torn is not None:
        copy = back_up(files, last.path, result.torn.offset_bytes)
        repaired = (
            f"{last.path}: a save that was never acknowledged was cut off at offset {result.torn.offset_bytes}, behind index"
            f" {result.state.last_index} ({result.torn.reason}); a copy is in {copy.name}"
        )
    if result.rewrite is not None:
        new = rewrite_batch(files, metadata, last, result.rewrite, result.chain.seed, segment_size_bytes, spare)
        new.segment.max_index, last.max_index = last.max_index, Index(min(last.max_index, result.rewrite.first_index - 1))
        result.segments.append(new.segment)
        return repaired, new
    if result.has_bare_proof or last.size_bytes < segment_size_bytes:
        last.size_bytes = max(segment_size_bytes, last.end_bytes)
        cut_tail(files, last.path, last.end_bytes, last.size_bytes)
    return repaired, NewSegment(file=files.open(last.path, writable=True), segment=last, chain=result.chain)
