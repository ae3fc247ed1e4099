"""Proposals in flight: from a request to the result that apply computes for it.

Purpose: gives every proposal an id, bounds how many (count and bytes) may be unanswered, hands it to raft, and resolves its future when the
entry with that id is applied on this member.

Rules
- An id is (member, incarnation, counter): the incarnation is drawn anew at every start, so that a replayed entry can't resolve a new
  future.
- A proposal is handed to raft once. While there is no leader it waits *before* that; once handed over it is never repeated, as it might
  apply twice. The one exception comes back (`take_back`): a member says that it was forwarded there and is not in raft.
- One that is being applied, and takes many slices, has no deadline any more but its client's: its outcome is certain, and only a matter of
  time.
- What raft has and is not answered yet counts in the forward window: a follower sends its leader no more than that can hold.
- A future ends by its result, by its deadline, by shutdown, or by `fail_older_than`: when the first entry of a newer term is applied,
  whatever this member proposed under an older term and has not seen applied is unknown (normally lost), and the client hears `leader
  changed` at once.

Bounds: `max_count` and `max_bytes` unanswered; over that `TooManyRequestsError`, and nothing was proposed. The bytes of clients' requests
are bounded before they come here, by waiting (rpc.intake).

Source: etcd server's v3_server.go (processInternalRaftRequestOnce) for the limits and error texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import MemberChange, encode_change
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import (
    LeaderChangedError,
    RequestError,
    RequestTimeoutError,
    RequestTooLargeError,
    StoppedError,
    TimeoutDueToConnectionLostError,
    TimeoutDueToLeaderFailError,
    TooManyRequestsError,
)
from kvserver.node.forward_window import ForwardWindow
from kvserver.node.proposal_batches import WaitingProposal
from raft.confchange import ConfChange
from raft.types import NodeId, Term


class ProposalSink(Protocol):
    """What proposals need of the driver."""

    @property
    def term(self) -> Term: ...
    def has_leader(self) -> bool: ...
    def propose(self, proposal: WaitingProposal) -> None:
        """Hand the proposal to raft as soon as raft takes it: with the next turn, or when there is a leader (again)."""
        ...

    def take_back(self, proposal: WaitingProposal) -> None:
        """The same for one that came back, a little later."""
        ...


@dataclass(slots=True)
class _Pending:
    """A proposal and who waits for it. `term` is the one it was handed to raft under, None before that. Meets `WaitingProposal`."""

    content: bytes | ConfChange
    future: asyncio.Future[PbMessage]
    size_bytes: int
    window: ForwardWindow
    term: Term | None = None
    timer: asyncio.TimerHandle | None = None
    ticket: int | None = None

    @property
    def is_wanted(self) -> bool:
        return not self.future.done()

    def taken(self, term: Term) -> None:
        self.term = term
        self.ticket = self.window.take(self.size_bytes)

    def leave_window(self) -> None:
        """It is answered, or is not in raft after all."""
        if self.ticket is not None:
            self.window.give(self.size_bytes, self.ticket)
            self.ticket = None


class Proposals:
    """The proposals of this member that await their result.

    `check` and `check_change` are asked before a command or a membership change is taken; they raise a RequestError against it.
    """

    def __init__(
        self,
        *,
        member_id: NodeId,
        incarnation: int,
        sink: ProposalSink,
        max_count: int,
        max_bytes: int,
        on_failed: Callable[[], None],
        window: ForwardWindow | None = None,
    ) -> None:
        self.check: Callable[[CommandKind, PbMessage], None] = _accept
        self.check_change: Callable[[], None] = _accept_change
        self._member_id = member_id
        self._incarnation = incarnation
        self._sink = sink
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._on_failed = on_failed
        self._window = window or ForwardWindow(lambda: max_bytes)
        self._pending: dict[int, _Pending] = {}
        self._counter = 0
        self._bytes = 0
        self._stopped = False

    @property
    def pending_count(self) -> int:
        """How many proposals are unanswered."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Their encoded size."""
        return self._bytes

    async def propose(self, kind: CommandKind, request: PbMessage, *, deadline_s: float, encoded: bytes | None = None) -> PbMessage:
        """Replicate `request` and return what applying it gave.

        Args:
            deadline_s: on the loop's clock.
            encoded: the request's encoding, if that is at hand: a large one takes milliseconds to encode.

        Raises:
            TooManyRequestsError: the bounds are exhausted; nothing was proposed.
            RequestTimeoutError (or one of its two relatives): the deadline passed; the outcome is unknown.
            LeaderChangedError: leadership moved on; the outcome is unknown.
            StoppedError: this member is stopping.
            NoSpaceError: this member, or the leader, is short of disk space; nothing was proposed.
            RequestError: the deterministic result of applying it.
        """
        self.check(kind, request)
        proposal = self._next_id()
        data = commands.encode(kind, proposal, request.SerializeToString() if encoded is None else encoded)
        del request, encoded  # their bytes are in `data`
        return await self._submit(proposal.counter, data, len(data), deadline_s)

    async def propose_change(self, change: MemberChange, conf_change: ConfChange, *, deadline_s: float) -> PbMessage:
        """Replicate a membership change, carried by `conf_change` (whose context is set here); as `propose`."""
        self.check_change()
        proposal = self._next_id()
        context = encode_change(change, proposal)
        return await self._submit(proposal.counter, replace(conf_change, context=context), len(context), deadline_s)

    def _next_id(self) -> ProposalId:
        self._counter += 1
        return ProposalId(self._member_id, self._incarnation, self._counter)

    async def _submit(self, counter: int, content: bytes | ConfChange, size_bytes: int, deadline_s: float) -> PbMessage:
        """Register the proposal, have it handed to raft when raft takes it, and wait for its result."""
        if self._stopped:
            raise StoppedError
        if len(self._pending) >= self._max_count or (self._bytes + size_bytes > self._max_bytes and self._pending):
            raise TooManyRequestsError
        if size_bytes > self._max_bytes:
            raise RequestTooLargeError
        loop = asyncio.get_running_loop()
        pending = _Pending(content, loop.create_future(), size_bytes, self._window)
        self._pending[counter] = pending
        self._bytes += size_bytes
        # A tenth of the cost of asyncio.timeout_at, on the way of every write.
        pending.timer = timer = loop.call_at(deadline_s, _expire, pending.future)
        try:
            self._sink.propose(pending)
            return await pending.future
        except TimeoutError:
            self._on_failed()
            raise self._timeout_error(pending) from None
        finally:
            timer.cancel()
            pending.leave_window()
            del self._pending[counter]
            self._bytes -= size_bytes
            pending.content = b""  # raft may not have asked for it yet: an unwanted proposal in its queue must not hold the bytes

    def resolve(self, proposal: ProposalId, result: PbMessage | RequestError) -> None:
        """An entry was applied: if it is one of ours and still awaited, answer it."""
        if not self.is_awaited(proposal):
            return
        pending = self._pending[proposal.counter]
        pending.leave_window()
        if isinstance(result, RequestError):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)

    def note_begun(self, proposal: ProposalId) -> None:
        """A part of it is applied, and the rest follows: if it is one of ours, it waits for that as long as its client does."""
        if self.is_awaited(proposal):
            timer = self._pending[proposal.counter].timer
            if timer is not None:
                timer.cancel()

    def is_awaited(self, proposal: ProposalId) -> bool:
        """Whether it is one of ours, and its result is still wanted."""
        if proposal.incarnation != self._incarnation or proposal.member != self._member_id:
            return False
        pending = self._pending.get(proposal.counter)
        return pending is not None and not pending.future.done()

    def take_back(self, proposal: ProposalId) -> None:
        """The member that this was forwarded to says that it is not in raft: hand it over again, if somebody still waits for it."""
        if proposal.incarnation != self._incarnation or proposal.member != self._member_id:
            return
        pending = self._pending.get(proposal.counter)
        if pending is None or pending.term is None or pending.future.done():
            return
        pending.leave_window()
        pending.term = None
        self._sink.take_back(pending)

    def refuse_waiting(self, refuses: Callable[[bytes | ConfChange], bool], error: type[RequestError]) -> None:
        """Answer with `error` what raft has not been given yet and `refuses` says yes to: nothing of it was proposed."""
        for pending in self._pending.values():
            if pending.term is None and not pending.future.done() and refuses(pending.content):
                pending.future.set_exception(error())

    def fail_older_than(self, term: Term) -> None:
        """The first entry of `term` was applied: what was proposed under an older term and isn't applied by now can't be told any more."""
        for pending in self._pending.values():
            if pending.term is not None and pending.term < term and not pending.future.done():
                self._on_failed()
                pending.leave_window()
                pending.future.set_exception(LeaderChangedError())

    def stop(self) -> None:
        """Answer everything that is still open with `server stopped` and refuse what comes."""
        self._stopped = True
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(StoppedError())

    def _timeout_error(self, pending: _Pending) -> RequestError:
        if not self._sink.has_leader():
            return TimeoutDueToConnectionLostError()
        if pending.term is not None and self._sink.term > pending.term:
            return TimeoutDueToLeaderFailError()
        return RequestTimeoutError()


def _accept(kind: CommandKind, request: PbMessage) -> None:
    """Nothing speaks against a command."""


def _accept_change() -> None:
    """Nothing speaks against a membership change."""


def _expire(future: asyncio.Future[PbMessage]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
