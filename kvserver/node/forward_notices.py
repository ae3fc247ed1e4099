"""What a leader says of forwarded writes that it did not propose, and what the member that sent them does then.

Purpose: turns raft's silent drop into an answer. A notice says of certain writes that they are neither in raft nor on their way to it here.

Rules
- `NO_ROOM`: there was no room for them to wait. Their clients hear `too many requests` at once: nothing was proposed, and they may try
  again.
- `HANDED_BACK`: nobody leads there. The sender, which knows now that they were not proposed, proposes them again when there is a leader, a
  tick later at the earliest: it may not have heard of the change yet.
- One notice of a kind is under way to a member at a time, with at most `MAX_IDS` writes; what gathers meanwhile goes with the next. At most
  `MAX_GATHERED` gather, the rest is forgotten: those clients, and those whose notice is lost, wait for their time-out.
- Refusals are logged once in a while, with how many there were.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import decode_change
from kvserver.commands import ProposalId
from kvserver.errors import FatalError, RequestError, TooManyRequestsError
from kvserver.logs import Logger, RareLine
from kvserver.node.forwarding import ForwardKind
from kvserver.peer import PeerRequestError
from kvserver.types import NodeId
from raft.confchange_codec import decode_conf_change
from raft.errors import CodecError
from raft.messages import Message
from raft.types import Entry, EntryType

__all__ = ["ForwardNotices", "Proposers"]

TELL_TIMEOUT_S: Final = 1.0
MAX_IDS: Final = 4096
MAX_GATHERED: Final = 65_536
_ID: Final = struct.Struct(">QQ")


class Proposers(Protocol):
    """What is needed of the proposals of this member."""

    def resolve(self, proposal: ProposalId, result: PbMessage | RequestError) -> None: ...
    def take_back(self, proposal: ProposalId) -> None: ...


class ForwardNotices:
    """Tells and is told; meets `forwarded.Senders`. Belongs to the loop.

    Args:
        ask: sends a request to a member.
        on_refused, on_handed_back: told of each message.
    """

    def __init__(
        self,
        *,
        member_id: NodeId,
        ask: Callable[..., Awaitable[bytes]],
        on_refused: Callable[[], None],
        on_handed_back: Callable[[], None],
        log: Logger,
    ) -> None:
        self.proposals: Proposers | None = None  # set before anything is told
        self._member_id = member_id
        self._ask = ask
        self._on_refused = on_refused
        self._on_handed_back = on_handed_back
        self._log = log
        self._gathered: dict[tuple[NodeId, ForwardKind], list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = RareLine(log, "refused writes that other members forward: no room")
        self._stopped = False

    # --- the leader's side ---------------------------------------------------------------------------------------------------------------

    def refuse(self, message: Message) -> None:
        """There is no room for it, and it was not proposed."""
        self._on_refused()
        self._refused.warning(count=len(message.entries), sender=f"{message.from_:x}")
        self._tell(message, ForwardKind.NO_ROOM)

    def hand_back(self, message: Message) -> None:
        """Nobody leads here, and it was not proposed."""
        self._on_handed_back()
        self._tell(message, ForwardKind.HANDED_BACK)

    def _tell(self, message: Message, kind: ForwardKind) -> None:
        sender = message.from_
        found = (proposal_of(entry) for entry in message.entries)
        ids = [_ID.pack(each.incarnation, each.counter) for each in found if each is not None and each.member == sender]
        if self._stopped or not ids:
            return
        key = (sender, kind)
        gathered = self._gathered.get(key)
        if gathered is not None:
            gathered.extend(ids[: MAX_GATHERED - len(gathered)])
            return
        self._gathered[key] = ids
        task = asyncio.get_running_loop().create_task(self._send(sender, kind), name="forward-notice")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, peer: NodeId, kind: ForwardKind) -> None:
        key = (peer, kind)
        while self._gathered[key]:
            ids = self._gathered[key]
            payload, self._gathered[key] = b"".join(ids[:MAX_IDS]), ids[MAX_IDS:]
            if peer == self._member_id:  # a write that came back here over a member that led
                self.take(kind, payload)
                continue
            try:
                await self._ask(peer, kind, payload, timeout_s=TELL_TIMEOUT_S)
            except PeerRequestError as error:  # its clients will wait for their deadline
                self._log.debug("could not tell a member of writes that were not proposed", peer=f"{peer:x}", reason=str(error))
        del self._gathered[key]

    async def stop(self) -> None:
        """End what runs."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- the sender's side ---------------------------------------------------------------------------------------------------------------

    def take(self, kind: ForwardKind, payload: bytes) -> bytes:
        """These of this member's writes were not proposed. Raises ValueError when it can't be read."""
        if len(payload) % _ID.size:
            raise ValueError(f"{len(payload)} bytes are no list of proposals")
        assert self.proposals is not None, "set before the transport starts"
        for incarnation, counter in _ID.iter_unpack(payload):
            proposal = ProposalId(self._member_id, incarnation, counter)
            if kind is ForwardKind.NO_ROOM:
                self.proposals.resolve(proposal, TooManyRequestsError())
            else:
                self.proposals.take_back(proposal)
        return b""


def proposal_of(entry: Entry) -> ProposalId | None:
    """The id of the write or membership change that an entry carries; None if it carries none, or can't be read."""
    if not entry.data:
        return None
    try:
        if entry.type is EntryType.NORMAL:
            return commands.decode(entry.data).id
        return decode_change(decode_conf_change(entry.type, entry.data).as_v2().context)[1]
    except (FatalError, CodecError, DecodeError, ValueError):
        return None
