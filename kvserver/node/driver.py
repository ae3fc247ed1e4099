"""The driver: the asyncio shell round raft's core.

Purpose: owns the RawNode. Ticks it, steps it, and carries out what every Ready asks for: messages to peers, appends to the WAL thread,
applies to the state machine, read states to the readers; then compacts the log window.

Rules
- One owner: only this object calls the RawNode, always on the loop. Inputs step the core at once and schedule one turn (`_turn`), which
  drains every Ready there is; the turn is the batch.
- Storage writes are raft's asynchronous ones: acknowledgements travel as responses of MsgStorageAppend / MsgStorageApply, so heartbeats
  and elections go on while a disk is slow, and raft itself bounds what is being applied.
- A turn runs at once when storage responds and when a proposal meets an idle disk; everything else is gathered by a scheduled one. What
  was applied schedules one, too: whoever waits for the result gets the loop first.
- After a scheduled turn the window is weighed and compacted as far as the rule allows (log-memory.md); the floor rides to the followers
  with the next messages. Whatever the rule depends on schedules a turn: inputs, what becomes safe, and each tick for what depends on time.
- Writes that other members forward wait in `forwarded` while raft takes none, and take turns with this member's own; as a follower this one
  sends no more of its own than `forward_window` has room for.
- Ticks missed during a stall collapse into one: a member that slept must not campaign because of its own nap.

Source: architecture.md ("The way of one Put"); etcd-io/raft doc.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Protocol

from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.compaction import Decision, WindowLimits
from kvserver.node.forward_window import ForwardWindow
from kvserver.node.forwarded import Forwarded
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from kvserver.node.proposal_batches import WaitingProposal, next_batch
from kvserver.node.window_keeper import WindowKeeper, WindowReport
from kvserver.types import NodeId
from raft.confchange import ConfChange
from raft.errors import InvalidMessageError, ProposalDroppedError, RaftError, StepLocalMessageError, StepPeerNotFoundError
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType
from raft.raw_node import RawNode
from raft.ready import Ready
from raft.types import NO_NODE, ConfState, Index, Term

SMALL_PROPOSAL_BYTES: Final = 16 << 10
_UNBOUNDED: Final = 1 << 62


class Outbox(Protocol):
    """Where messages to peers go: never blocks, drops over its bounds."""

    def send(self, messages: Sequence[Message], floor: Index) -> None: ...


class Durability(Protocol):
    """How far the store is committed and fsynced."""

    @property
    def durable_index(self) -> Index: ...


@dataclass(slots=True, kw_only=True)
class DriverHooks:
    """Whom the driver tells; all are called on the loop and must not block."""

    on_leader: Callable[[NodeId, NodeId, Term], None]
    on_read_state: Callable[[bytes, Index], None]
    on_snapshot_wanted: Callable[[Message], bool]
    on_new_term_applied: Callable[[Term], None]
    on_compacted: Callable[[Decision, int, float], None]
    on_invalid: Callable[[Message, RaftError], None]
    on_fatal: Callable[[Exception], None]


@dataclass(slots=True)
class _Waiters:
    """Futures that wait for an applied index, or for another leader."""

    applied: list[tuple[Index, asyncio.Future[None]]] = field(default_factory=list)
    leader: list[asyncio.Future[None]] = field(default_factory=list)


class Driver:
    """Runs one RawNode.

    Without `forwarded` what other members forward is lost if raft can't take it at once, without `forward_window` all goes to the leader.
    """

    def __init__(
        self,
        *,
        raw: RawNode,
        window: LogWindow,
        peers: PeerBook,
        outbox: Outbox,
        durability: Durability,
        limits: WindowLimits,
        tick_s: float,
        hooks: DriverHooks,
        log_first: Callable[[], Index | None] = lambda: None,
        forwarded: Forwarded | None = None,
        forward_window: ForwardWindow | None = None,
    ) -> None:
        self._raw = raw
        self._window = window
        self._peers = peers
        self._outbox = outbox
        self._durability = durability
        self._keeper = WindowKeeper(window, peers, limits, log_first)
        self._tick_s = tick_s
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._waiters = _Waiters()
        self._proposals: list[WaitingProposal] = []  # bounded by who makes them (proposals.py)
        self._returned: list[WaitingProposal] = []  # came back from a member that leads no more: proposed again with the next tick
        self._forwarded = forwarded
        self._forwarded_is_next = False
        self._forward_window = forward_window or ForwardWindow(lambda: _UNBOUNDED)
        self._append: AppendQueue | None = None
        self._apply: ApplyQueue | None = None
        self._turn_scheduled = False
        self._in_turn = False
        self._stopped = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._leader = NO_NODE
        self._role_since_s = self._loop.time()
        self._leader_floor: Index | None = None
        self._applied_index = raw.applied_index
        self._applied_term = Term(0)
        self._weighed_index = Index(0)  # what was safe when the window was last weighed
        self._is_settled = False  # it was within the slack then, and everything durable was safe: only a commit or a tick changes that

    def start(self, append: AppendQueue, apply: ApplyQueue) -> None:
        """Begin to tick, with the two queues that carry out storage work."""
        self._append, self._apply = append, apply
        self._tick_timer = self._loop.call_later(self._tick_s, self._tick)
        self.wake()

    def stop(self) -> None:
        """Stop ticking and stepping; what the queues still carry is theirs to finish."""
        self._stopped = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        for _, future in self._waiters.applied:
            future.cancel()
        self._proposals.clear()
        self._returned.clear()

    # --- what others read ----------------------------------------------------------------------------------------------------------------

    @property
    def raw(self) -> RawNode:
        """The core, for reading its state; only the driver may change it."""
        return self._raw

    @property
    def term(self) -> Term:
        """The current term."""
        return self._raw.term

    @property
    def leader_id(self) -> NodeId:
        """The leader of the current term, 0 when unknown."""
        return self._leader

    @property
    def is_leader(self) -> bool:
        """This member leads."""
        return self._raw.is_leader

    @property
    def applied_index(self) -> Index:
        """The last entry applied to the store on this member."""
        return self._applied_index

    @property
    def unapplied_bytes(self) -> int:
        """Bytes of entries that are committed, durable in the WAL and not applied."""
        window = self._window
        return window.bytes_after(self._applied_index) - window.bytes_after(max(self._applied_index, self._raw.commit_index))

    @property
    def leader_floor(self) -> Index | None:
        """The floor last heard from the current leader."""
        return self._leader_floor

    def has_leader(self) -> bool:
        """A leader is known."""
        return self._leader != NO_NODE

    def explain_window(self) -> WindowReport:
        """Why the log window is as long as it is, now."""
        now_s, since_s, floor = self._loop.time(), self._role_since_s, self._leader_floor
        return self._keeper.explain(self._raw, safe_index=self._safe_index(), now_s=now_s, role_since_s=since_s, leader_floor=floor)

    def match_index(self, peer: NodeId) -> Index | None:
        """What is known to be replicated to `peer` (on the leader); None for one that raft does not track."""
        return next((progress.match_index for tracked, progress, _ in self._raw.progress() if tracked == peer), None)

    async def wait_leader_change(self) -> None:
        """Return at the next change of leader."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.leader.append(future)
        try:
            await future
        finally:
            if future in self._waiters.leader:
                self._waiters.leader.remove(future)

    # --- inputs --------------------------------------------------------------------------------------------------------------------------

    def propose(self, proposal: WaitingProposal) -> None:
        """Hand the proposal to raft: now if the disk is idle and it is small (the caller's work and the turn's are one piece then), else
        with the next turn, together with all others of this one. While raft takes none it waits here."""
        self._proposals.append(proposal)
        is_small = isinstance(proposal.content, ConfChange) or len(proposal.content) <= SMALL_PROPOSAL_BYTES
        if is_small and self._append is not None and self._append.is_idle and not self._turn_scheduled and not self._in_turn:
            self._run_turn()
        else:
            self.wake()

    def take_back(self, proposal: WaitingProposal) -> None:
        """A proposal that was forwarded, and that is not in raft: it is handed over again."""
        self._returned.append(proposal)

    def request_read_index(self, context: bytes) -> None:
        """Ask for the index at which a read with this context is linearizable."""
        self._enter(self._raw.read_index, context)

    def step(self, message: Message, floor: Index) -> None:
        """A message from a peer; `floor` is the sender's log floor, of interest when it leads."""
        if self._stopped:
            return
        self._peers.note_contact(message.from_, self._loop.time())
        try:
            if message.type is MessageType.PROP and self._forwarded is not None:
                self._forwarded.take(message)
            else:
                self._raw.step(message)
        except (ProposalDroppedError, StepPeerNotFoundError):
            pass  # a proposal that raft can't take; or a peer that it doesn't know (any more)
        except (InvalidMessageError, StepLocalMessageError) as error:
            self._hooks.on_invalid(message, error)
            return
        except Exception as failure:  # noqa: BLE001 - the core must not fail; if it does, going on could break its promises
            self._fail(failure)
            return
        if message.from_ == self._raw.leader_id:
            self._leader_floor = max(floor, self._leader_floor or floor)  # lanes overtake each other; a floor never moves back
        self.wake()

    def note_contact(self, peer: NodeId) -> None:
        """Something that is not a raft message arrived from `peer`."""
        self._peers.note_contact(peer, self._loop.time())

    def report_unreachable(self, peer: NodeId) -> None:
        """A message to `peer` was dropped."""
        if peer == self._leader:
            self._forward_window.forget()
        self._enter(self._raw.report_unreachable, peer)

    def retry_appends(self) -> None:
        """Entries that had to be read from disk are there."""
        self._enter(self._raw.retry_appends)

    def report_snapshot(self, peer: NodeId, *, delivered: bool) -> None:
        """The snapshot stream to `peer` ended."""
        if delivered:
            self._peers.unpin_later(peer, self._loop.time())
        else:
            self._peers.unpin(peer)
        self._enter(self._raw.report_snapshot, peer, delivered)

    def campaign(self) -> None:
        """Stand for election now, without waiting for the election timeout."""
        self._enter(self._raw.campaign)

    def transfer_leader(self, to: NodeId) -> None:
        """Begin to hand leadership to `to`."""
        self._enter(self._raw.transfer_leader, to)

    def storage_responded(self, responses: Iterable[Message]) -> None:
        """An append is durable, or entries are applied: responses to this member step the core, the others leave now."""
        if self._stopped:
            return
        outgoing = []
        for response in responses:
            if response.to == self._raw.id:
                self._raw.step(response)
            else:
                outgoing.append(response)
        if outgoing:
            self._outbox.send(outgoing, Index(self._window.first_index() - 1))
        if self._in_turn:
            self._schedule_turn()  # applied within a turn: first whoever waits for that gets the loop
            return
        self._run_turn()
        if self._safe_index() > self._weighed_index:
            self._schedule_turn()  # applied in a slice of its own: the same, and then the window is compacted

    def note_applied(self, index: Index, term: Term) -> None:
        """The store holds everything through `index`."""
        self._applied_index = index
        if term != self._applied_term:
            self._applied_term = term
            self._hooks.on_new_term_applied(term)

    def wait_applied(self, index: Index) -> asyncio.Future[None]:
        """A future that is done when this member has applied `index`; cancelled when the node stops."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._applied_index >= index:
            future.set_result(None)
        else:
            self._waiters.applied.append((index, future))
        return future

    def wake(self) -> None:
        """Schedule a turn, unless one is running: it goes on until there is nothing to do."""
        if not self._in_turn:
            self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._stopped:
            self._turn_scheduled = True
            self._loop.call_soon(self._run_scheduled_turn)

    # --- the turn ------------------------------------------------------------------------------------------------------------------------

    def _enter(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the core do something and schedule a turn; a failure of the core is the end of this member."""
        if self._stopped:
            return
        try:
            call(*arguments)
        except Exception as failure:  # noqa: BLE001 - as in step
            self._fail(failure)
            return
        self.wake()

    def _fail(self, failure: Exception) -> None:
        self._stopped = True
        self._hooks.on_fatal(failure)

    def _tick(self) -> None:
        if self._stopped:
            return
        self._tick_timer = self._loop.call_later(self._tick_s, self._tick)
        returned, self._returned = self._returned, []
        self._proposals = [each for each in (*returned, *self._proposals) if each.is_wanted]
        self._is_settled = False
        if self._forwarded is not None:
            self._forwarded.tick()
        self._enter(self._raw.tick)

    def _run_scheduled_turn(self) -> None:
        self._turn_scheduled = False
        self._run_turn()
        try:
            self._compact()
        except Exception as failure:  # noqa: BLE001 - as in step
            self._fail(failure)

    def _run_turn(self) -> None:
        if self._stopped:
            return
        self._in_turn = True
        try:
            while not self._stopped:
                if self._proposals or (self._forwarded is not None and self._forwarded.is_waiting):
                    self._hand_over_proposals()
                if not self._raw.has_ready():
                    break
                self._carry_out(self._raw.ready())
        except Exception as failure:  # noqa: BLE001 - as in step
            self._fail(failure)
            return
        finally:
            self._in_turn = False
        self._release_waiters()

    def _hand_over_proposals(self) -> None:
        """Give raft what waits, this member's and others' by turns; what raft drops (no leader, a transfer, a full tail) waits on."""
        forwarded = self._forwarded
        if forwarded is not None and not self._raw.is_leader:
            forwarded.hand_back_all()
        if self._leader == NO_NODE:
            return
        waiting, self._proposals = [each for each in self._proposals if each.is_wanted], []
        position = 0
        while True:
            has_forwarded = forwarded is not None and forwarded.has_next
            if not has_forwarded and position == len(waiting):
                break
            is_forwarded = has_forwarded and (self._forwarded_is_next or position == len(waiting))
            if forwarded is not None and is_forwarded:
                is_taken = forwarded.propose_next()
            else:
                count = self._propose_some(waiting, position)
                position += count
                is_taken = count > 0
            self._forwarded_is_next = is_forwarded != is_taken  # by turns; who was refused is the first to try again
            if not is_taken:
                break
        self._proposals = waiting[position:]

    def _propose_some(self, waiting: Sequence[WaitingProposal], position: int) -> int:
        """Propose a run that begins at `position`; how many raft took, 0 when it takes none now, or the leader has enough of ours."""
        batch = next_batch(waiting, position)
        size_bytes = 0 if isinstance(batch, ConfChange) else sum(len(data) for data in batch)
        if not self._raw.is_leader and not self._forward_window.fits(size_bytes):
            return 0
        try:
            if isinstance(batch, ConfChange):
                self._raw.propose_conf_change(batch)
            else:
                self._raw.propose_batch(batch)
        except ProposalDroppedError:
            return 0
        count = 1 if isinstance(batch, ConfChange) else len(batch)
        for proposal in waiting[position : position + count]:
            proposal.taken(self._raw.term)
        return count

    def _carry_out(self, ready: Ready) -> None:
        assert self._append is not None
        assert self._apply is not None
        if ready.soft_state is not None:
            self._note_leader(ready.soft_state.lead)
        for state in ready.read_states:
            self._hooks.on_read_state(state.context, state.index)
        outgoing = []
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                self._append.submit(message)
            elif message.to == LOCAL_APPLY_THREAD:
                self._apply.submit(message)
            elif message.type is MessageType.SNAP:
                self._want_snapshot(message)
            else:
                outgoing.append(message)
        if outgoing:
            self._outbox.send(outgoing, Index(self._window.first_index() - 1))

    def _want_snapshot(self, message: Message) -> None:
        """Begin the transfer and pin its position, unless leadership was lost within this very turn, or the receiver would refuse it: the
        store has not committed yet that it is a member. Raft then asks again when the next heartbeat is answered.
        """
        assert message.snapshot is not None
        if not self._raw.is_leader or not _is_member(message.to, message.snapshot.metadata.conf_state):
            self._raw.report_snapshot(message.to, False)
        elif self._hooks.on_snapshot_wanted(message):  # otherwise a stream is under way, whose pin must not move
            self._peers.pin(message.to, self._durability.durable_index)

    def _note_leader(self, leader: NodeId) -> None:
        previous, self._leader = self._leader, leader
        self._role_since_s = self._loop.time()
        self._leader_floor = None
        if previous == self._raw.id and leader != previous:
            self._peers.unpin_all()
        self._hooks.on_leader(leader, previous, self._raw.term)
        waiting, self._waiters.leader = self._waiters.leader, []
        _release(waiting)

    def _compact(self) -> None:
        """Compact the window as far as everyone allows (log-memory.md, the rule). Nearly every call ends at the first comparison."""
        durable_index = self._durability.durable_index
        if self._stopped or (self._is_settled and durable_index == self._weighed_index):
            return
        self._weighed_index = safe_index = self._safe_index()
        is_idle = self._keeper.is_idle(safe_index)
        self._is_settled = is_idle and safe_index == durable_index
        if is_idle:
            return
        decision = self._keeper.decide(
            self._raw,
            safe_index=safe_index,
            now_s=self._loop.time(),
            role_since_s=self._role_since_s,
            leader_floor=self._leader_floor,
        )
        if decision is not None:
            began_s = perf_counter()
            dropped = self._window.compact(decision.index)
            self._hooks.on_compacted(decision, dropped, perf_counter() - began_s)

    def _safe_index(self) -> Index:
        return min(self._raw.applied_index, self._applied_index, self._durability.durable_index)

    def _release_waiters(self) -> None:
        waiting = self._waiters.applied
        if waiting:
            applied = self._applied_index
            for index, future in waiting:
                if index <= applied and not future.done():
                    future.set_result(None)
            self._waiters.applied = [(index, future) for index, future in waiting if index > applied and not future.done()]


def _is_member(node: NodeId, conf_state: ConfState) -> bool:
    return any(node in group for group in (conf_state.voters, conf_state.learners, conf_state.voters_outgoing))


def _release(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
