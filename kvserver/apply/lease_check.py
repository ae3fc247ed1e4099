"""Whether the leases' tables and the keys agree: every attached key names its lease, and every key with a lease is attached to it.

Purpose: what `mvcc.integrity` is for the keys, for the two tables that mvcc doesn't know. Used offline by `kvserver check` and by the
periodic check of a running member, in slices, each on a state of its own.

Rules: `report` is told each contradiction in words. A row that fails its seal was reported by storage; the check ends there. Nothing is
written. A few point reads a row.
"""

from __future__ import annotations

from collections.abc import Callable

from kvserver.apply.leases import ROWS
from kvserver.mvcc import Snapshot, keyspace
from kvserver.storage import DamagedRowError
from kvserver.types import LeaseId


class LeaseCheck:
    """One run; one thread at a time. `rows` is how many were looked at."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._checks = [self._attachments, self._keys]
        self._cursor = b""
        self.rows = 0

    def run_slice(self, state: Snapshot, max_rows: int) -> bool:
        """Check up to `max_rows` rows; True while there are more. Raises ViewExpiredError."""
        if not self._checks:
            return False
        try:
            is_done = self._checks[0](state, max_rows)
        except DamagedRowError:
            is_done = True
        if is_done:
            self._checks.pop(0)
            self._cursor = b""
        return bool(self._checks)

    def _attachments(self, state: Snapshot, max_rows: int) -> bool:
        """Every attached key exists, with this lease, and the lease does."""
        for done, (row, lease, key) in enumerate(ROWS.attachments(state.reader, self._cursor)):
            if done == max_rows:
                return False
            self._cursor = row + b"\x00"
            self.rows += 1
            if ROWS.ttl_s(state.reader, lease) is None:
                self._report(f"key {key[:60]!r} is attached to lease {lease:x}, which doesn't exist")
            entry = keyspace.find(state.reader, key)
            if entry is None or entry.lease != lease:
                has = "doesn't exist" if entry is None else f"has lease {entry.lease:x}"
                self._report(f"key {key[:60]!r} is attached to lease {lease:x}, and {has}")
        return True

    def _keys(self, state: Snapshot, max_rows: int) -> bool:
        """Every key that has a lease is attached to it."""
        for done, (key, entry) in enumerate(keyspace.scan(state.reader, self._cursor, None)):
            if done == max_rows:
                return False
            self._cursor = key + b"\x00"
            self.rows += 1
            if entry.lease and not ROWS.is_attached(state.reader, LeaseId(entry.lease), key):
                self._report(f"key {key[:60]!r} has lease {entry.lease:x}, and isn't attached to it")
        return True
