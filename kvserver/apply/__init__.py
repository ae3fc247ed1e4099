"""Apply: the only mutator of keys and membership; deterministic. `Store` is the state, `Applier` the way into it."""

from __future__ import annotations

from kvserver.apply.applier import AppliedResult, Applier, OutOfOrderError, UnreadablePayloadError
from kvserver.apply.store import HashResult, Store, inspect

__all__ = ["AppliedResult", "Applier", "HashResult", "OutOfOrderError", "Store", "UnreadablePayloadError", "inspect"]
