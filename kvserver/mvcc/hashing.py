"""HashKV: one number for everything that can be read at a revision, equal on all members.

Rules
- CRC-32C over "key" and then, for each change in order of revision, etcd's revision key (main, "_", sub, and "t" for a tombstone) and the
  marshaled KeyValue. Changes above the revision are left out.
- Of the changes at or below the compacted revision only those count that are some key's newest at the revision and no tombstone. So the
  hash doesn't depend on how much of a compaction has been carried out.
- If no key exists at the revision, those that the compaction keeps count instead: etcd can't tell "nothing to keep" from "no compaction",
  and its hash is the reference.
- The work is cut into slices, each on a read view of its own, because a view lives for seconds and a store may take longer.

Source: etcd 3.4's kvstore.go (HashByRev), checked against a running etcd by the tests.
"""

from __future__ import annotations

from typing import Final

import google_crc32c

from kvserver.errors import CompactedError
from kvserver.mvcc import layout
from kvserver.mvcc.layout import HISTORY, NO_REVISION, REV
from kvserver.mvcc.read import Snapshot

_NAME: Final = b"key"
_MARK: Final = (b"", b"t")
SLICE_BYTES: Final = 16 << 20
"""A slice of large values ends here: read from a slow disk it must not outlive its view (5 s)."""


class KvHash:
    """A hash being computed over several read views of the same store; one thread at a time."""

    def __init__(self, state: Snapshot, revision: int) -> None:
        """Begin to hash `revision`, 0 for the newest; below 0 is before all changes, as in etcd.

        Raises:
            FutureRevisionError, CompactedError.
        """
        self.revision = state.check_revision(revision) if revision >= 0 else -1
        self.compacted_revision = state.compacted_revision
        self._crc: int = google_crc32c.value(_NAME)
        self._cursor = NO_REVISION
        self._keeps_any: bool | None = None

    @property
    def value(self) -> int:
        """The hash, once `run_slice` has returned False."""
        return self._crc

    def run_slice(self, state: Snapshot, max_records: int) -> bool:
        """Hash up to `max_records` changes, or `SLICE_BYTES` of them (and one more at most); True while there are more.

        Raises:
            CompactedError: the store was compacted since the hash was begun; begin again (at a revision that still exists).
            CorruptError: a row fails its checksum.
        """
        if state.compacted_revision != self.compacted_revision:
            raise CompactedError
        if self._keeps_any is None:
            self._keeps_any = self.compacted_revision <= 0 or next(state.scan(b"", None, self.revision), None) is not None
        end = layout.pack_revision(self.revision + 1, 0)
        size_bytes = 0
        for done, (revision, record) in enumerate(state.reader.iterate_views(REV, self._cursor, end)):
            if done == max_records or size_bytes >= SLICE_BYTES:
                self._cursor = revision
                return True
            size_bytes += len(record)
            header = layout.unpack_header(record)
            if layout.main_of(revision) > self.compacted_revision or self._counts(state, revision, header):
                name = revision[:8] + b"_" + revision[8:] + _MARK[header.tombstone]
                self._crc = google_crc32c.extend(google_crc32c.extend(self._crc, name), bytes(layout.key_value_of(record)))
        return False

    def _counts(self, state: Snapshot, revision: bytes, header: layout.RecordHeader) -> bool:
        if header.tombstone:
            return False
        superseded = state.reader.get(HISTORY, header.key_id + revision)
        if superseded is None:
            return True
        at = self.revision if self._keeps_any else self.compacted_revision
        return layout.main_of(superseded[1:]) > at
