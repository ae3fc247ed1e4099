"""Compaction: forgetting what no revision from `compacted_revision` on can see.

Theory of operation
- `schedule` moves the compacted revision at once: from then on older reads are refused, on every member at the same entry. Removing the
  records is separate work, done in slices between entries; how far it has got may differ between members and is visible to nobody.
- Every record names the one it superseded. So to compact at C it is enough to walk the revisions from the last finished compaction through
  C and to remove what each superseded: the cost is the number of changes since then, not the number of keys.
- A tombstone below C goes too, and with it the key's place in the index. One at C itself stays until the next compaction (which therefore
  starts at the revision where the last one ended), because a watch may still start at C.
- A key that is written again after its tombstone fell below the compacted revision starts a new history, whether or not the removal has
  reached it: the bytes don't depend on the removal's progress.

`state` in the meta table (key `compaction`), 40 bytes, big-endian, signed except the cursor

    0   8   scheduled: the compacted revision, -1 if never
    8   8   finished: the removal is complete through it
    16  8   target: the removal under way, equal to finished if none is
    24  16  cursor: the first revision of the running removal that isn't done, zeros if none runs

Source: etcd's mvcc (scheduled and finished compaction); the walk by predecessors is ours.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.mvcc import keyspace, layout
from kvserver.mvcc.layout import HISTORY, META, NO_REVISION, REV
from kvserver.pb.kv_pb2 import KeyValue

STATE_KEY: Final = b"compaction"
NEVER: Final = -1

_STATE: Final = struct.Struct(">qqq16s")


class _Change(NamedTuple):
    revision: bytes
    header: layout.RecordHeader
    dead_key: bytes | None
    """The key whose tombstone this is, if the tombstone goes too."""


class Compactor:
    """The compacted revision and the removal that follows it."""

    def __init__(self, writer: keyspace.Writer) -> None:
        self._writer = writer
        self._cursor = NO_REVISION
        self.scheduled = NEVER
        self.finished = NEVER
        self.target = NEVER
        data = writer.reader.get(META, STATE_KEY)
        if data is not None:
            self.scheduled, self.finished, self.target, self._cursor = _STATE.unpack(data)

    @property
    def pending(self) -> bool:
        """Whether there is something to remove."""
        return self.finished < self.scheduled

    def schedule(self, revision: int, current_revision: int) -> None:
        """Make `revision` the compacted revision.

        Raises:
            CompactedError: it isn't above the present one.
            FutureRevisionError: it is above `current_revision`.
        """
        if revision <= self.scheduled:
            raise CompactedError
        if revision > current_revision:
            raise FutureRevisionError
        self.scheduled = revision
        if self.target <= self.finished:
            self._begin()
        self._save()

    def run_slice(self, max_records: int) -> bool:
        """Remove what up to `max_records` changes superseded; True while there is more to do.

        Raises:
            CorruptError: a row fails its checksum. The cursor stays in front of this slice; what it had removed by then is whole changes,
                and to remove them again does no harm.
        """
        end = layout.pack_revision(self.target + 1, 0)
        # The slice is collected first: an iterator doesn't survive writing.
        changes: list[_Change] = []
        for done, (revision, record) in enumerate(self._writer.reader.iterate_views(REV, self._cursor, end)):
            if done == max_records:
                self._remove(changes)
                self._cursor = revision
                self._save()
                return True
            header = layout.unpack_header(record)
            key = _key_of(record) if header.tombstone and layout.main_of(revision) < self.target else None
            changes.append(_Change(revision, header, key))
        self._remove(changes)
        self.finished = self.target
        self._cursor = NO_REVISION
        if self.pending:
            self._begin()
        self._save()
        return self.pending

    def _begin(self) -> None:
        self.target = self.scheduled
        self._cursor = layout.pack_revision(max(self.finished, 0), 0)

    def _remove(self, changes: list[_Change]) -> None:
        writer = self._writer
        for revision, header, dead_key in changes:
            if header.previous != NO_REVISION:
                writer.delete(REV, header.previous)
                writer.delete(HISTORY, header.key_id + header.previous)
            if dead_key is not None:
                # The index first: looking there may meet damage, and then the tombstone must still be there to be found again.
                entry = keyspace.find_any(writer.reader, dead_key)
                if entry is not None and entry.revision == revision:
                    keyspace.forget(writer, dead_key)
                writer.delete(REV, revision)
                writer.delete(HISTORY, header.key_id + revision)

    def _save(self) -> None:
        self._writer.put(META, STATE_KEY, _STATE.pack(self.scheduled, self.finished, self.target, self._cursor))


def _key_of(record: bytes | memoryview) -> bytes:
    kv = KeyValue()
    layout.parse_key_value(record, kv)
    return kv.key
