"""Leases: which there are and what is attached to them (`LeaseTable`, replicated), and when their time is over (`Lessor`, the leader's).

Nothing here reads a clock or writes on its own: apply changes the table, the node owns the lessor and tells it the time. Knows nothing of
mvcc: a key is a row under its lease here, and what becomes of the key itself is apply's to say.
"""

from __future__ import annotations

from kvserver.lease.lessor import Lessor
from kvserver.lease.table import MAX_TTL_S, LeaseRows, LeaseTable

__all__ = ["MAX_TTL_S", "LeaseRows", "LeaseTable", "Lessor"]
