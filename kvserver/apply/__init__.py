"""Apply: the only mutator of keys and membership; deterministic. `Store` is the state, `Applier` the way into it."""

from __future__ import annotations

from kvserver.apply.alarms import Alarms, change_alarms, is_raised, select
from kvserver.apply.answering import ANSWER_FORMS, AnswerRoom, Unbounded
from kvserver.apply.applier import AppliedResult, Applier, OutOfOrderError, UnreadablePayloadError
from kvserver.apply.errors import ApplyMetDamageError
from kvserver.apply.inspection import inspect
from kvserver.apply.lease_check import LeaseCheck
from kvserver.apply.leases import LeaseKeys
from kvserver.apply.membership import MemberChange, MemberChangeKind, change_members, decode_change, encode_change
from kvserver.apply.meta import Membership, Meta
from kvserver.apply.online_check import OnlineCheck
from kvserver.apply.quota import LEASE_COST_BYTES, PUT_OVERHEAD_BYTES, fits, put_cost_bytes, txn_cost_bytes
from kvserver.apply.reading import HashResult
from kvserver.apply.refounding import RevisionTooLargeError, refound
from kvserver.apply.store import Store

__all__ = [
    "ANSWER_FORMS",
    "LEASE_COST_BYTES",
    "PUT_OVERHEAD_BYTES",
    "Alarms",
    "AnswerRoom",
    "AppliedResult",
    "Applier",
    "ApplyMetDamageError",
    "HashResult",
    "LeaseCheck",
    "LeaseKeys",
    "MemberChange",
    "MemberChangeKind",
    "Membership",
    "Meta",
    "OnlineCheck",
    "OutOfOrderError",
    "RevisionTooLargeError",
    "Store",
    "Unbounded",
    "UnreadablePayloadError",
    "change_alarms",
    "change_members",
    "decode_change",
    "encode_change",
    "fits",
    "inspect",
    "is_raised",
    "put_cost_bytes",
    "refound",
    "select",
    "txn_cost_bytes",
]
