"""What watchers are told: the changes of revisions, read from the history, each encoded once for all who want it.

Purpose: `newest` shows what the revision just applied has changed, `read_changes` a bounded piece of the history behind it. A `Change`
holds the encoded event; watchers share it.

Rules
- An event is kept as its place in a WatchResponse: tag, length and bytes of one element of `events`. A message is then its head followed by
  such chunks, and no value is encoded twice.
- A piece of history is whole revisions only. One that exceeds the allowance by itself can't be cut: `RevisionTooLargeError` says so, and
  the caller reads it alone where it disturbs nobody.
- The previous pair is the one at mod_revision - 1: left out where that revision is compacted, or the change created the key.

    chunk     0x5a, varint length, event
    event     0x08 0x01 (a deletion; a put has no type), 0x12, varint length, KeyValue, (0x1a, varint length, the previous KeyValue)

Source: etcd's rpc.proto (WatchResponse) and kv.proto (Event) for numbers; its watcher_group for which events have a previous pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from kvserver.errors import CompactedError
from kvserver.mvcc import Snapshot, layout
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.types import Revision

__all__ = ["Change", "History", "RevisionTooLargeError", "change_of", "newest", "read_changes"]

_EVENTS_TAG: Final = b"\x5a"
_DELETE: Final = b"\x08\x01"
_KV_TAG: Final = b"\x12"
_PREVIOUS_TAG: Final = b"\x1a"
_MAX_READ_REVISIONS: Final = 64
"""A slice looks at no more: what lies in the write buffer behind its end must not be sorted for it."""


class RevisionTooLargeError(Exception):
    """The first revision of a slice exceeds what a slice may read. Never leaves the room."""


class Change:
    """One event. `chunk` is it without, `full_chunk` with the previous pair (the same where there is none)."""

    __slots__ = ("chunk", "full_chunk", "is_delete", "key", "revision")

    def __init__(self, revision: int, key: bytes, kv: bytes | memoryview, previous: memoryview | None, *, is_delete: bool) -> None:
        self.revision = revision
        self.key = key
        self.is_delete = is_delete
        self.chunk = self.full_chunk = _encode(kv, None, is_delete=is_delete)
        if previous is not None:
            self.full_chunk = _encode(kv, previous, is_delete=is_delete)

    @property
    def size_bytes(self) -> int:
        """What the change holds."""
        own = len(self.chunk)
        return own if self.full_chunk is self.chunk else own + len(self.full_chunk)


class History(NamedTuple):
    """The changes of all revisions of a piece, in order, up to and including `through`."""

    changes: list[Change]
    through: int


def newest(state: Snapshot, count: int) -> Iterator[tuple[bytes, memoryview]]:
    """Key and record of the `count` changes of the newest revision, for `change_of`. Raises CorruptError."""
    for sub in range(count):
        record = state.record(layout.pack_revision(state.revision, sub))
        yield layout.key_of(record), record


def read_changes(
    state: Snapshot, first: Revision, *, max_changes: int, max_bytes: int, with_previous: bool, max_revisions: int = _MAX_READ_REVISIONS
) -> History:
    """The changes from revision `first` on, at most so many of them and so many bytes, previous pairs included.

    Raises:
        CompactedError: `first` is compacted.
        RevisionTooLargeError: that revision alone has more.
        CorruptError: damage was met.
    """
    if first < state.compacted_revision:
        raise CompactedError
    last = min(state.revision, first + max_revisions - 1)
    changes: list[Change] = []
    whole, size_bytes = 0, 0  # of complete revisions: how many changes
    through = int(first) - 1
    for revision, record in _records(state, first, last):
        if revision != through + 1:  # the one before is complete
            whole, through = len(changes), revision - 1
        changes.append(change_of(state, revision, record, with_previous=with_previous))
        size_bytes += changes[-1].size_bytes
        if len(changes) > max_changes or size_bytes > max_bytes:
            if through < first:
                raise RevisionTooLargeError
            return History(changes[:whole], through)
    return History(changes, last)


def _records(state: Snapshot, first: int, last: int) -> Iterator[tuple[int, memoryview]]:
    lo, hi = layout.pack_revision(first, 0), layout.pack_revision(last + 1, 0)
    for key, record in state.reader.iterate_views(layout.REV, lo, hi):
        yield layout.main_of(key), record


def change_of(state: Snapshot, revision: int, record: memoryview, *, with_previous: bool) -> Change:
    """The change that a record of this revision is, encoded. Raises CorruptError."""
    header = layout.unpack_header(record)
    kv: bytes | memoryview = layout.key_value_of(record)
    key = layout.key_of(record)
    previous = None
    if with_previous and (header.tombstone or not layout.is_creation(record)):
        previous = _previous(state, revision, header.previous)
    if header.tombstone:
        kv = KeyValue(key=key, mod_revision=revision).SerializeToString()
    return Change(revision, key, kv, previous, is_delete=header.tombstone)


def _previous(state: Snapshot, revision: int, position: bytes) -> memoryview | None:
    """The pair as of `revision - 1`, encoded; `position` is the key's previous change, perhaps one of the same revision."""
    if revision - 1 < state.compacted_revision:
        return None
    while position != layout.NO_REVISION:
        record = state.record(position)
        header = layout.unpack_header(record)
        if layout.main_of(position) < revision:
            return None if header.tombstone else layout.key_value_of(record)
        position = header.previous
    return None


def _encode(kv: bytes | memoryview, previous: memoryview | None, *, is_delete: bool) -> bytes:
    parts: list[bytes | memoryview] = [_DELETE] if is_delete else []
    parts += (_KV_TAG, layout.varint(len(kv)), kv)
    if previous is not None:
        parts += (_PREVIOUS_TAG, layout.varint(len(previous)), previous)
    length = sum(map(len, parts))
    return b"".join((_EVENTS_TAG, layout.varint(length), *parts))
