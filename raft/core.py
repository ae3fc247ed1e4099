"""The core: one message, one tick, or one configuration change at a time.

Purpose: what is common to all roles: comparing terms, ticking, storage acknowledgements, and choosing the role's handler. `RawNode` is its
face.

Rules (thesis 3.3, with the additions of 6.4.1 and 9.6)
- A message of a higher term makes a follower of everyone, except pre-votes, granted pre-votes, and vote requests within the lease of a
  known leader.
- A message of a lower term is dropped. With CheckQuorum or PreVote its sender, if it believes to lead or asks for a pre-vote, gets an
  answer of the higher term: else a member that came back with a higher term could neither be led nor win.
- Storage acknowledgements count only in the term in which the write was handed out: later ones may have replaced the entries in between.
  Installed snapshots and applied entries are committed and count in any term.

Source: Ongaro's thesis, figure 3.1, 6.4.1, 9.6; etcd-io/raft doc.go on storage acknowledgements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raft.candidate import step_candidate
from raft.config import Config
from raft.describe import message_type_name
from raft.election import Campaign, handle_vote_request, hup, is_in_lease, vote_line
from raft.errors import ConfChangeError, ProposalDroppedError, RaftError
from raft.follower import FROM_LEADER, step_follower
from raft.leader import step_leader
from raft.log import RaftLog
from raft.membership import restored_configuration, switch_to
from raft.messages import TRANSFER_CONTEXT, Message, MessageType
from raft.ready import StateType
from raft.replication import release_uncommitted
from raft.sizes import entries_size_bytes, payload_size_bytes
from raft.state import RaftState
from raft.types import NO_NODE, Entry, EntryType, Index, Snapshot, Term

_VOTE_REQUESTS: Final = frozenset({MessageType.VOTE, MessageType.PRE_VOTE})
_LEADER: Final = StateType.LEADER  # looking up a member of an enum costs more than a message's whole dispatch otherwise
_FOLLOWER: Final = StateType.FOLLOWER


def new_state(config: Config) -> RaftState:
    """A member as its storage left it, as follower.

    Raises:
        RaftError: the storage holds an impossible configuration or hard state, or `config.applied` lies outside its log.
    """
    log = RaftLog(config.storage, config.log_sink, config.applying_limit_bytes, config.routine_log)
    hard_state, conf_state = config.storage.initial_state()
    r = RaftState(config, log)
    try:
        switch_to(r, restored_configuration(r, conf_state, log.last_index))
    except ConfChangeError as error:
        raise RaftError(f"the storage holds an impossible configuration: {error}") from error
    if hard_state.term or hard_state.vote or hard_state.commit:
        if not log.commit_index <= hard_state.commit <= log.last_index:
            raise RaftError(f"state.commit {hard_state.commit} is out of range [{log.commit_index}, {log.last_index}]")
        log.commit_index = hard_state.commit
        r.term, r.vote = hard_state.term, hard_state.vote
    if config.applied:
        log.applied_to(config.applied, 0)
    r.become_follower(r.term, NO_NODE)
    peers = ",".join(f"{node:x}" for node in sorted(r.tracker.config.voters.ids()))
    r.log_sink.info(
        f"newRaft {r.id:x} [peers: [{peers}], term: {r.term}, commit: {log.commit_index}, applied: {log.applied_index}, "
        f"lastindex: {log.last_index}, lastterm: {log.last_term}]"
    )
    return r


# --- messages -------------------------------------------------------------------------------------


def step(r: RaftState, message: Message) -> None:
    """Handle one message.

    Raises:
        ProposalDroppedError: it was a proposal, and can't be taken now.
        InvalidMessageError: it contradicts the protocol; nothing was changed but, maybe, the term.
    """
    term = message.term
    if term > r.term:
        if not _enter_higher_term(r, message):
            return
    elif term and term < r.term:
        _answer_lower_term(r, message)
        return
    handler = _COMMON_HANDLERS.get(message.type)
    if handler is not None:
        handler(r, message)
    elif r.state is _LEADER:
        step_leader(r, message)
    elif r.state is _FOLLOWER:
        step_follower(r, message)
    else:
        step_candidate(r, message)


def _handle_hup(r: RaftState, message: Message) -> None:
    hup(r, Campaign.PRE_ELECTION if r.config.pre_vote else Campaign.ELECTION)


def _enter_higher_term(r: RaftState, message: Message) -> bool:
    """React to a message from a later term; False if it is to be ignored."""
    kind = message.type
    if kind in _VOTE_REQUESTS and message.context != TRANSFER_CONTEXT and is_in_lease(r):
        remaining = r.config.election_ticks - r.election_elapsed_ticks
        line = vote_line(r, "ignored", message)
        # The line names the voter's own term: the request's is not acknowledged.
        r.log_sink.info(f"{line}: lease is not expired (remaining ticks: {remaining})")
        return False
    if kind is MessageType.PRE_VOTE or (kind is MessageType.PRE_VOTE_RESP and not message.reject):
        return True
    r.log_sink.info(
        f"{r.id:x} [term: {r.term}] received a {message_type_name(kind)} message with higher term "
        f"from {message.from_:x} [term: {message.term}]"
    )
    r.become_follower(message.term, message.from_ if kind in FROM_LEADER else NO_NODE)
    return True


def _answer_lower_term(r: RaftState, message: Message) -> None:
    """React to a message from an earlier term; it never gets further than this."""
    kind, sender = message.type, message.from_
    if (r.config.check_quorum or r.config.pre_vote) and kind in (MessageType.HEARTBEAT, MessageType.APP):
        r.send(Message(type=MessageType.APP_RESP, to=sender))
    elif kind is MessageType.PRE_VOTE:
        r.log_sink.info(vote_line(r, "rejected", message))
        r.send(Message(type=MessageType.PRE_VOTE_RESP, to=sender, term=r.term, reject=True))
    elif kind is MessageType.STORAGE_APPEND_RESP:
        if message.index:
            r.log_sink.info(
                f"{r.id:x} [term: {r.term}] ignored entry appends from a {message_type_name(kind)} message "
                f"with lower term [term: {message.term}]"
            )
        if message.snapshot is not None:
            _snapshot_applied(r, message.snapshot)
    else:
        r.log_sink.info(
            f"{r.id:x} [term: {r.term}] ignored a {message_type_name(kind)} message with lower term from {sender:x} [term: {message.term}]"
        )


# --- the storage has done its work ----------------------------------------------------------------


def _handle_storage_append_response(r: RaftState, message: Message) -> None:
    if message.index:
        r.log.unstable.stable_to(message.index, message.log_term)
    if message.snapshot is not None:
        _snapshot_applied(r, message.snapshot)


def _handle_storage_apply_response(r: RaftState, message: Message) -> None:
    entries = message.entries
    if entries:
        _applied_to(r, entries[-1].index, entries_size_bytes(entries))
        release_uncommitted(r, payload_size_bytes(entries))


def _snapshot_applied(r: RaftState, snapshot: Snapshot) -> None:
    r.log.unstable.stable_snapshot_to(snapshot.metadata.index)
    _applied_to(r, snapshot.metadata.index, 0)


def _applied_to(r: RaftState, index: Index, size_bytes: int) -> None:
    """Everything through `index` is applied; a leader leaves a joint configuration that asks for it."""
    applied = max(index, r.log.applied_index)
    r.log.applied_to(applied, size_bytes)
    config = r.tracker.config
    if config.auto_leave and applied >= r.pending_conf_index and r.state is _LEADER:
        # Without data the entry can't be refused for its size. If a transfer is under way it is refused: the next applied entry tries
        # again.
        leave = Entry(term=Term(0), index=Index(0), type=EntryType.CONF_CHANGE_V2)
        try:
            step(r, Message(type=MessageType.PROP, entries=(leave,)))
        except ProposalDroppedError as error:
            r.log_sink.debug(f"not initiating automatic transition out of joint configuration {config}: {error}")
        else:
            r.log_sink.info(f"initiating automatic transition out of joint configuration {config}")


_COMMON_HANDLERS: Final[dict[MessageType, Callable[[RaftState, Message], None]]] = {
    MessageType.VOTE: handle_vote_request,
    MessageType.PRE_VOTE: handle_vote_request,
    MessageType.HUP: _handle_hup,
    MessageType.STORAGE_APPEND_RESP: _handle_storage_append_response,
    MessageType.STORAGE_APPLY_RESP: _handle_storage_apply_response,
}
"""What is handled alike in every role."""


# --- ticks ----------------------------------------------------------------------------------------


def tick(r: RaftState) -> None:
    """One tick of the logical clock."""
    if r.state is StateType.LEADER:
        _tick_leader(r)
        return
    r.election_elapsed_ticks += 1
    if r.election_elapsed_ticks >= r.election_timeout_ticks and r.is_promotable:
        r.election_elapsed_ticks = 0
        step(r, Message(type=MessageType.HUP, from_=r.id))


def _tick_leader(r: RaftState) -> None:
    r.heartbeat_elapsed_ticks += 1
    r.election_elapsed_ticks += 1
    if r.election_elapsed_ticks >= r.config.election_ticks:
        r.election_elapsed_ticks = 0
        if r.config.check_quorum:
            step(r, Message(type=MessageType.CHECK_QUORUM, from_=r.id))
        if r.state is not StateType.LEADER:
            return
        r.lead_transferee = NO_NODE  # a transfer that took this long has failed
    if r.heartbeat_elapsed_ticks >= r.config.heartbeat_ticks:
        r.heartbeat_elapsed_ticks = 0
        step(r, Message(type=MessageType.BEAT, from_=r.id))
