"""The face of the core: a member as a value that is stepped, ticked, and asked what to do.

Purpose: turns what the core wants into `Ready`s, in one of two modes.

    synchronous (default)                              asynchronous storage writes
    ready()  -> write, send, apply as Ready says       ready() -> hand messages to peers, append thread, apply thread
    advance() -> the core counts on it                 step(response) for each response addressed to this member, once its work is done
    one Ready at a time                                any number of Readys under way

Rules
- Not thread safe, never blocks, reads no clock. Who owns it decides when to tick.
- `step` is for messages from others, and for the responses of the storage threads. It raises nothing but `RaftError`s, whatever it is
  given.
- Local acknowledgements in synchronous mode are the same messages as in asynchronous mode; `advance` steps them.

Source: etcd-io/raft doc.go (Usage, and Usage with Asynchronous Storage Writes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from raft import core
from raft.confchange import AnyConfChange
from raft.confchange_codec import encode_conf_change
from raft.config import Config
from raft.errors import InvalidMessageError, StepLocalMessageError, StepPeerNotFoundError
from raft.membership import apply_conf_change
from raft.messages import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    MAX_NUMBER,
    Message,
    MessageType,
    is_local_message,
    is_local_target,
    is_response_message,
)
from raft.progress import Progress
from raft.ready import Ready, SoftState, StateType
from raft.sizes import entries_size_bytes, payload_size_bytes
from raft.tracker import TrackerConfig
from raft.types import NO_NODE, ConfState, Entry, HardState, Index, NodeId, Snapshot, Term

_PROP: Final = MessageType.PROP
_APP_RESP: Final = MessageType.APP_RESP
_STORAGE_RESPONSES: Final = frozenset({MessageType.STORAGE_APPEND_RESP, MessageType.STORAGE_APPLY_RESP})

_TERMLESS: Final = frozenset({MessageType.PROP, MessageType.READ_INDEX, MessageType.TRANSFER_LEADER, MessageType.FORGET_LEADER})
"""Messages from others that may come without a term."""

_TO_SELF: Final = _TERMLESS | {MessageType.APP_RESP, MessageType.VOTE_RESP, MessageType.PRE_VOTE_RESP}
"""Messages that a member may send to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A member at one moment; `progress` (copies) is filled on a leader only."""

    id: NodeId
    hard_state: HardState
    soft_state: SoftState
    applied_index: Index
    last_index: Index
    lead_transferee: NodeId
    config: TrackerConfig
    progress: dict[NodeId, Progress]


class RawNode:
    """One member of a cluster.

    Raises:
        RaftError: on construction, if the storage's state contradicts itself or the configuration.
    """

    def __init__(self, config: Config) -> None:
        self._state = core.new_state(config)
        self._is_async = config.async_storage_writes
        self._steps_on_advance: list[Message] = []
        self._is_ready_out = False
        self._last_soft_state = self._soft_state()
        self._last_hard_state = self._state.hard_state()

    # --- what is known ----------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        """This member."""
        return self._state.id

    @property
    def term(self) -> Term:
        """The current term."""
        return self._state.term

    @property
    def vote(self) -> NodeId:
        """Whom this member voted for in the current term; 0 for nobody."""
        return self._state.vote

    @property
    def leader_id(self) -> NodeId:
        """The leader of the current term; 0 while unknown."""
        return self._state.lead

    @property
    def state(self) -> StateType:
        """The role."""
        return self._state.state

    @property
    def is_leader(self) -> bool:
        """The role is leader."""
        return self._state.state is StateType.LEADER

    @property
    def commit_index(self) -> Index:
        """The highest index known to be committed."""
        return self._state.log.commit_index

    @property
    def applied_index(self) -> Index:
        """The highest index whose application was acknowledged."""
        return self._state.log.applied_index

    @property
    def pending_snapshot_index(self) -> Index | None:
        """The snapshot that was accepted and is not in force yet; None if there is none."""
        snapshot = self._state.log.unstable.snapshot
        return None if snapshot is None else snapshot.metadata.index

    @property
    def last_index(self) -> Index:
        """The highest index of the log, durable or not."""
        return self._state.log.last_index

    @property
    def unstable_bytes(self) -> int:
        """Payload of the entries that the storage has not confirmed yet. Walks over them."""
        return payload_size_bytes(self._state.log.unstable.entries)

    @property
    def lead_transferee(self) -> NodeId:
        """The member that leadership is being handed to; 0 for nobody."""
        return self._state.lead_transferee

    @property
    def tracker_config(self) -> TrackerConfig:
        """The configuration in force."""
        return self._state.tracker.config

    def progress(self) -> Iterable[tuple[NodeId, Progress, bool]]:
        """(member, its progress, whether it is a learner) for every member in ascending order, this one included.

        Nothing is copied: the caller must not keep or change what it gets. Meaningful on a leader only.
        """
        return [(node, progress, progress.is_learner) for node, progress in self._state.tracker.progress.items()]

    def committed_entries(self, lo: Index, max_size_bytes: int) -> list[Entry]:
        """Committed entries from `lo` on, applied or not, durable here or not: as many as `max_size_bytes` encoded hold, at least one.

        Raises:
            CompactedError: `lo` is below what the log still holds.
        """
        log = self._state.log
        return log.slice(lo, Index(log.commit_index + 1), max_size_bytes)

    def status(self) -> Status:
        """A consistent copy of everything; for people and tests, not for the hot path."""
        r = self._state
        return Status(
            id=r.id,
            hard_state=r.hard_state(),
            soft_state=self._soft_state(),
            applied_index=r.log.applied_index,
            last_index=r.log.last_index,
            lead_transferee=r.lead_transferee,
            config=r.tracker.config,
            progress={node: progress.copy() for node, progress in r.tracker.progress.items()} if self.is_leader else {},
        )

    def _soft_state(self) -> SoftState:
        return SoftState(lead=self._state.lead, state=self._state.state)

    # --- inputs -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of the logical clock: elections, heartbeats and CheckQuorum happen here."""
        core.tick(self._state)

    def campaign(self) -> None:
        """Stand for election now."""
        core.step(self._state, Message(type=MessageType.HUP))

    def propose(self, data: bytes) -> None:
        """Propose `data` for the log.

        Raises:
            ProposalDroppedError: it can't be taken now.
        """
        self.propose_batch((data,))

    def propose_batch(self, batch: Sequence[bytes]) -> None:
        """Propose several entries as one: they share messages, and are taken or dropped together.

        Raises:
            ProposalDroppedError: they can't be taken now.
        """
        term, index = Term(0), Index(0)
        entries = [Entry(term=term, index=index, data=data) for data in batch]
        core.step(self._state, Message(type=_PROP, from_=self._state.id, entries=entries))

    def propose_conf_change(self, change: AnyConfChange) -> None:
        """Propose a change of the configuration; it takes effect when `apply_conf_change` is called for the committed entry.

        A change that may not be made now is replaced by an empty entry.

        Raises:
            ProposalDroppedError: it can't be taken now.
        """
        entry_type, data = encode_conf_change(change)
        entry = Entry(term=Term(0), index=Index(0), type=entry_type, data=data)
        core.step(self._state, Message(type=MessageType.PROP, from_=self._state.id, entries=(entry,)))

    def apply_conf_change(self, change: AnyConfChange) -> ConfState:
        """Install the configuration that a committed change leads to. To be called for every committed change, in order, on every member.

        To skip one, call it with an empty node id (version 1), or not at all.

        Raises:
            ConfChangeError: it can't be made from the configuration in force.
        """
        return apply_conf_change(self._state, change.as_v2())

    def step(self, message: Message) -> None:
        """Handle a message from another member or from a storage thread.

        Raises:
            StepLocalMessageError: its type is not for the network.
            StepPeerNotFoundError: a response from another node that is not in the configuration.
            InvalidMessageError: it contradicts the protocol.
            ProposalDroppedError: it was a forwarded proposal, and can't be taken now.
        """
        kind, sender = message.type, message.from_
        if is_local_target(sender):
            if kind not in _STORAGE_RESPONSES:
                raise InvalidMessageError(f"{kind.name} from a storage thread")
        elif is_local_message(kind):
            raise StepLocalMessageError
        elif is_response_message(kind) and sender not in self._state.tracker.progress:
            if sender != self._state.id:
                raise StepPeerNotFoundError
            return  # a removed member's word to itself counts for nothing any more
        else:
            self._check(message)
        core.step(self._state, message)

    def _check(self, message: Message) -> None:
        """Refuse what no member sends."""
        kind, term = message.type, message.term
        if term == 0 and kind not in _TERMLESS:
            raise InvalidMessageError(f"{kind.name} from {message.from_:x} has no term")
        if term > MAX_NUMBER or message.index > MAX_NUMBER:
            raise InvalidMessageError(f"{kind.name} from {message.from_:x} has term {term} and index {message.index}")
        if message.snapshot is not None and message.snapshot.metadata.index > MAX_NUMBER:
            raise InvalidMessageError(f"snapshot index {message.snapshot.metadata.index} is out of range")
        if message.from_ == NO_NODE and kind is not _PROP:
            raise InvalidMessageError(f"{kind.name} has no sender")
        if message.from_ == self._state.id and (kind not in _TO_SELF or (message.reject and kind is _APP_RESP)):
            raise InvalidMessageError(f"{kind.name} from this member itself")

    def report_unreachable(self, node: NodeId) -> None:
        """A message to `node` could not be delivered: replicate to it more carefully."""
        if node != self._state.id:
            core.step(self._state, Message(type=MessageType.UNREACHABLE, from_=node))

    def report_snapshot(self, node: NodeId, ok: bool) -> None:
        """The snapshot that was sent to `node` was delivered, or was not. Must be called for every MsgSnap, or `node` gets no more
        entries."""
        if node != self._state.id:
            core.step(self._state, Message(type=MessageType.SNAP_STATUS, from_=node, reject=not ok))

    def transfer_leader(self, node: NodeId) -> None:
        """Hand leadership to `node`; tried for one election timeout, during which proposals are dropped."""
        core.step(self._state, Message(type=MessageType.TRANSFER_LEADER, from_=node))

    def forget_leader(self) -> None:
        """As follower: forget who leads, so that others may be voted for before the lease ends. The election timer goes on."""
        core.step(self._state, Message(type=MessageType.FORGET_LEADER))

    def read_index(self, context: bytes) -> None:
        """Ask from which index on a read is linearizable; a `ReadState` with `context` answers, or nothing does (then ask again)."""
        entry = Entry(term=Term(0), index=Index(0), data=context)
        core.step(self._state, Message(type=MessageType.READ_INDEX, from_=self._state.id, entries=(entry,)))

    def override_election_timeout(self, ticks: int) -> None:
        """Fix the timeout of the present election period, which was drawn at random. For tests that count ticks."""
        self._state.election_timeout_ticks = ticks

    # --- output -----------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """There is something to do."""
        r = self._state
        log = r.log
        if r.messages or r.messages_after_append or log.unstable.has_next_entries or r.read_states:
            return True
        return (
            log.has_next_committed(allow_unstable=not self._is_async)
            or log.unstable.next_snapshot() is not None
            or self._is_soft_state_new()
            or self._is_hard_state_new()
        )

    def _is_soft_state_new(self) -> bool:
        last = self._last_soft_state
        return self._state.lead != last.lead or self._state.state is not last.state

    def _is_hard_state_new(self) -> bool:
        r, last = self._state, self._last_hard_state
        return r.log.commit_index != last.commit or r.term != last.term or r.vote != last.vote

    def ready(self) -> Ready:
        """What is to be done now. It counts as taken on: in synchronous mode `advance` must follow before the next call."""
        assert not self._is_ready_out, "two Readys without advance between them"
        r = self._state
        log = r.log
        ready = Ready(
            entries=log.unstable.next_entries(),
            committed_entries=log.next_committed(allow_unstable=not self._is_async),
            messages=r.messages,
            snapshot=log.unstable.next_snapshot(),
            read_states=r.read_states,
            must_sync=log.unstable.has_next_entries or r.term != self._last_hard_state.term or r.vote != self._last_hard_state.vote,
        )
        if self._is_soft_state_new():
            ready.soft_state = self._last_soft_state = self._soft_state()
        if self._is_hard_state_new():
            ready.hard_state = self._last_hard_state = r.hard_state()
        self._add_storage_work(ready)
        r.messages, r.messages_after_append, r.read_states = [], [], []
        log.unstable.accept_in_progress()
        if ready.committed_entries:
            entries = ready.committed_entries
            log.accept_applying(entries[-1].index, entries_size_bytes(entries), allow_unstable=not self._is_async)
        return ready

    def _add_storage_work(self, ready: Ready) -> None:
        """Distribute what must wait for the storage: as responses of storage messages, or over this Ready's messages and `advance`."""
        r = self._state
        waiting = r.messages_after_append
        acknowledgement = None
        if ready.snapshot is not None or r.log.unstable.entries:
            acknowledgement = self._append_response(ready.snapshot)
        if not self._is_async:
            for message in waiting:
                (self._steps_on_advance if message.to == r.id else ready.messages).append(message)
            if acknowledgement is not None:
                self._steps_on_advance.append(acknowledgement)
            if ready.committed_entries:
                self._steps_on_advance.append(self._apply_response(ready.committed_entries))
            self._is_ready_out = True
            return
        if ready.entries or ready.hard_state is not None or ready.snapshot is not None or waiting:
            # After the leader's own acknowledgement, whose handling looks up the entry's term: it is fastest while the entry is unstable.
            responses = waiting if acknowledgement is None else [*waiting, acknowledgement]
            ready.messages.append(self._append_request(ready, responses))
        if ready.committed_entries:
            entries = ready.committed_entries
            response = self._apply_response(entries)
            ready.messages.append(
                Message(type=MessageType.STORAGE_APPLY, to=LOCAL_APPLY_THREAD, from_=r.id, entries=entries, responses=[response])
            )

    def _append_request(self, ready: Ready, responses: list[Message]) -> Message:
        request = Message(
            type=MessageType.STORAGE_APPEND,
            to=LOCAL_APPEND_THREAD,
            from_=self._state.id,
            entries=ready.entries,
            snapshot=ready.snapshot,
            responses=responses,
        )
        if ready.hard_state is not None:
            request.term, request.vote, request.commit = ready.hard_state.term, ready.hard_state.vote, ready.hard_state.commit
        return request

    def _append_response(self, snapshot: Snapshot | None) -> Message:
        """The append thread's word that everything up to the log's current end is durable.

        It names the end even if this Ready adds nothing to it: when it comes back in this term, nothing before it can have been overwritten
        on disk by writes that were under way when it was made.
        """
        r = self._state
        response = Message(type=MessageType.STORAGE_APPEND_RESP, to=r.id, from_=LOCAL_APPEND_THREAD, term=r.term, snapshot=snapshot)
        if r.log.unstable.entries:
            last = r.log.unstable.entries[-1]
            response.index, response.log_term = last.index, last.term
        return response

    def _apply_response(self, entries: Sequence[Entry]) -> Message:
        return Message(type=MessageType.STORAGE_APPLY_RESP, to=self._state.id, from_=LOCAL_APPLY_THREAD, entries=entries)

    def advance(self) -> None:
        """Synchronous mode: everything in the last Ready is done."""
        assert not self._is_async, "advance is not for asynchronous storage writes"
        self._is_ready_out = False
        steps, self._steps_on_advance = self._steps_on_advance, []
        for message in steps:
            core.step(self._state, message)
