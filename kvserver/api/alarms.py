"""Alarms in words.

Rules: as in etcd's text form, a number that is 0 is left out, a kind without a name is shown as its number, and a blank ends every part.
"""

from __future__ import annotations

from kvserver.pb import rpc_pb2

__all__ = ["alarm_name", "alarm_text"]


def alarm_name(alarm: rpc_pb2.AlarmMember) -> str:
    """`NOSPACE`, `CORRUPT`, or `UNKNOWN` for a kind that this version has no name for."""
    return rpc_pb2.AlarmType.Name(alarm.alarm) if alarm.alarm in rpc_pb2.AlarmType.values() else "UNKNOWN"


def alarm_text(alarm: rpc_pb2.AlarmMember) -> str:
    """`memberID:5 alarm:NOSPACE `, as Status lists it."""
    kind = rpc_pb2.AlarmType.Name(alarm.alarm) if alarm.alarm in rpc_pb2.AlarmType.values() else str(int(alarm.alarm))
    member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
    return member + (f"alarm:{kind} " if alarm.alarm else "")
