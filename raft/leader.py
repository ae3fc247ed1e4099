"""The leader: proposals, responses of members, reads, transfer of leadership, and stepping down.

Rules
- A proposal is appended and sent at once; a configuration change that may not be made now becomes an empty entry, so that its proposer sees
  an answer.
- The first entry of a term is empty: it commits what earlier terms left (thesis 3.6.2), and reads wait for it (6.4).
- During a transfer no proposal is taken; the transfer ends with the next election timeout.
- With CheckQuorum, a leader that heard from no quorum within an election timeout steps down.

Source: Ongaro's thesis, 3.5, 3.10, 6.2, 6.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from raft.confchange import AnyConfChange
from raft.confchange_codec import decode_conf_change
from raft.config import ReadOnlyOption
from raft.describe import describe_conf_change
from raft.errors import CodecError, InvalidMessageError, ProposalDroppedError
from raft.messages import Message, MessageType
from raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from raft.read_only import MAX_WAITING_READS
from raft.ready import ReadState
from raft.replication import append, broadcast_append, broadcast_heartbeat, maybe_commit, maybe_send_append, send_timeout_now
from raft.state import RaftState
from raft.types import NO_NODE, Entry, EntryType, Index, NodeId, Term

_NORMAL: Final = EntryType.NORMAL


def lead(r: RaftState) -> None:
    """An election was won: take over, and open the term with an empty entry."""
    r.become_leader()
    appended = append(r, (Entry(term=Term(0), index=Index(0)),))
    assert appended, "an empty entry is never refused"
    r.log_sink.info(f"{r.id:x} became leader at term {r.term}")
    broadcast_append(r)


def step_leader(r: RaftState, message: Message) -> None:
    """Handle a message of the current term as leader."""
    kind = message.type
    handler = _MEMBER_HANDLERS.get(kind)
    if handler is None:
        local = _LOCAL_HANDLERS.get(kind)
        if local is not None:
            local(r, message)
        return
    progress = r.tracker.progress.get(message.from_)
    if progress is None:
        r.log_sink.debug(f"{r.id:x} no progress available for {message.from_:x}")
        return
    handler(r, message, progress)


# --- ticks ----------------------------------------------------------------------------------------


def _handle_beat(r: RaftState, message: Message) -> None:
    broadcast_heartbeat(r)


def _handle_check_quorum(r: RaftState, message: Message) -> None:
    if not r.tracker.is_quorum_active():
        r.log_sink.warning(f"{r.id:x} stepped down to follower since quorum is not active")
        r.become_follower(r.term, NO_NODE)
    for node, progress in r.tracker.progress.items():
        if node != r.id:
            progress.is_recently_active = False


# --- proposals ------------------------------------------------------------------------------------


def _handle_proposal(r: RaftState, message: Message) -> None:
    if not message.entries:
        raise InvalidMessageError(f"{r.id:x} stepped empty MsgProp")
    if r.id not in r.tracker.progress:
        raise ProposalDroppedError  # removed, but still leading: nothing new is taken
    if r.lead_transferee != NO_NODE:
        r.log_sink.debug(f"{r.id:x} [term {r.term}] transfer leadership to {r.lead_transferee:x} is in progress; dropping proposal")
        raise ProposalDroppedError
    pending_conf_index = r.pending_conf_index
    if not append(r, _with_permitted_conf_changes(r, message.entries)):
        r.pending_conf_index = pending_conf_index
        raise ProposalDroppedError
    broadcast_append(r)


def _with_permitted_conf_changes(r: RaftState, entries: Sequence[Entry]) -> Sequence[Entry]:
    """`entries`, with every configuration change that may not be made now replaced by an empty entry."""
    if all(entry.type is _NORMAL for entry in entries):
        return entries
    last_index = r.log.last_index
    permitted = list(entries)
    changes = []
    for position, entry in enumerate(entries):
        if entry.type is not EntryType.NORMAL:
            try:
                changes.append((position, decode_conf_change(entry.type, entry.data)))
            except CodecError as error:
                raise InvalidMessageError(f"proposal holds an unreadable configuration change: {error}") from error
    for position, change in changes:
        reason = _refusal(r, change)
        if reason and not r.config.disable_conf_change_validation:
            text = describe_conf_change(change)
            r.log_sink.info(f"{r.id:x} ignoring conf change {text} at config {r.tracker.config}: {reason}")
            permitted[position] = Entry(term=Term(0), index=Index(0))
        else:
            r.pending_conf_index = Index(last_index + position + 1)
    return permitted


def _refusal(r: RaftState, change: AnyConfChange) -> str:
    """Why a configuration change may not be proposed now; empty if it may."""
    is_joint = r.tracker.config.is_joint
    wants_leave = not change.as_v2().changes
    if r.pending_conf_index > r.log.applied_index:
        return f"possible unapplied conf change at index {r.pending_conf_index} (applied to {r.log.applied_index})"
    if is_joint and not wants_leave:
        return "must transition out of joint config first"
    if not is_joint and wants_leave:
        return "not in joint state; refusing empty conf change"
    return ""


# --- responses of members -------------------------------------------------------------------------


def _handle_append_response(r: RaftState, message: Message, progress: Progress) -> None:
    progress.is_recently_active = True
    if message.reject:
        _handle_rejection(r, message, progress)
        return
    node, index = message.from_, message.index
    if index > r.log.last_index:
        raise InvalidMessageError(f"{node:x} acknowledged index {index} beyond the log's end {r.log.last_index}")
    # An old position still says something about a member in PROBE: it is there, and may be replicated to again.
    if not progress.maybe_update(index) and not (progress.match_index == index and progress.state is PROBE):
        return
    _advance_progress(r, node, progress, index)
    if maybe_commit(r):
        _release_pending_reads(r)
        broadcast_append(r)
    elif node != r.id and progress.can_bump_commit(r.log.commit_index):
        maybe_send_append(r, node, send_if_empty=True)
    if node != r.id:
        # The window has room again: fill it. Nothing empty is sent for the commit index alone.
        while maybe_send_append(r, node, send_if_empty=False):
            pass
    if node == r.lead_transferee and progress.match_index == r.log.last_index:
        r.log_sink.info(f"{r.id:x} sent MsgTimeoutNow to {node:x} after received MsgAppResp")
        send_timeout_now(r, node)


def _advance_progress(r: RaftState, node: NodeId, progress: Progress, index: Index) -> None:
    if progress.state is REPLICATE:
        progress.inflights.free_through(index)
    elif progress.state is PROBE:
        progress.become_replicate()
    elif progress.match_index + 1 >= r.log.first_index:
        # Whatever snapshot it took, it is enough if the log reaches back to it.
        r.log_sink.debug(f"{r.id:x} recovered from needing snapshot, resumed sending replication messages to {node:x} [{progress}]")
        progress.become_probe()
        progress.become_replicate()


def _handle_rejection(r: RaftState, message: Message, progress: Progress) -> None:
    node = message.from_
    r.log_sink.debug(
        f"{r.id:x} received MsgAppResp(rejected, hint: (index {message.reject_hint}, term {message.log_term})) "
        f"from {node:x} for index {message.index}"
    )
    # The hint is the last position at which the member's term is not above the rejected one's; go on from there to the last position of
    # this log whose term is not above the hint's: whole terms that can't match are skipped in one round trip.
    hint = message.reject_hint
    if message.log_term > 0:
        hint = r.log.find_conflict_by_term(hint, message.log_term)[0]
    if progress.maybe_decrease(message.index, hint):
        r.log_sink.debug(f"{r.id:x} decreased progress of {node:x} to [{progress}]")
        if progress.state is REPLICATE:
            progress.become_probe()
        maybe_send_append(r, node, send_if_empty=True)


def _handle_heartbeat_response(r: RaftState, message: Message, progress: Progress) -> None:
    progress.is_recently_active = True
    progress.is_flow_paused = False
    # A full window, or a probe that was lost, is resolved by one more message, empty if need be.
    if progress.match_index < r.log.last_index or progress.state is PROBE:
        maybe_send_append(r, message.from_, send_if_empty=True)
    if message.context and r.config.read_only is ReadOnlyOption.SAFE:
        r.read_only.confirm(message.from_, message.context)
        for read in r.read_only.release(r.tracker.config.voters):
            _answer_read(r, read.request, read.index)


def _handle_snapshot_status(r: RaftState, message: Message, progress: Progress) -> None:
    if progress.state is not SNAPSHOT:
        return
    if message.reject:
        progress.pending_snapshot = Index(0)  # before the change of state, which would probe behind a snapshot that never arrived
    progress.become_probe()
    outcome = "failed" if message.reject else "succeeded"
    r.log_sink.debug(f"{r.id:x} snapshot {outcome}, resumed sending replication messages to {message.from_:x} [{progress}]")
    # After success its MsgAppResp comes by itself; after a failure a heartbeat's response starts the next attempt.
    progress.is_flow_paused = True


def _handle_unreachable(r: RaftState, message: Message, progress: Progress) -> None:
    if progress.state is REPLICATE:
        progress.become_probe()
    r.log_sink.debug(f"{r.id:x} failed to send message to {message.from_:x} because it is unreachable [{progress}]")


# --- reads ----------------------------------------------------------------------------------------


def _handle_read_index(r: RaftState, message: Message) -> None:
    if len(message.entries) != 1:
        raise InvalidMessageError(f"MsgReadIndex from {message.from_:x} has {len(message.entries)} entries, not one")
    if r.log.has_current_term_commit(r.term):
        _start_read(r, message)
    elif len(r.pending_read_requests) < MAX_WAITING_READS:
        r.pending_read_requests.append(message)


def _start_read(r: RaftState, request: Message) -> None:
    # A single voter that leads needs nobody's word; one that was removed, and leads on, does. Unlike etcd-io/raft, even a single voter
    # waits for its first commit: before it, a restart may have left the commit index behind writes that were acknowledged.
    is_alone = r.tracker.is_singleton and r.id in r.tracker.config.voters
    if is_alone or r.config.read_only is ReadOnlyOption.LEASE_BASED:
        _answer_read(r, request, r.log.commit_index)
        return
    r.read_only.add(request, r.log.commit_index)
    r.read_only.confirm(r.id, r.read_only.heartbeat_context())
    broadcast_heartbeat(r)


def _release_pending_reads(r: RaftState) -> None:
    """The commit index moved: if that was the first time in this term, begin the reads that waited for it."""
    if r.pending_read_requests and r.log.has_current_term_commit(r.term):
        requests, r.pending_read_requests = r.pending_read_requests, []
        for request in requests:
            _start_read(r, request)


def _answer_read(r: RaftState, request: Message, index: Index) -> None:
    if request.from_ in (NO_NODE, r.id):
        r.read_states.append(ReadState(index=index, context=request.entries[0].data))
    else:
        r.send(Message(type=MessageType.READ_INDEX_RESP, to=request.from_, index=index, entries=request.entries))


# --- transfer -------------------------------------------------------------------------------------


def _handle_transfer(r: RaftState, message: Message, progress: Progress) -> None:
    target = message.from_
    if progress.is_learner:
        r.log_sink.debug(f"{r.id:x} is learner. Ignored transferring leadership")
        return
    previous = r.lead_transferee
    if previous != NO_NODE:
        if previous == target:
            r.log_sink.info(
                f"{r.id:x} [term {r.term}] transfer leadership to {target:x} is in progress, ignores request to same node {target:x}"
            )
            return
        r.lead_transferee = NO_NODE
        r.log_sink.info(f"{r.id:x} [term {r.term}] abort previous transferring leadership to {previous:x}")
    if target == r.id:
        r.log_sink.debug(f"{r.id:x} is already leader. Ignored transferring leadership to self")
        return
    r.log_sink.info(f"{r.id:x} [term {r.term}] starts to transfer leadership to {target:x}")
    r.election_elapsed_ticks = 0  # a transfer has one election timeout from here
    r.lead_transferee = target
    if progress.match_index == r.log.last_index:
        send_timeout_now(r, target)
        r.log_sink.info(f"{r.id:x} sends MsgTimeoutNow to {target:x} immediately as {target:x} already has up-to-date log")
    else:
        maybe_send_append(r, target, send_if_empty=True)


_LOCAL_HANDLERS: Final[dict[MessageType, Callable[[RaftState, Message], None]]] = {
    MessageType.BEAT: _handle_beat,
    MessageType.CHECK_QUORUM: _handle_check_quorum,
    MessageType.PROP: _handle_proposal,
    MessageType.READ_INDEX: _handle_read_index,
}
_MEMBER_HANDLERS: Final[dict[MessageType, Callable[[RaftState, Message, Progress], None]]] = {
    MessageType.APP_RESP: _handle_append_response,
    MessageType.HEARTBEAT_RESP: _handle_heartbeat_response,
    MessageType.SNAP_STATUS: _handle_snapshot_status,
    MessageType.UNREACHABLE: _handle_unreachable,
    MessageType.TRANSFER_LEADER: _handle_transfer,
}
