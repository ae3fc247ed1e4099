"""The end of a member whose apply met damage: it tells the cluster, gives leadership away, and then stops.

Purpose: a committed entry needs a row of the store that is damaged on this member's disk, so nothing more can be applied here. A member
that simply stopped would leave the others without its CORRUPT alarm, and would do the same at every start.

Theory of operation
- Raft goes on meanwhile. The log is sound: this member votes, appends, acknowledges, and forwards its proposal of the alarm (or commits it,
  as the leader). Only its state machine stands still, in front of the entry that met the damage.
- The alarm is in force on the others once its entry is committed. This member can't apply that entry, but it can read it: `CommittedAlarms`
  carries the alarms as applied over the alarm commands of the entries that are committed behind.
- Then it hands leadership over, if it leads, and the node ends with the error. So it does when the alarm could not be committed in time; a
  start that meets the damage again tries again, unless the log shows that the alarm is raised.

Rules
- Reads are answered `corrupt cluster`, waiting ones too, and so is every command but an alarm's, before it is proposed. What had been
  proposed before ends with the node; its outcome is unknown.
- No WAL segment is released any more. The window goes on by its rule, which keeps whatever is not applied and durable here.
- At most `limit_s` for the alarm (`GIVE_AWAY_S` of it before leadership is handed over: a leader whose uncommitted tail is full takes no
  proposal, and its successor does), and twice the time of a handover. While that lasts, what is committed and not applied adds to the
  window, beyond the bound of `inflow` too, which lets everything pass: the alarm's entry may be behind what it would hold. What adds to
  memory is what the leader sends in that time.
- A snapshot that arrives meanwhile is not installed: a store that has failed takes nothing more.
- An alarm that is committed and disarmed in the same stretch of log is proposed again at every start: the operator disarmed too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import Alarms, ApplyMetDamageError, change_alarms
from kvserver.commands import CommandKind
from kvserver.errors import CorruptError, FatalError, RequestError
from kvserver.logs import Logger
from kvserver.pb.rpc_pb2 import CORRUPT, AlarmMember, AlarmRequest, AlarmType
from kvserver.types import NodeId
from raft.errors import CompactedError, UnavailableError
from raft.types import Entry, EntryType, Index

ATTEMPT_S: Final = 1.0
"""How long one proposal of the alarm may take: several round trips."""
GIVE_AWAY_S: Final = 1.0
POLL_S: Final = 0.02
FOLD_BYTES: Final = 1 << 20


class AppliedAlarms(Protocol):
    """What is needed of the store."""

    @property
    def alarms(self) -> Alarms: ...
    @property
    def applied_index(self) -> Index: ...


class CommittedLog(Protocol):
    """What is needed of raft's core, for reading."""

    @property
    def commit_index(self) -> Index: ...
    def committed_entries(self, lo: Index, max_size_bytes: int) -> list[Entry]: ...


class Raiser(Protocol):
    """Who raises this member's alarms."""

    def raise_alarm(self, kind: AlarmType.ValueType) -> None: ...
    def hasten(self, attempt_timeout_s: float) -> None: ...


class StoppableReads(Protocol):
    """The linearizable reads."""

    def stop(self, refusal: type[RequestError]) -> None: ...


class CheckedProposals(Protocol):
    """The way into the log, with the checks in front of it."""

    check: Callable[[CommandKind, PbMessage], None]
    check_change: Callable[[], None]


class Releaser(Protocol):
    """Who releases WAL segments."""

    def hold(self) -> None: ...


class Gate(Protocol):
    """The way in for entries from other members."""

    def let_pass(self) -> None: ...


class Leadership(Protocol):
    """Who hands leadership over."""

    async def run(self, *, since_s: float) -> None: ...


class CommittedAlarms:
    """The alarms as of the commit index. What was looked at is not looked at again: what is committed stays."""

    def __init__(self, store: AppliedAlarms, log: CommittedLog) -> None:
        self._store = store
        self._log = log
        self._through = Index(-1)
        self._alarms: Alarms = ()

    def now(self) -> Alarms:
        """The alarms that every member will have applied; those as applied here, while the entries behind can't be read."""
        store, log = self._store, self._log
        if self._through < store.applied_index:
            self._through, self._alarms = store.applied_index, store.alarms
        while self._through < log.commit_index:
            try:
                entries = log.committed_entries(Index(self._through + 1), FOLD_BYTES)
            except (CompactedError, UnavailableError):
                break  # a snapshot is being installed: the store will be behind it
            if not entries:
                break
            for entry in entries:
                self._take(entry)
        return self._alarms

    def _take(self, entry: Entry) -> None:
        self._through = entry.index
        if entry.type is not EntryType.NORMAL or not entry.data:
            return
        try:
            command = commands.decode(entry.data)
            if command.kind is CommandKind.ALARM:
                self._alarms, _ = change_alarms(self._alarms, AlarmRequest.FromString(bytes(command.payload)))
        except (FatalError, DecodeError):
            return  # no member can apply it; for the alarms it is nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltParts:
    """Whom the halt works with.

    `limit_s` is how long the alarm may take; `contact_s` how recently a voter must have been heard from to be handed leadership; `on_end`
    is told the error when all is done.
    """

    member_id: NodeId
    store: AppliedAlarms
    committed: CommittedLog
    alarms: Raiser
    reads: StoppableReads
    proposals: CheckedProposals
    releaser: Releaser
    inflow: Gate
    hand_over: Leadership
    limit_s: float
    contact_s: float
    on_end: Callable[[Exception], None]
    log: Logger


class Halt:
    """One member's last task. Belongs to the loop that it was made on."""

    def __init__(self, parts: HaltParts) -> None:
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._committed = CommittedAlarms(parts.store, parts.committed)
        self._alarm = AlarmMember(memberID=parts.member_id, alarm=CORRUPT)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_begun(self) -> bool:
        """Apply has met damage."""
        return self._task is not None

    def knows(self, alarm: AlarmMember) -> bool:
        """Whether the alarm is raised as far as this member can tell: as applied, and in a halt as committed."""
        return alarm in (self._committed.now() if self.is_begun else self._parts.store.alarms)

    def begin(self, error: ApplyMetDamageError) -> None:
        """Apply met damage: begin to end. What follows the first call changes nothing."""
        if self._task is not None:
            return
        parts = self._parts
        parts.log.error(
            "apply met damage in the store: this member tells the cluster, then it stops",
            path=str(error.path),
            row=error.row,
            reason=error.reason,
            index=error.index,
        )
        parts.reads.stop(CorruptError)
        parts.proposals.check = _refuse_all_but_alarms
        parts.proposals.check_change = _refuse
        parts.releaser.hold()
        parts.inflow.let_pass()
        self._task = self._loop.create_task(self._tell(), name="halt")
        self._task.add_done_callback(lambda task: self._told(task, error))

    async def stop(self) -> None:
        """Give it up; the node ends otherwise."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tell(self) -> None:
        """Have the alarm raised, and lead no more."""
        parts, began_s = self._parts, self._loop.time()
        parts.alarms.hasten(ATTEMPT_S)
        parts.alarms.raise_alarm(CORRUPT)
        is_raised = await self._wait_raised(began_s + min(GIVE_AWAY_S, parts.limit_s))
        await self._give_away()
        if not is_raised:
            is_raised = await self._wait_raised(began_s + parts.limit_s)
            await self._give_away()  # it may have been elected meanwhile
        if is_raised:
            parts.log.warning("the CORRUPT alarm of this member is raised", waited_s=round(self._loop.time() - began_s, 1))
        else:
            parts.log.error("the CORRUPT alarm of this member could not be raised; the next start tries again", waited_s=parts.limit_s)

    async def _give_away(self) -> None:
        await self._parts.hand_over.run(since_s=self._loop.time() - self._parts.contact_s)

    async def _wait_raised(self, until_s: float) -> bool:
        """Looks again and again: what is known changes with the commit index, and also when a snapshot's installation ends."""
        while not self.knows(self._alarm):
            if self._loop.time() >= until_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _told(self, task: asyncio.Task[None], error: ApplyMetDamageError) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:
            self._parts.log.error("telling the cluster of the damage failed", error=failure)
        self._parts.on_end(error)


def _refuse_all_but_alarms(kind: CommandKind, request: PbMessage) -> None:
    del request
    if kind is not CommandKind.ALARM:
        raise CorruptError


def _refuse() -> None:
    raise CorruptError
