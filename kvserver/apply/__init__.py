"""Apply: the only mutator of keys and membership; deterministic. `Store` is the state, `Applier` the way into it."""

from __future__ import annotations

from kvserver.apply.applier import AppliedResult, Applier, OutOfOrderError, UnreadablePayloadError
from kvserver.apply.inspection import inspect
from kvserver.apply.membership import MemberChange, MemberChangeKind, change_members, decode_change, encode_change
from kvserver.apply.meta import Membership
from kvserver.apply.store import HashResult, Store

__all__ = [
    "AppliedResult",
    "Applier",
    "HashResult",
    "MemberChange",
    "MemberChangeKind",
    "Membership",
    "OutOfOrderError",
    "Store",
    "UnreadablePayloadError",
    "change_members",
    "decode_change",
    "encode_change",
    "inspect",
]
