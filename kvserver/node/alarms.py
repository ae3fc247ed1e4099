"""Alarms on one member: raising its own, and saying in the log which ones are raised and disarmed in the cluster.

Purpose: whoever finds that this member is out of space or holds damaged data calls `raise_alarm` and goes on; the api, which has to answer
a client, awaits `wait_raised`. `AlarmLog` is told of the alarms as they are applied.

Rules
- At most one proposal per kind is out at a time, however many ask: those who come meanwhile share it. An alarm that is raised already (as
  applied on this member) is not proposed again.
- Without a quorum, or when the proposal is refused for now, it is proposed again after a pause that doubles up to `MAX_PAUSE_S`, until it
  is applied or the member stops. Raising an alarm twice is harmless, so an attempt whose outcome is unknown may be repeated.
- A member that applies nothing any more never hears what came of its proposals. `is_raised` must tell (halt.py), and attempts are short
  then (`hasten`): one that got lost should not cost the time that is left.
- All methods belong to the loop, except `raise_from_any_thread`.
- Every member logs every alarm when it applies its raising and its disarming, whoever asked for that; also what a snapshot changed, and
  what is raised when the member starts. A line names the member as `member list` does, in hexadecimal (`alarm list` prints it in decimal).

Source: etcd's log lines of its apply, for their words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeAlias

from google.protobuf.message import Message as PbMessage

from kvserver.apply import Alarms
from kvserver.commands import CommandKind
from kvserver.errors import RequestError, StoppedError
from kvserver.logs import Logger
from kvserver.pb.rpc_pb2 import AlarmMember, AlarmRequest, AlarmType
from kvserver.types import NodeId

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0

AlarmKind: TypeAlias = AlarmType.ValueType


class AlarmProposals(Protocol):
    """The way to change the replicated state."""

    async def propose(self, kind: CommandKind, request: PbMessage, *, deadline_s: float) -> PbMessage: ...


class AlarmRaiser:
    """Raises alarms in the name of one member.

    Args:
        is_raised: whether that very alarm is raised, as applied on this member.
        attempt_timeout_s: how long one proposal may take before it is made again.
    """

    def __init__(
        self,
        *,
        member_id: NodeId,
        proposals: AlarmProposals,
        is_raised: Callable[[AlarmMember], bool],
        attempt_timeout_s: float,
        log: Logger,
    ) -> None:
        self._member_id = member_id
        self._proposals = proposals
        self._is_raised = is_raised
        self._attempt_timeout_s = attempt_timeout_s
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[AlarmKind, asyncio.Task[None]] = {}
        self._stopped = False

    def raise_alarm(self, kind: AlarmKind) -> None:
        """Have this member's alarm of `kind` raised; returns at once."""
        if self._stopped or kind in self._tasks or self._is_raised(self._alarm(kind)):
            return
        task = self._loop.create_task(self._raise(kind), name=f"raise-alarm-{AlarmType.Name(kind)}")
        self._tasks[kind] = task
        task.add_done_callback(partial(self._ended, kind))

    def raise_from_any_thread(self, kind: AlarmKind) -> None:
        """The same for other threads; nothing happens once the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.raise_alarm, kind)

    async def wait_raised(self, kind: AlarmKind, *, deadline_s: float) -> bool:
        """Have the alarm raised and wait for that until `deadline_s` (monotonic), then go on without waiting. Returns whether it is."""
        self.raise_alarm(kind)
        task = self._tasks.get(kind)
        if task is not None:
            await asyncio.wait((task,), timeout=max(0.0, deadline_s - self._loop.time()))
        return self._is_raised(self._alarm(kind))

    def hasten(self, attempt_timeout_s: float) -> None:
        """From now on an attempt takes at most so long; one that is under way is given up and begun anew."""
        self._attempt_timeout_s = attempt_timeout_s
        unfinished, self._tasks = self._tasks, {}
        for kind, task in unfinished.items():
            task.cancel()
            self.raise_alarm(kind)

    def stop(self) -> None:
        """Give up what is not raised yet."""
        self._stopped = True
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, kind: AlarmKind, task: asyncio.Task[None]) -> None:
        if self._tasks.get(kind) is task:
            del self._tasks[kind]

    def _alarm(self, kind: AlarmKind) -> AlarmMember:
        return AlarmMember(memberID=self._member_id, alarm=kind)

    async def _raise(self, kind: AlarmKind) -> None:
        name = AlarmType.Name(kind)
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=self._member_id, alarm=kind)
        pause_s = FIRST_PAUSE_S
        while not self._is_raised(self._alarm(kind)):
            try:
                await self._proposals.propose(CommandKind.ALARM, request, deadline_s=self._loop.time() + self._attempt_timeout_s)
            except StoppedError:
                return
            except RequestError as error:
                self._log.warning("failed to raise an alarm; will retry", alarm=name, reason=str(error))
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


class AlarmLog:
    """Says what becomes of the cluster's alarms.

    Args:
        raised: the alarms that are raised when this member starts.
    """

    def __init__(self, raised: Alarms, log: Logger) -> None:
        self._raised = _keys(raised)
        self._log = log
        for key in sorted(self._raised):
            log.warning("alarm raised before this start", **_fields(key))

    def note(self, raised: Alarms) -> None:
        """These alarms are raised now, as applied on this member."""
        before, self._raised = self._raised, _keys(raised)
        for key in sorted(self._raised - before):
            self._log.warning("alarm raised", **_fields(key))
        for key in sorted(before - self._raised):
            self._log.warning("alarm disarmed", **_fields(key))


_Key: TypeAlias = tuple[int, AlarmKind]


def _keys(alarms: Alarms) -> frozenset[_Key]:
    return frozenset((alarm.memberID, alarm.alarm) for alarm in alarms)


def _fields(key: _Key) -> dict[str, object]:
    member_id, kind = key
    return {"alarm": AlarmType.Name(kind) if kind in AlarmType.values() else str(int(kind)), "from": f"{member_id:x}"}
