"""The driver: the asyncio shell round raft's core.

Purpose: owns the RawNode. Ticks it, steps it, and carries out what every Ready asks for: messages to peers, appends to the WAL thread,
applies to the state machine, read states to the readers; then compacts the log window.

Rules
- One owner: only this object calls the RawNode, always on the loop. Inputs step the core at once and schedule one turn (`_turn`), which
  drains every Ready there is; the turn is the batch.
- Storage writes are raft's asynchronous ones: acknowledgements travel as responses of MsgStorageAppend / MsgStorageApply, so heartbeats
  and elections go on while a disk is slow, and raft itself bounds what is being applied.
- After a turn the window is compacted if anything moved (log-memory.md), and the floor rides to the followers with the next messages.
- Ticks missed during a stall collapse into one: a member that slept must not campaign because of its own nap.

Source: architecture.md ("The way of one Put"); etcd-io/raft doc.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.compaction import Decision, Role, Situation, WindowLimits, decide, is_within_slack
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from kvserver.types import NodeId
from raft.errors import ProposalDroppedError, RaftError
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType
from raft.raw_node import RawNode
from raft.ready import Ready
from raft.types import NO_NODE, Index, Term


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
    on_snapshot_wanted: Callable[[Message], object]
    on_new_term_applied: Callable[[Term], None]
    on_compacted: Callable[[Decision, int], None]
    on_fatal: Callable[[Exception], None]


@dataclass(slots=True)
class _Waiters:
    """Futures that wait for an applied index, and those that wait for a chance to propose again."""

    applied: list[tuple[Index, asyncio.Future[None]]] = field(default_factory=list)
    proposable: list[asyncio.Future[None]] = field(default_factory=list)


class Driver:
    """Runs one RawNode."""

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
    ) -> None:
        self._raw = raw
        self._window = window
        self._peers = peers
        self._outbox = outbox
        self._durability = durability
        self._limits = limits
        self._tick_s = tick_s
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._waiters = _Waiters()
        self._append: AppendQueue | None = None
        self._apply: ApplyQueue | None = None
        self._turn_scheduled = False
        self._stopped = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._leader = NO_NODE
        self._role_since_s = self._loop.time()
        self._leader_floor: Index | None = None
        self._floor = Index(window.first_index() - 1)
        self._applied_index = raw.applied_index
        self._applied_term = Term(0)

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
        self._wake_proposers()

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
    def leader_floor(self) -> Index | None:
        """The floor last heard from the current leader."""
        return self._leader_floor

    def has_leader(self) -> bool:
        """A leader is known."""
        return self._leader != NO_NODE

    # --- inputs --------------------------------------------------------------------------------------------------------------------------

    def try_propose(self, data: bytes) -> bool:
        """Propose `data`; False when raft drops it now (no leader, leadership transfer, uncommitted tail full)."""
        if self._stopped or self._leader == NO_NODE:
            return False
        try:
            self._raw.propose(data)
        except ProposalDroppedError:
            return False
        self.wake()
        return True

    async def wait_proposable(self) -> None:
        """Return when the leader changed or entries were applied: a dropped proposal may pass now."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.proposable.append(future)
        await future

    def request_read_index(self, context: bytes) -> None:
        """Ask for the index at which a read with this context is linearizable."""
        self._raw.read_index(context)
        self.wake()

    def step(self, message: Message, floor: Index) -> None:
        """A message from a peer; `floor` is the sender's log floor, of interest when it leads."""
        if self._stopped:
            return
        self._peers.note_contact(message.from_, self._loop.time())
        try:
            self._raw.step(message)
        except ProposalDroppedError:
            pass  # a forwarded proposal that can't be taken: its proposer times out or hears of the leader change
        except RaftError:
            return  # from a peer that raft doesn't know (any more)
        if message.from_ == self._raw.leader_id:
            self._leader_floor = floor
        self.wake()

    def note_contact(self, peer: NodeId) -> None:
        """Something that is not a raft message arrived from `peer`."""
        self._peers.note_contact(peer, self._loop.time())

    def report_unreachable(self, peer: NodeId) -> None:
        """A message to `peer` was dropped."""
        if not self._stopped:
            self._raw.report_unreachable(peer)
            self.wake()

    def report_snapshot(self, peer: NodeId, *, delivered: bool) -> None:
        """The snapshot stream to `peer` ended."""
        if delivered:
            self._peers.unpin_later(peer, self._loop.time())
        else:
            self._peers.unpin(peer)
        if not self._stopped:
            self._raw.report_snapshot(peer, delivered)
            self.wake()

    def campaign(self) -> None:
        """Stand for election now, without waiting for the election timeout."""
        self._raw.campaign()
        self.wake()

    def transfer_leader(self, to: NodeId) -> None:
        """Begin to hand leadership to `to`."""
        self._raw.transfer_leader(to)
        self.wake()

    def storage_responded(self, responses: Iterable[Message]) -> None:
        """An append is durable, or entries are applied: responses to this member step the core, the others leave now."""
        outgoing = []
        for response in responses:
            if response.to == self._raw.id:
                self._raw.step(response)
            else:
                outgoing.append(response)
        if outgoing:
            self._outbox.send(outgoing, self._floor)
        self.wake()

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
        """Schedule a turn."""
        if not self._turn_scheduled and not self._stopped:
            self._turn_scheduled = True
            self._loop.call_soon(self._run_turn)

    # --- the turn ------------------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._stopped:
            return
        self._tick_timer = self._loop.call_later(self._tick_s, self._tick)
        self._raw.tick()
        self.wake()

    def _run_turn(self) -> None:
        self._turn_scheduled = False
        if self._stopped:
            return
        try:
            while self._raw.has_ready():
                self._carry_out(self._raw.ready())
            self._compact()
        except Exception as failure:  # noqa: BLE001 - the core must not fail; if it does, going on could break its promises
            self._stopped = True
            self._hooks.on_fatal(failure)
            return
        self._release_waiters()

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
                self._peers.pin(message.to, self._durability.durable_index)
                self._hooks.on_snapshot_wanted(message)
            else:
                outgoing.append(message)
        if outgoing:
            self._outbox.send(outgoing, self._floor)

    def _note_leader(self, leader: NodeId) -> None:
        previous, self._leader = self._leader, leader
        self._role_since_s = self._loop.time()
        self._leader_floor = None
        if previous == self._raw.id and leader != previous:
            self._peers.unpin_all()
        self._hooks.on_leader(leader, previous, self._raw.term)
        self._wake_proposers()

    def _compact(self) -> None:
        """Compact the window as far as everyone allows (log-memory.md, the rule)."""
        if is_within_slack(self._window, self._limits) and not self._peers.pins:
            return
        now_s = self._loop.time()
        safe = min(self._raw.applied_index, self._applied_index, self._durability.durable_index)
        is_leader = self._raw.is_leader
        window = self._window
        if is_leader:
            over_cap = window.size_bytes > 2 * self._limits.max_bytes or window.entry_count > 2 * self._limits.max_entries
            self._peers.expire(now_s, over_cap=over_cap, progress=self._raw.progress())
        situation = Situation(
            role=Role.LEADER if is_leader else Role.FOLLOWER,
            safe_index=Index(safe),
            now_s=now_s,
            role_since_s=self._role_since_s,
            leader_floor=self._leader_floor,
        )
        claims = self._peers.claims(self._raw.progress(), self._raw.id) if is_leader else ()
        decision = decide(window, claims, situation, self._limits)
        if decision is not None:
            dropped = window.compact(decision.index)
            self._floor = Index(window.first_index() - 1)
            self._hooks.on_compacted(decision, dropped)

    def _release_waiters(self) -> None:
        waiting = self._waiters.applied
        if waiting:
            applied = self._applied_index
            for index, future in waiting:
                if index <= applied and not future.done():
                    future.set_result(None)
            self._waiters.applied = [(index, future) for index, future in waiting if index > applied and not future.done()]
        if self._waiters.proposable and self._leader != NO_NODE:
            self._wake_proposers()

    def _wake_proposers(self) -> None:
        woken, self._waiters.proposable = self._waiters.proposable, []
        for future in woken:
            if not future.done():
                future.set_result(None)
