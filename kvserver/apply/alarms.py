"""Alarms: replicated state that restricts what is applied.

Purpose: the set of alarms that are raised (member, kind), how a command changes it, and which commands are refused because of it.

Rules
- Deterministic: the set depends on the entries alone, so every member refuses the same entries. It is part of the meta table: it survives
  restarts, and travels with snapshots.
- An alarm is raised by one member and holds for the cluster. Raising one that is raised changes nothing, nor does disarming one that isn't.
- NOSPACE refuses puts, transactions that put in either branch, and lease grants. CORRUPT refuses every command on keys and leases; it wins
  over NOSPACE. Members and alarms themselves can always be changed.
- Any member id and any kind can be raised, known or not, as in etcd; an alarm of a kind that is not known is listed and restricts nothing.
  At most `MAX_ALARMS` are kept; more are answered `too many requests`.

Source: etcd's v3alarm and the capped and corrupt appliers. Deviations: in etcd, raising or disarming NOSPACE ends what CORRUPT refuses;
here each alarm holds until it is disarmed. etcd crashes on an action that it doesn't know, which has no
effect here, and on an alarm of no member and no kind, which is one like any other here.
"""

from __future__ import annotations

from typing import Final, assert_never

from kvserver.apply.quota import txn_cost_bytes
from kvserver.commands import CommandKind
from kvserver.errors import CorruptError, NoSpaceError, RequestError, TooManyRequestsError
from kvserver.pb.rpc_pb2 import CORRUPT, NONE, NOSPACE, AlarmMember, AlarmRequest, AlarmResponse, AlarmType, TxnRequest

MAX_ALARMS: Final = 1_000

Alarms = tuple[AlarmMember, ...]
"""Ascending by member id, then kind; not to be changed."""


def decode_alarms(data: bytes) -> Alarms:
    """The alarms from their value in the meta table. Raises DecodeError."""
    return tuple(AlarmResponse.FromString(data).alarms)


def encode_alarms(alarms: Alarms) -> bytes:
    """Their value in the meta table; empty without alarms."""
    return AlarmResponse(alarms=alarms).SerializeToString(deterministic=True)


def is_raised(alarms: Alarms, kind: AlarmType.ValueType) -> bool:
    """Whether any member has raised this kind."""
    return any(alarm.alarm == kind for alarm in alarms)


def select(alarms: Alarms, kind: AlarmType.ValueType) -> Alarms:
    """The alarms of one kind; of all for NONE."""
    return tuple(alarm for alarm in alarms if kind in (NONE, alarm.alarm))


def change_alarms(alarms: Alarms, request: AlarmRequest) -> tuple[Alarms, Alarms | RequestError]:
    """The alarms after a command, and its answer: the alarm that is now (or was already) raised, the one that was disarmed, or none."""
    wanted = AlarmMember(memberID=request.memberID, alarm=request.alarm)
    present = wanted in alarms
    if request.action == AlarmRequest.ACTIVATE:
        if present:
            return alarms, (wanted,)
        if len(alarms) >= MAX_ALARMS:
            return alarms, TooManyRequestsError()
        return tuple(sorted((*alarms, wanted), key=lambda alarm: (alarm.memberID, alarm.alarm))), (wanted,)
    if request.action == AlarmRequest.DEACTIVATE and present:
        return tuple(alarm for alarm in alarms if alarm != wanted), (wanted,)
    return alarms, ()


def refusal(alarms: Alarms, kind: CommandKind, payload: bytes) -> RequestError | None:
    """What a command is answered instead of being applied, None if it may be applied. Raises DecodeError: `payload` is no such message."""
    match kind:
        case CommandKind.MEMBER_PUBLISH | CommandKind.ALARM:
            return None
        case CommandKind.LEASE_GRANT | CommandKind.LEASE_REVOKE | CommandKind.LEASE_EXPIRE if not is_raised(alarms, CORRUPT):
            return NoSpaceError() if kind is CommandKind.LEASE_GRANT and is_raised(alarms, NOSPACE) else None
        case CommandKind.LEASE_GRANT | CommandKind.LEASE_REVOKE | CommandKind.LEASE_EXPIRE:
            return CorruptError()
        case CommandKind.PUT | CommandKind.DELETE_RANGE | CommandKind.TXN | CommandKind.COMPACT:
            if is_raised(alarms, CORRUPT):
                return CorruptError()
            if is_raised(alarms, NOSPACE) and _puts(kind, payload):
                return NoSpaceError()
            return None
        case unknown:
            assert_never(unknown)


def _puts(kind: CommandKind, payload: bytes) -> bool:
    if kind is CommandKind.TXN:
        return txn_cost_bytes(TxnRequest.FromString(payload)) > 0
    return kind is CommandKind.PUT
