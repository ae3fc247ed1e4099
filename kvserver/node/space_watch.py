"""Acts on want of disk space: refuses writes, looks for a better leader, tries again, and lets go when there is space.

Purpose: the asynchronous side of `space`. The store and the WAL tell it what they met; proposals ask it before they are taken.

Rules
- While this member is short, one task runs: it refills the WAL's spare, looks whether the store has settled, and hands leadership to a
  voter that says it has space, every `RETRY_S` (leadership: `space.HAND_OVER_PAUSE_S`).
- A write that another member forwarded here and that is refused never reaches raft, and that member is told at once (`NO_SPACE`): its
  client hears the documented error instead of a time-out. For `LEADER_SHORT_S` it then refuses such writes itself.
- Entering and leaving are logged once each, with how much must be free and where; every `REMIND_S` in between, with how much is. So a
  shortage costs two lines a minute at most (one for each disk). `/metrics` and Status show what is wanting.

Caveats: what was handed to raft before the disk was full is not refused any more; it is answered when it is applied, or its client gives
up waiting (the outcome is then unknown, and no acknowledged write is lost).
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from google.protobuf.message import Message as PbMessage

from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import NoSpaceError
from kvserver.logs import Logger
from kvserver.node.forwarding import ForwardKind
from kvserver.node.handover import HandOver
from kvserver.node.proposals import Proposals
from kvserver.node.space import (
    Disks,
    Refusal,
    Shortage,
    Space,
    SpaceEvent,
    advance,
    has_settled,
    is_refused,
    refusal,
    refused_proposal,
    shortages,
    should_hand_over,
    split_forwarded,
    store_needs,
)
from kvserver.node.worker import Worker
from kvserver.peer import PeerRequestError
from kvserver.types import NodeId
from raft.confchange import ConfChange
from raft.messages import Message, MessageType
from raft.types import NO_NODE
from wal import Files

RETRY_S: Final = 1.0
ASK_TIMEOUT_S: Final = 1.0
LEADER_SHORT_S: Final = 1.0
REMIND_S: Final = 60.0
"""How often a shortage that lasts is logged again."""
_ID: Final = struct.Struct(">QQ")
YES: Final = b"\1"
NO: Final = b"\0"


class SpareLog(Protocol):
    """What is needed of the WAL; `refill_spare` blocks and belongs on its thread."""

    on_spare_lost: Callable[[], None] | None

    @property
    def has_spare(self) -> bool: ...
    def refill_spare(self) -> bool: ...


class BufferedStore(Protocol):
    """What is needed of the store."""

    @property
    def has_room(self) -> bool: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def size_in_use_bytes(self) -> int: ...
    @property
    def buffered_payload_bytes(self) -> int: ...


class LeaderView(Protocol):
    """What is needed of the driver."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceParts:
    """Whom the watch works with.

    `contact_s` is how recently a voter must have been heard from to be handed leadership, `segment_bytes` the size of a WAL segment.
    """

    member_id: NodeId
    wal: SpareLog
    worker: Worker
    store: BufferedStore
    files: Files
    disks: Disks
    segment_bytes: int
    driver: LeaderView
    proposals: Proposals
    hand_over: HandOver
    ask: Callable[..., Awaitable[bytes]]
    contact_s: float
    on_fatal: Callable[[Exception], None]
    log: Logger


class SpaceWatch:
    """One member's care for its disk space. Belongs to the loop that it was made on."""

    def __init__(self, parts: SpaceParts) -> None:
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._space = Space()
        self._store_committed = True
        self._task: asyncio.Task[None] | None = None
        self._notices: set[asyncio.Task[None]] = set()
        self._last_try_s = -math.inf
        self._leader_short_until_s = 0.0
        self._short_since_s = 0.0
        self._said_s = 0.0
        self._free_bytes: dict[Path, int] = {}  # as last measured, of disks that were short then
        self._stopped = False
        parts.wal.on_spare_lost = self._spare_lost_in_thread
        if not parts.wal.has_spare:
            self._note(SpaceEvent.SPARE_LOST, "there was no space for one at the start")

    # --- what is asked -------------------------------------------------------------------------------------------------------------------

    @property
    def space(self) -> Space:
        """What is wanting now."""
        return self._space

    @property
    def refusal(self) -> Refusal:
        """What this member refuses now, for want of space here or (as it has said) on the leader."""
        own = refusal(self._space, buffer_full=not self._parts.store.has_room)
        return max(own, Refusal.GROWTH) if self._loop.time() < self._leader_short_until_s else own

    def describe(self) -> tuple[str, ...]:
        """What is wanting, a sentence for each disk, without its paths: clients are told it (Status)."""
        return tuple(self._sentence(each) for each in self._shortages())

    def _sentence(self, shortage: Shortage) -> str:
        free_bytes = self._free_bytes.get(shortage.directory)
        free = "" if free_bytes is None else f"{free_bytes} bytes free; "
        return f"short of disk space ({' '.join(shortage.what)}): {free}writes are taken again at {shortage.needed_bytes}"

    def _shortages(self) -> tuple[Shortage, ...]:
        parts, store = self._parts, self._parts.store
        needed_bytes = store_needs(
            is_committed=self._store_committed,
            waiting_bytes=store.buffered_payload_bytes,
            reusable_bytes=store.size_bytes - store.size_in_use_bytes,
        )
        return shortages(self._space, parts.disks, store_needed_bytes=needed_bytes, segment_bytes=parts.segment_bytes)

    def check(self, kind: CommandKind, request: PbMessage) -> None:
        """Raise NoSpaceError for a command that is not taken now."""
        if (self._space.is_short or self._leader_short_until_s) and is_refused(self.refusal, kind, request):
            raise NoSpaceError

    def check_change(self) -> None:
        """Raise NoSpaceError if not even a membership change is taken now."""
        if self._space.is_short and self.refusal is Refusal.EVERYTHING:
            raise NoSpaceError

    # --- what is told --------------------------------------------------------------------------------------------------------------------

    def note_store(self, error: Exception | None) -> None:
        """A commit met a full disk, or (None) has succeeded again."""
        self._store_committed = error is None
        if error is not None:
            self._note(SpaceEvent.STORE_FULL, str(error))

    def note_append(self, error: Exception | None) -> None:
        """The WAL had no space for a save, or (None) has saved it."""
        self._note(SpaceEvent.APPEND_SAVED if error is None else SpaceEvent.APPEND_HELD, "" if error is None else str(error))

    def note_leader(self) -> None:
        """Another member leads: what the last one said of its disk is of no interest, and if it is this one, it may be short."""
        self._leader_short_until_s = 0.0
        self._last_try_s = -math.inf

    def _spare_lost_in_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._note, SpaceEvent.SPARE_LOST, "a new segment took it, and the disk has no space for another")

    def _note(self, event: SpaceEvent, reason: str) -> None:
        before, self._space = self._space, advance(self._space, event)
        if self._space == before or self._stopped:
            return
        log, now_s = self._parts.log, self._loop.time()
        if not self._space.is_short:
            self._free_bytes = {}
            log.info("there is disk space again: writes are taken", short_s=round(now_s - self._short_since_s, 1))
            return
        if not before.is_short:
            self._short_since_s = self._said_s = now_s
        if not reason:
            log.info("some disk space is back, writes are still refused", what=event.value, **self._needs())
            return
        log.warning("short of disk space: writes are refused", what=event.value, reason=reason, **self._needs())
        self._refuse_waiting()
        if self._task is None:
            self._begin()

    def _needs(self) -> dict[str, object]:
        """What must be free, and where, before writes are taken again: fields of a line."""
        return {"needed_bytes": {str(each.directory): each.needed_bytes for each in self._shortages()}}

    def _remind(self) -> None:
        """Say again what is wanting, if that was not said for a while."""
        now_s = self._loop.time()
        if now_s - self._said_s < REMIND_S:
            return
        self._said_s = now_s
        for each in self._shortages():
            self._parts.log.warning(
                "still short of disk space: writes are refused",
                what=" ".join(each.what),
                directory=str(each.directory),
                free_bytes=self._free_bytes.get(each.directory),
                needed_bytes=each.needed_bytes,
                short_s=round(now_s - self._short_since_s, 1),
            )

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._pursue(), name="space-watch")
        self._task.add_done_callback(self._pursued)

    def _refuse_waiting(self) -> None:
        """Proposals that raft has not got yet: what is refused from now on, is refused to them as well."""
        level = self.refusal

        def refuses(content: bytes | ConfChange) -> bool:
            if isinstance(content, ConfChange):
                return level is Refusal.EVERYTHING
            return refused_proposal(level, content) is not None

        self._parts.proposals.refuse_waiting(refuses, NoSpaceError)

    # --- the task ------------------------------------------------------------------------------------------------------------------------

    async def _pursue(self) -> None:
        while self._space.is_short:
            await self._find_leader()
            await asyncio.sleep(RETRY_S)
            if self._space.spare_missing and await self._parts.worker.run(self._parts.wal.refill_spare):
                self._note(SpaceEvent.SPARE_MADE, "")
            await self._measure()
            if self._space.store_full and self._store_has_settled():
                self._note(SpaceEvent.STORE_FREE, "")
            self._remind()

    async def _measure(self) -> None:
        """Look how much is free on the disks that are short."""
        measured = {}
        for each in self._shortages():
            measured[each.directory] = await asyncio.to_thread(self._parts.files.free_bytes, each.directory)
        self._free_bytes = measured

    def _store_has_settled(self) -> bool:
        """Whether the store has committed since it was short, and found enough space at the last look."""
        store, free_bytes = self._parts.store, self._free_bytes.get(self._parts.disks.store)
        if not self._store_committed or free_bytes is None:
            return False
        return has_settled(free_bytes=free_bytes, reusable_bytes=store.size_bytes - store.size_in_use_bytes)

    async def _find_leader(self) -> None:
        """Hand leadership to a voter that has space, if this member leads and there is one."""
        parts, now_s = self._parts, self._loop.time()
        if not should_hand_over(self._space, is_leader=parts.driver.is_leader, now_s=now_s, last_try_s=self._last_try_s):
            return
        self._last_try_s = now_s
        for peer in parts.hand_over.candidates(now_s - parts.contact_s):
            if await self._has_space(peer) and parts.driver.is_leader and await parts.hand_over.give_to(peer):
                return

    async def _has_space(self, peer: NodeId) -> bool:
        """Ask; a member that doesn't answer, or not in these words, is none to rely on."""
        try:
            return await self._parts.ask(peer, ForwardKind.HAS_SPACE, b"", timeout_s=ASK_TIMEOUT_S) == YES
        except PeerRequestError as error:
            self._parts.log.debug("could not ask a member for its disk space", peer=f"{peer:x}", reason=str(error))
            return False

    def _pursued(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or self._stopped:
            return
        error = task.exception()
        if error is not None:
            self._parts.on_fatal(error if isinstance(error, Exception) else RuntimeError(str(error)))
        elif self._space.is_short:  # again, in between
            self._begin()

    async def stop(self) -> None:
        """End what runs."""
        self._stopped = True
        self._parts.wal.on_spare_lost = None
        tasks = [*self._notices, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- between members -----------------------------------------------------------------------------------------------------------------

    def admit(self, message: Message) -> Message | None:
        """A message from a peer, less the forwarded writes that are not taken; None if nothing is left. The others are told."""
        if message.type is not MessageType.PROP or not self._space.is_short or not self._parts.driver.is_leader:
            return message
        taken, refused = split_forwarded(self.refusal, message.entries)
        if not refused:
            return message
        notice = b"".join(_ID.pack(each.incarnation, each.counter) for each in refused if each.member == message.from_)
        task = self._loop.create_task(self._tell(message.from_, notice), name="no-space-notice")
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)
        return replace(message, entries=tuple(taken)) if taken else None

    async def _tell(self, peer: NodeId, notice: bytes) -> None:
        try:
            await self._parts.ask(peer, ForwardKind.NO_SPACE, notice, timeout_s=ASK_TIMEOUT_S)
        except PeerRequestError as error:  # its clients will wait for their deadline
            self._parts.log.debug("could not tell a member of refused writes", peer=f"{peer:x}", reason=str(error))

    def answer_has_space(self) -> bytes:
        """What another member is told that asks for `HAS_SPACE`."""
        return NO if self._space.is_short or self._stopped else YES

    def take_notice(self, sender: NodeId, payload: bytes) -> bytes:
        """`NO_SPACE`: the leader did not take these of this member's writes. Raises ValueError when it can't be read."""
        if len(payload) % _ID.size:
            raise ValueError(f"{len(payload)} bytes are no list of proposals")
        for incarnation, counter in _ID.iter_unpack(payload):
            self._parts.proposals.resolve(ProposalId(self._parts.member_id, incarnation, counter), NoSpaceError())
        if sender == self._parts.driver.leader_id != NO_NODE:
            self._leader_short_until_s = self._loop.time() + LEADER_SHORT_S
        return b""
