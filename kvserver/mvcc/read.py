"""Range: reading keys as they are now or were at an older revision.

Purpose: one implementation for the loop (the engine's own reader) and for a thread (a ReadView).

Rules
- Read-only and synchronous; the work is proportional to the keys in the range and the answer to their values, so callers bound both or
  leave the loop (`Allowance`).
- The limit cuts after sorting and after the revision filters; `count` counts before both.
- Values are read only for what is returned, and for sorting by value, which holds the front of each (mvcc.sorting). Sorting with a limit
  holds no more keys than that, without one all keys of the range as small tuples.
- Every row is verified below, in storage: one that fails raises CorruptError there, and is reported. A record that the index names and
  that isn't there is the same, found here.

Source: the client contract's Range row; etcd's apply.go for the order of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvserver.errors import CompactedError, CorruptError, EmptyKeyError, FutureRevisionError
from kvserver.mvcc import keyspace, layout
from kvserver.mvcc.allowance import KEY_OVERHEAD_BYTES, UNLIMITED, Allowance
from kvserver.mvcc.check import range_bounds
from kvserver.mvcc.found import Found
from kvserver.mvcc.layout import HISTORY, REV, Entry
from kvserver.mvcc.sorting import ordered, sort_overhead_bytes
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.pb.rpc_pb2 import RangeRequest, RangeResponse
from kvserver.storage import Reader

_DESCEND: Final = RangeRequest.SortOrder.DESCEND
_BY_KEY: Final = RangeRequest.SortTarget.KEY


class Snapshot(NamedTuple):
    """A state of the keys: where to read it and which revisions it has. `revision` is the newest; `allowance` bounds what is read of it,
    None does not. `unfinished`: the tables hold changes of the next revision already, not all of them, and none of them is for readers.

    A tuple and not a dataclass because one is made for every request.
    """

    reader: Reader
    revision: int
    compacted_revision: int
    on_corrupt: Callable[[str], None]
    allowance: Allowance | None = None
    unfinished: bool = False

    @property
    def bounds_keys(self) -> bool:
        """Whether the allowance has only so many keys."""
        return self.allowance is not None and self.allowance.keys < UNLIMITED

    def is_newest(self, revision: int) -> bool:
        """Whether the index shows the keys as they are at `revision` (checked). Otherwise their history does."""
        return revision >= self.revision and not self.unfinished

    def check_revision(self, revision: int) -> int:
        """The revision to read at; 0 and below mean the newest.

        Raises:
            FutureRevisionError, CompactedError.
        """
        if revision > self.revision:
            raise FutureRevisionError
        if revision <= 0:
            revision = self.revision
        if revision < self.compacted_revision:
            raise CompactedError
        return revision

    def find(self, key: bytes, revision: int) -> Found | None:
        """The key as of `revision` (checked), None if it doesn't exist there."""
        if self.is_newest(revision):
            entry = keyspace.find(self.reader, key)
            return None if entry is None else _found(key, entry)
        entry = keyspace.find_any(self.reader, key)
        return None if entry is None else self._at(key, entry, revision)

    def scan(self, lo: bytes, hi: bytes | None, revision: int, *, reverse: bool = False) -> Iterator[Found]:
        """Keys in [lo, hi) as of `revision` (checked), in byte order; descending only where the index shows them.

        Every key that is looked at is charged to the allowance, also one that didn't exist. Raises RangeTooLargeError, CorruptError.
        """
        touch = self.allowance.touch_key if self.allowance is not None and self.bounds_keys else None
        if self.is_newest(revision):
            for key, entry in keyspace.scan(self.reader, lo, hi, reverse=reverse, touch=touch):
                yield _found(key, entry)
            return
        for key, entry in keyspace.scan_any(self.reader, lo, hi):
            if touch is not None:
                touch()
            found = self._at(key, entry, revision)
            if found is not None:
                yield found

    def load(self, revision: bytes, into: KeyValue) -> None:
        """Read the whole KeyValue that a change left.

        Raises:
            CorruptError: the record is missing or fails its checksum.
        """
        layout.parse_key_value(self.record(revision), into)

    def record(self, revision: bytes) -> memoryview:
        """The record of a revision that the index names. Raises CorruptError."""
        record = self.reader.get_view(REV, revision)
        if record is None:
            missing = CorruptError(layout.describe_row(REV, revision), "is missing")
            self.on_corrupt(f"{missing.row} {missing.reason}")
            raise missing
        return record

    def _at(self, key: bytes, entry: Entry, revision: int) -> Found | None:
        """The key as it was at a revision older than the newest."""
        if layout.main_of(entry.revision) <= revision:
            return _found(key, entry) if entry.version else None
        if layout.main_of(entry.key_id) > revision:
            return None
        behind = entry.key_id + layout.pack_revision(revision + 1, 0)
        for history_key, superseded in self.reader.iterate(HISTORY, entry.key_id, behind, reverse=True):
            if superseded[0] == layout.TOMBSTONE:
                return None
            change = history_key[16:]
            kv = KeyValue()
            self.load(change, kv)
            return Found(key, change, kv.create_revision, kv.version, kv.lease)
        return None


def _found(key: bytes, entry: Entry) -> Found:
    return Found(key, entry.revision, entry.create_revision, entry.version, entry.lease)


def execute_range(state: Snapshot, request: RangeRequest, into: RangeResponse | None = None) -> RangeResponse:
    """Answer a RangeRequest, in the empty message `into` if there is one; of the header only the revision is filled.

    An allowance that is exceeded at the end says that the answer is incomplete.

    Raises:
        EmptyKeyError, FutureRevisionError, CompactedError, CorruptError.
        RangeTooLargeError: the range touches more keys than the state's allowance has.
    """
    if not request.key:
        raise EmptyKeyError
    revision = state.check_revision(request.revision)
    response = RangeResponse() if into is None else into
    response.header.revision = state.revision
    if not request.range_end:
        found = state.find(request.key, revision)
        if found is not None:
            response.count = 1
            if not request.count_only and _passes(found, request) and _may_keep(state, found):
                _append(state, response, found, keys_only=request.keys_only)
    else:
        lo, hi = range_bounds(request.key, request.range_end)
        if request.count_only and state.is_newest(revision) and not state.bounds_keys:
            response.count = keyspace.count(state.reader, lo, hi)
        else:
            _fill(state, request, response, lo, hi, revision)
    return response


def _may_keep(state: Snapshot, found: Found, more_bytes: int = 0) -> bool:
    """Whether the allowance has room for one more key."""
    return state.allowance is None or state.allowance.charge(KEY_OVERHEAD_BYTES + len(found.key) + more_bytes)


def _fill(state: Snapshot, request: RangeRequest, response: RangeResponse, lo: bytes, hi: bytes | None, revision: int) -> None:
    limit = request.limit
    is_newest = state.is_newest(revision)
    backwards = request.sort_order == _DESCEND and request.sort_target == _BY_KEY and is_newest
    sorts = request.sort_target != _BY_KEY or (request.sort_order == _DESCEND and not backwards)
    keep = limit + 1 if limit > 0 else None
    if request.count_only:
        keep = 0
    walk = _Walk(state, request, state.scan(lo, hi, revision, reverse=backwards), keep)
    if sorts and keep != 0:
        chosen = ordered(walk.passing(), request, keep, state)
    else:
        may_stop = is_newest and keep is not None and not state.bounds_keys
        chosen = walk.first(may_stop=may_stop)
    response.count = walk.total if walk.is_whole else keyspace.count(state.reader, lo, hi)
    if request.count_only:
        return
    if 0 < limit < len(chosen):
        response.more = True
        del chosen[limit:]
    for found in chosen:
        _append(state, response, found, keys_only=request.keys_only)


class _Walk:
    """The keys of one range, counted as they come by; those that are kept are charged. `keep`: how many that are at most, None: all."""

    __slots__ = ("_found", "_keep", "_request", "_state", "is_whole", "total")

    def __init__(self, state: Snapshot, request: RangeRequest, found: Iterator[Found], keep: int | None) -> None:
        self._state = state
        self._request = request
        self._found = found
        self._keep = keep
        self.total = 0
        self.is_whole = False

    def first(self, *, may_stop: bool) -> list[Found]:
        """The first that pass the filters, as many as are kept; with `may_stop` what is behind them is not looked at."""
        chosen: list[Found] = []
        picked, keep = 0, self._keep
        for found in self._counted():
            if (keep is None or picked < keep) and _passes(found, self._request):
                picked += 1
                if _may_keep(self._state, found):
                    chosen.append(found)
                if may_stop and picked == keep:
                    return chosen
        self.is_whole = True
        return chosen

    def passing(self) -> Iterator[Found]:
        """All that pass the filters, as long as the allowance has room for as many as are kept at a time."""
        picked, keep, overhead_bytes = 0, self._keep, sort_overhead_bytes(self._request)
        is_exceeded = False
        for found in self._counted():
            if is_exceeded and picked == keep:
                continue  # only counted
            if _passes(found, self._request):
                if picked != keep:
                    picked += 1
                    is_exceeded |= not _may_keep(self._state, found, overhead_bytes)
                if not is_exceeded:
                    yield found
        self.is_whole = True

    def _counted(self) -> Iterator[Found]:
        for found in self._found:
            self.total += 1
            yield found


def _passes(found: Found, request: RangeRequest) -> bool:
    """The four revision filters; 0 means no bound."""
    if request.max_mod_revision and found.mod_revision > request.max_mod_revision:
        return False
    if request.min_mod_revision and found.mod_revision < request.min_mod_revision:
        return False
    if request.max_create_revision and found.create_revision > request.max_create_revision:
        return False
    return not (request.min_create_revision and found.create_revision < request.min_create_revision)


def _append(state: Snapshot, response: RangeResponse, found: Found, *, keys_only: bool) -> None:
    allowance = state.allowance
    if not keys_only:
        record = state.record(found.revision)
        if allowance is None or (allowance.charge(len(record)) and allowance.builds):
            layout.parse_key_value(record, response.kvs.add())
        return
    if allowance is not None and not allowance.builds:
        return
    kv = response.kvs.add()
    kv.key, kv.create_revision, kv.mod_revision = found.key, found.create_revision, found.mod_revision
    kv.version, kv.lease = found.version, found.lease
