"""Multi-version concurrency control: revisions, the key index, range, put, delete, transactions, compaction, hash.

Deterministic: the same commands give the same bytes on every member. Only apply writes; see docs/architecture/mvcc.md for the tables.
"""

from __future__ import annotations

from kvserver.mvcc.allowance import KEY_OVERHEAD_BYTES, Allowance, RangeTooLargeError
from kvserver.mvcc.hashing import KvHash
from kvserver.mvcc.layout import LEASE, LEASE_KEY, META, TABLES, describe_row
from kvserver.mvcc.measure import measure
from kvserver.mvcc.mvcc import FIRST_REVISION, Mvcc
from kvserver.mvcc.read import Snapshot, execute_range
from kvserver.mvcc.write import Leases, NoLeases
from kvserver.mvcc.writing import Writing

__all__ = [
    "FIRST_REVISION",
    "KEY_OVERHEAD_BYTES",
    "LEASE",
    "LEASE_KEY",
    "META",
    "TABLES",
    "Allowance",
    "KvHash",
    "Leases",
    "Mvcc",
    "NoLeases",
    "RangeTooLargeError",
    "Snapshot",
    "Writing",
    "describe_row",
    "execute_range",
    "measure",
]
