"""The follower: taking entries, heartbeats and snapshots from the leader, and passing on what is for the leader.

Rules
- Whatever comes from the leader restarts the election timer.
- Every MsgApp is answered: with the last index it covers, or with a rejection that hints where to probe next; never below the commit index.
- A snapshot at or below the commit index, or in which this member does not occur, is ignored. One that the log already contains only moves
  the commit index.

Source: Ongaro's thesis, figure 3.1, 5 (snapshots), 10.2 (rejection hints).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from raft.config import ReadOnlyOption
from raft.describe import describe_conf_state
from raft.election import Campaign, hup
from raft.errors import ConfChangeError, InvalidMessageError, ProposalDroppedError
from raft.membership import restored_configuration, switch_to
from raft.messages import Message, MessageType
from raft.ready import ReadState, StateType
from raft.state import RaftState
from raft.types import NO_NODE, Entry, Index, Snapshot, Term

_APP_RESP: Final = MessageType.APP_RESP


def step_follower(r: RaftState, message: Message) -> None:
    """Handle a message of the current term as follower."""
    from_leader = FROM_LEADER.get(message.type)
    if from_leader is not None:
        r.election_elapsed_ticks = 0
        r.lead = message.from_
        from_leader(r, message)
        return
    handler = _HANDLERS.get(message.type)
    if handler is not None:
        handler(r, message)


# --- from the leader (candidates use these too, once they have become followers) ------------------


def handle_append(r: RaftState, message: Message) -> None:
    """Take a MsgApp and answer it."""
    log = r.log
    if message.index < log.commit_index:
        r.send(Message(type=_APP_RESP, to=message.from_, index=log.commit_index))
        return
    _check_entries(message.entries, message.index, message.log_term, message.term)
    last_new = log.maybe_append(message.index, message.log_term, message.commit, message.entries)
    if last_new is not None:
        r.send(Message(type=_APP_RESP, to=message.from_, index=last_new))
        return
    r.log_sink.debug(
        f"{r.id:x} [logterm: {log.try_term(message.index) or 0}, index: {message.index}] rejected MsgApp "
        f"[logterm: {message.log_term}, index: {message.index}] from {message.from_:x}"
    )
    hint, hint_term = log.find_conflict_by_term(Index(min(message.index, log.last_index)), message.log_term)
    r.send(Message(type=_APP_RESP, to=message.from_, index=message.index, reject=True, reject_hint=hint, log_term=hint_term))


def _check_entries(entries: Sequence[Entry], prev_index: Index, prev_term: Term, leader_term: Term) -> None:
    """Refuse what no leader sends, before it gets into the log: gaps, and terms that fall or lie ahead of the leader's own."""
    index, term = prev_index, prev_term
    for entry in entries:
        index = Index(index + 1)
        if entry.index != index or entry.term < term:
            raise InvalidMessageError(f"entry {entry.term}/{entry.index} does not follow {term}/{index - 1}")
        term = entry.term
    if term > leader_term:
        raise InvalidMessageError(f"entries of term {term} came from a leader of term {leader_term}")


def handle_heartbeat(r: RaftState, message: Message) -> None:
    """Take the commit index and answer, with the same context."""
    r.log.commit_to(message.commit)
    r.send(Message(type=MessageType.HEARTBEAT_RESP, to=message.from_, context=message.context))


def handle_snapshot(r: RaftState, message: Message) -> None:
    """Take a MsgSnap and answer with how far the log now reaches."""
    snapshot = message.snapshot or Snapshot()
    position = f"[index: {snapshot.metadata.index}, term: {snapshot.metadata.term}]"
    if snapshot.metadata.term > message.term:
        raise InvalidMessageError(f"snapshot {position} came from a leader of term {message.term}")
    is_restored = _restore(r, snapshot, position)
    r.log_sink.info(f"{r.id:x} [commit: {r.log.commit_index}] {'restored' if is_restored else 'ignored'} snapshot {position}")
    index = r.log.last_index if is_restored else r.log.commit_index
    r.send(Message(type=_APP_RESP, to=message.from_, index=index))


def _restore(r: RaftState, snapshot: Snapshot, position: str) -> bool:
    """Begin anew from `snapshot`; False if there is no need, or no right, to."""
    log, metadata = r.log, snapshot.metadata
    if metadata.index <= log.commit_index:
        return False
    if r.state is not StateType.FOLLOWER:
        r.log_sink.warning(f"{r.id:x} attempted to restore snapshot as leader; should never happen")
        r.become_follower(Term(r.term + 1), NO_NODE)
        return False
    conf_state = metadata.conf_state
    if not any(r.id in group for group in (conf_state.voters, conf_state.learners, conf_state.voters_outgoing)):
        shown = f"{{{describe_conf_state(conf_state)}}}"
        r.log_sink.warning(f"{r.id:x} attempted to restore snapshot but it is not in the ConfState {shown}; should never happen")
        return False
    if log.match_term(metadata.index, metadata.term):
        r.log_sink.info(
            f"{r.id:x} [commit: {log.commit_index}, lastindex: {log.last_index}, lastterm: {log.last_term}] "
            f"fast-forwarded commit to snapshot {position}"
        )
        log.commit_to(metadata.index)
        return False
    try:
        configuration = restored_configuration(r, conf_state, metadata.index)
    except ConfChangeError as error:
        raise InvalidMessageError(f"snapshot {position} has an impossible configuration: {error}") from error
    log.restore(snapshot)
    switch_to(r, configuration)
    r.log_sink.info(
        f"{r.id:x} [commit: {log.commit_index}, lastindex: {log.last_index}, lastterm: {log.last_term}] restored snapshot {position}"
    )
    return True


# --- from elsewhere -------------------------------------------------------------------------------


def _forward(r: RaftState, message: Message) -> None:
    """Send `message` on to the leader, in the name of its sender."""
    r.send(Message(type=message.type, to=r.lead, from_=message.from_, entries=message.entries, context=message.context))


def _handle_proposal(r: RaftState, message: Message) -> None:
    if r.lead == NO_NODE:
        r.log_sink.info(f"{r.id:x} no leader at term {r.term}; dropping proposal")
        raise ProposalDroppedError
    if r.config.disable_proposal_forwarding:
        r.log_sink.info(f"{r.id:x} not forwarding to leader {r.lead:x} at term {r.term}; dropping proposal")
        raise ProposalDroppedError
    _forward(r, message)


def _handle_transfer(r: RaftState, message: Message) -> None:
    if r.lead == NO_NODE:
        r.log_sink.info(f"{r.id:x} no leader at term {r.term}; dropping leader transfer msg")
    else:
        _forward(r, message)


def _handle_read_index(r: RaftState, message: Message) -> None:
    if r.lead == NO_NODE:
        r.log_sink.info(f"{r.id:x} no leader at term {r.term}; dropping index reading msg")
    else:
        _forward(r, message)


def _handle_read_index_response(r: RaftState, message: Message) -> None:
    if len(message.entries) != 1:
        r.log_sink.error(f"{r.id:x} invalid format of MsgReadIndexResp from {message.from_:x}, entries count: {len(message.entries)}")
    else:
        r.read_states.append(ReadState(index=message.index, context=message.entries[0].data))


def _handle_forget_leader(r: RaftState, message: Message) -> None:
    if r.config.read_only is ReadOnlyOption.LEASE_BASED:
        r.log_sink.error("ignoring MsgForgetLeader due to ReadOnlyLeaseBased")
    elif r.lead != NO_NODE:
        r.log_sink.info(f"{r.id:x} forgetting leader {r.lead:x} at term {r.term}")
        r.lead = NO_NODE


def _handle_timeout_now(r: RaftState, message: Message) -> None:
    r.log_sink.info(f"{r.id:x} [term {r.term}] received MsgTimeoutNow from {message.from_:x} and starts an election to get leadership.")
    # No pre-vote: the leader itself wants to go, nobody is disturbed.
    hup(r, Campaign.TRANSFER)


FROM_LEADER: Final[dict[MessageType, Callable[[RaftState, Message], None]]] = {
    MessageType.APP: handle_append,
    MessageType.HEARTBEAT: handle_heartbeat,
    MessageType.SNAP: handle_snapshot,
}
"""What only the leader of a term sends."""

_HANDLERS: Final[dict[MessageType, Callable[[RaftState, Message], None]]] = {
    MessageType.PROP: _handle_proposal,
    MessageType.TRANSFER_LEADER: _handle_transfer,
    MessageType.READ_INDEX: _handle_read_index,
    MessageType.READ_INDEX_RESP: _handle_read_index_response,
    MessageType.FORGET_LEADER: _handle_forget_leader,
    MessageType.TIMEOUT_NOW: _handle_timeout_now,
}
