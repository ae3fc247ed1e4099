"""Whether the tables agree with each other: every change is indexed exactly once, every index entry has its change.

Purpose: a seal shows that a row is what was written; this shows that no row is missing and none is left over. Used offline by
`kvserver check` and by the periodic check of a running member, so it works in slices, each on a state of its own.

Three passes, each over one kind of rows, looking up in the others
1. `rev`: the record can be read, is of no revision beyond the store's (or the next one, while a request is on its way in), and
   stands either in `history` (superseded) or is its key's newest,
   with the same numbers in the index. A tombstone below the compacted revision may be neither: its key was written again since.
   What it superseded is in `history` under its name, or was compacted away.
2. `key`, `gone`, `long`: the newest change is there, of this key, and its kind fits the table.
3. `history`: the superseded change is there, with this key id and this kind.

Rules: `report` is told each contradiction in words, and once: where two rows show the same one, that of the earlier pass tells it, and of
two changes the earlier one. A row that fails its seal (DamagedRowError) counts as reported by storage and is stepped over. Nothing is
written. Each row costs a few point reads: about 15 us.

Caveat: between two slices the store may change; each row is judged against the state of its own slice.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from google.protobuf.message import DecodeError

from kvserver.mvcc import keyspace, layout
from kvserver.mvcc.hashing import SLICE_BYTES
from kvserver.mvcc.layout import HISTORY, NO_REVISION, REV, Entry, RecordHeader
from kvserver.mvcc.read import Snapshot
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.storage import DamagedRowError

_HISTORY_KEY_BYTES: Final = 32


class Pass(Enum):
    """What is being looked at."""

    CHANGES = "changes"
    INDEX = "index"
    HISTORY = "history"


_AFTER: Final = {Pass.CHANGES: Pass.INDEX, Pass.INDEX: Pass.HISTORY, Pass.HISTORY: None}


class CrossCheck:
    """One run over the whole store, in slices; one thread at a time."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._pass: Pass | None = Pass.CHANGES
        self._cursor = b""
        self.rows = dict.fromkeys(Pass, 0)
        self.highest_revision = 0

    def run_slice(self, state: Snapshot, max_rows: int) -> bool:
        """Check up to `max_rows` rows (of changes: `hashing.SLICE_BYTES` of them); True while there are more. Raises ViewExpiredError."""
        if self._pass is None:
            return False
        try:
            done = self._run_pass(state, max_rows)
        except DamagedRowError:
            done = True  # reported where it was found; what stands behind it can't be relied on
        if done:
            self._pass, self._cursor = _AFTER[self._pass], b""
        return self._pass is not None

    def _run_pass(self, state: Snapshot, max_rows: int) -> bool:
        """A slice of the present pass; whether the pass is over."""
        match self._pass:
            case Pass.CHANGES:
                return self._changes(state, max_rows)
            case Pass.INDEX:
                return self._index(state, max_rows)
            case Pass.HISTORY:
                return self._history(state, max_rows)
            case None:
                return True

    # --- changes -------------------------------------------------------------------------------------------------------------------------

    def _changes(self, state: Snapshot, max_rows: int) -> bool:
        size_bytes = 0
        for done, (revision, record) in enumerate(state.reader.iterate_views(REV, self._cursor)):
            if done == max_rows or size_bytes >= SLICE_BYTES:
                return False
            size_bytes += len(record)
            self._cursor = revision + b"\x00"
            self.rows[Pass.CHANGES] += 1
            self._guard(lambda revision=revision, record=record: self._change(state, revision, record))  # type: ignore[misc]
        return True

    def _change(self, state: Snapshot, revision: bytes, record: memoryview) -> None:
        name = layout.describe_row(REV, revision)
        kv = KeyValue()
        if len(revision) != len(NO_REVISION) or len(record) <= layout.HEADER_BYTES or not _parse(record, kv) or not kv.key:
            self._report(f"{name} can't be read")
            return
        header = layout.unpack_header(record)
        main = layout.main_of(revision)
        self.highest_revision = max(self.highest_revision, main)
        if main > state.revision + state.unfinished:
            self._report(f"{name} is beyond the store's revision {state.revision}")
            return
        superseded = state.reader.get(HISTORY, header.key_id + revision)
        entry = keyspace.find_any(state.reader, kv.key)
        is_newest = entry is not None and entry.revision == revision
        if superseded is not None:
            if is_newest:
                self._report(f"{name} (key {kv.key[:60]!r}) is superseded, and yet the newest one in the index")
            elif not _is_superseded(superseded, revision, header):
                self._report(f"the history's note about {name} (key {kv.key[:60]!r}) contradicts it")
        elif entry is not None and is_newest:
            self._compare(name, entry, header, kv, main)
        elif not (header.tombstone and main < state.compacted_revision):
            self._report(f"{name} (key {kv.key[:60]!r}) is in no index")
        self._check_previous(state, name, revision, header, begins=kv.version == 1)

    def _compare(self, name: str, entry: Entry, header: RecordHeader, kv: KeyValue, main: int) -> None:
        """The newest change of a key against its index entry."""
        expected = (0, 0, 0) if header.tombstone else (kv.create_revision, kv.version, kv.lease)
        found = (entry.create_revision, entry.version, entry.lease)
        if found != expected or entry.key_id != header.key_id or (not header.tombstone and (kv.mod_revision != main or kv.version < 1)):
            self._report(f"{name} and the index entry of its key {kv.key[:60]!r} differ: {expected} and {found}")

    def _check_previous(self, state: Snapshot, name: str, revision: bytes, header: RecordHeader, *, begins: bool) -> None:
        """What a change superseded must say so, unless compaction has taken it: with the change, or (a tombstone, behind which the key
        `begins` again) before it.
        """
        if header.previous == NO_REVISION:
            return
        note = state.reader.get(HISTORY, header.key_id + header.previous)
        before = layout.describe_row(REV, header.previous)
        if note is not None and note[1:] != revision:
            self._report(f"{name} superseded {before}, but the history names another one")
        is_compacted = layout.main_of(revision) <= state.compacted_revision
        was_compacted_tombstone = begins and layout.main_of(header.previous) < state.compacted_revision
        if note is None and not is_compacted and not was_compacted_tombstone and not self._tells_itself(state, header.previous):
            self._report(f"{before}, which {name} superseded, is missing in the history")

    def _tells_itself(self, state: Snapshot, revision: bytes) -> bool:
        """Whether a superseded change whose note is missing is there to be reported as one that is in no index."""
        record = state.reader.get_view(REV, revision)
        if record is None:
            return False
        if len(record) <= layout.HEADER_BYTES:
            return True
        return not (layout.unpack_header(record).tombstone and layout.main_of(revision) < state.compacted_revision)

    # --- index ---------------------------------------------------------------------------------------------------------------------------

    def _index(self, state: Snapshot, max_rows: int) -> bool:
        for done, (key, entry) in enumerate(keyspace.scan_any(state.reader, self._cursor, None)):
            if done == max_rows:
                return False
            self._cursor = key + b"\x00"
            self.rows[Pass.INDEX] += 1
            self._guard(lambda key=key, entry=entry: self._entry(state, key, entry))  # type: ignore[misc]
        return True

    def _entry(self, state: Snapshot, key: bytes, entry: Entry) -> None:
        name = layout.describe_row(REV, entry.revision)
        record = state.reader.get_view(REV, entry.revision)
        if record is None:
            self._report(f"{name}, the newest of key {key[:60]!r}, is missing")
            return
        kv = KeyValue()
        if _parse(record, kv) and kv.key and kv.key != key:  # what else may be wrong between the two is told by the change
            self._report(f"the index entry of key {key[:60]!r} leads to {name}, which isn't its newest change")

    # --- history -------------------------------------------------------------------------------------------------------------------------

    def _history(self, state: Snapshot, max_rows: int) -> bool:
        for done, (name, _) in enumerate(state.reader.iterate(HISTORY, self._cursor)):
            if done == max_rows:
                return False
            self._cursor = name + b"\x00"
            self.rows[Pass.HISTORY] += 1
            self._guard(lambda name=name: self._note(state, name))  # type: ignore[misc]
        return True

    def _note(self, state: Snapshot, name: bytes) -> None:
        if len(name) != _HISTORY_KEY_BYTES:
            self._report(f"{layout.describe_row(HISTORY, name)} can't be read")
            return
        revision = name[16:]
        record = state.reader.get_view(REV, revision)
        if record is None:
            self._report(f"{layout.describe_row(REV, revision)} is in the history, and is missing")
            return
        # Under the key's own name the note was looked at from the change.
        if len(record) > layout.HEADER_BYTES and layout.unpack_header(record).key_id != name[:16]:
            self._report(f"the history's note about {layout.describe_row(REV, revision)} is under another key's name")

    def _guard(self, check: Callable[[], None]) -> None:
        """A damaged row that a lookup meets was reported by storage: go on with the next row."""
        try:
            check()
        except DamagedRowError:
            return


def check_numbers(revision: int, scheduled: int, finished: int, target: int) -> str | None:
    """Why the store's revision and the progress of its compaction contradict each other; None if they don't."""
    if revision < 1:
        return f"the store's revision is {revision}, the lowest one is 1"
    if not -1 <= finished <= target <= scheduled <= revision:
        return (
            f"the compacted revision is {scheduled} (removal finished through {finished}, under way through {target}), "
            f"the store's revision is {revision}"
        )
    return None


def _parse(record: memoryview, kv: KeyValue) -> bool:
    try:
        layout.parse_key_value(record, kv)
    except DecodeError:
        return False
    return True


def _is_superseded(note: bytes, revision: bytes, header: RecordHeader) -> bool:
    """Whether a history row fits the change that it is about."""
    return len(note) == 1 + len(NO_REVISION) and (note[0] == layout.TOMBSTONE) == header.tombstone and note[1:] > revision
