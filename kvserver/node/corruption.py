"""Damaged data, found by a read or a check: said in the log, and raised as this member's CORRUPT alarm.

Rules: reports come from any thread, also before the member runs (a damaged row may be met while the store is opened); the alarm is raised
as soon as there is somebody who can. Every report is logged until `MAX_REPORTS` were, so that a damaged range does not fill the disk.
"""

from __future__ import annotations

import threading
from typing import Final, Protocol

from kvserver.logs import Logger
from kvserver.pb.rpc_pb2 import AlarmType

MAX_REPORTS: Final = 1_000


class Alarms(Protocol):
    """Who raises alarms for this member."""

    def raise_from_any_thread(self, kind: AlarmType.ValueType) -> None: ...


class CorruptionDesk:
    """Takes reports of damage; `report` may be called on any thread."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._alarms: Alarms | None = None
        self._reports = 0

    @property
    def report_count(self) -> int:
        """How often damage was reported since the start."""
        return self._reports

    def attach(self, alarms: Alarms) -> None:
        """From now on `alarms` raises; what was reported before is raised at once."""
        with self._lock:
            self._alarms = alarms
            is_due = self._reports > 0
        if is_due:
            alarms.raise_from_any_thread(AlarmType.CORRUPT)

    def report(self, text: str) -> None:
        """`text` says which file and what is wrong with it."""
        with self._lock:
            self._reports += 1
            count, alarms = self._reports, self._alarms
        if count <= MAX_REPORTS:
            self._log.error("the store is corrupt", what=text)
        if alarms is not None:
            alarms.raise_from_any_thread(AlarmType.CORRUPT)
