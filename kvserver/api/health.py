"""Health: the gRPC health service on "", and the checks behind /health, /livez and /readyz.

Rules
- gRPC health says whether this member serves: from its start until it begins to stop. It does not follow elections, because clients that
  watch it would leave a member for a moment's sake. Learners answer it too.
- `/health` asks for no alarm, a leader, and a read; with `serializable=true` for no alarm and a local read. `/livez` asks for a local read;
  `/readyz` for no CORRUPT alarm, a local and a linearizable read.
- A check never raises; what failed is its reason.

Source: grpc.health.v1; etcd's health handlers for the checks and the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass

from kvserver.api.alarms import alarm_name
from kvserver.api.guard import Guard
from kvserver.api.protocols import Call, ClusterView, KvReader, Reads
from kvserver.apply import Unbounded
from kvserver.errors import HealthServiceUnknownError, RequestError
from kvserver.pb import health_pb2, rpc_pb2
from raft.types import NO_NODE

__all__ = ["Check", "HealthReport", "HealthService", "Probes"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """The handlers of `Health`; `set_serving` is the composition root's."""

    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """From now on this member serves, or does not."""
        if serving != self._serving:
            self._serving = serving
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Whether this member serves. Raises `HealthServiceUnknownError` for any name but ""."""
        if request.service:
            raise HealthServiceUnknownError
        return self._response()

    async def watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """The same, now and after each change, until the client leaves."""
        if request.service:
            yield health_pb2.HealthCheckResponse(status=_SERVICE_UNKNOWN)
            await asyncio.Event().wait()  # the service may appear one day, says the protocol; here the client leaves first
        while True:
            changed = self._changed
            yield self._response()
            await changed.wait()

    def _response(self) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=_SERVING if self._serving else _NOT_SERVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its outcome; an empty reason is a pass."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The checks that were made, in order."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether all passed."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the first failed check failed, or empty."""
        return next((check.reason for check in self.checks if check.reason), "")


class Probes:
    """The checks behind the HTTP endpoints."""

    def __init__(self, *, guard: Guard, reads: Reads, reader: KvReader, view: ClusterView) -> None:
        self._guard = guard
        self._reads = reads
        self._reader = reader
        self._view = view

    async def health(self, *, serializable: bool, exclude: Collection[str]) -> HealthReport:
        """`/health`; `exclude` names alarms that don't count."""
        alarm = self._alarm_reason(exclude)
        if alarm:
            return HealthReport(checks=(Check(name="alarms", reason=alarm),))
        if not serializable and self._view.leader_id == NO_NODE:
            return HealthReport(checks=(Check(name="leader", reason="RAFT NO LEADER"),))
        return HealthReport(checks=(await self._read(serializable=serializable),))

    async def live(self) -> HealthReport:
        """`/livez`: this member answers by itself."""
        return HealthReport(checks=(await self._read(serializable=True),))

    async def ready(self, *, exclude: Collection[str]) -> HealthReport:
        """`/readyz`: this member serves requests; `exclude` names checks that are not made."""
        checks: list[Check] = []
        if "data_corruption" not in exclude:
            corrupt = any(alarm.alarm == rpc_pb2.CORRUPT for alarm in self._view.alarms())
            checks.append(Check(name="data_corruption", reason="alarm activated: CORRUPT" if corrupt else ""))
        if "serializable_read" not in exclude:
            checks.append(await self._read(serializable=True))
        if "linearizable_read" not in exclude:
            checks.append(await self._read(serializable=False))
        return HealthReport(checks=tuple(checks))

    def _alarm_reason(self, exclude: Collection[str]) -> str:
        for alarm in self._view.alarms():
            name = alarm_name(alarm)
            if name not in exclude:
                return f"ALARM {name}"
        return ""

    async def _read(self, *, serializable: bool) -> Check:
        name = "serializable_read" if serializable else "linearizable_read"
        request = rpc_pb2.RangeRequest(key=b"\0", keys_only=True, limit=1, serializable=serializable)
        try:
            if not serializable:
                await self._reads.wait_linearizable(self._guard.deadline_s())
            await self._reader.read_range(request, Unbounded())
        except RequestError as error:
            return Check(name=name, reason=f"RANGE ERROR:{error}")
        return Check(name=name)
