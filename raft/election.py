"""Elections: standing for one, and voting in others'.

Rules
- A member campaigns only if it is a voter, no snapshot is being installed, and no committed configuration change waits to be applied: it
  would count votes by a configuration that the cluster has left.
- A pre-vote asks with the next term but raises nobody's term and records no vote.
- One's own vote is a message to oneself that is delivered once the vote is durable.
- Learners vote: a member may learn of its promotion later than its candidate does.

Source: Ongaro's thesis, 3.4, 3.6.1, 3.10 (transfer), 9.6 (pre-vote).
"""

from __future__ import annotations

from enum import Enum

from raft.describe import message_type_name
from raft.errors import CompactedError, UnavailableError
from raft.messages import TRANSFER_CONTEXT, Message, MessageType, vote_response_type
from raft.quorum import VoteResult
from raft.ready import StateType
from raft.state import RaftState
from raft.types import NO_NODE, EntryType, Index, NodeId, Term

_SCAN_PAGE_BYTES = 4 * 1024 * 1024


class Campaign(Enum):
    """Why, and how, a member stands for election."""

    PRE_ELECTION = "pre-election"
    ELECTION = "election"
    TRANSFER = "transfer"


def hup(r: RaftState, campaign: Campaign) -> None:
    """Stand for election, if that is permitted now."""
    if r.state is StateType.LEADER:
        r.log_sink.debug(f"{r.id:x} ignoring MsgHup because already leader")
    elif not r.is_promotable:
        r.log_sink.warning(f"{r.id:x} is unpromotable and can not campaign")
    elif _has_unapplied_conf_change(r):
        r.log_sink.warning(f"{r.id:x} cannot campaign at term {r.term} since there are still pending configuration changes to apply")
    else:
        r.log_sink.info(f"{r.id:x} is starting a new election at term {r.term}")
        stand(r, campaign)


def _has_unapplied_conf_change(r: RaftState) -> bool:
    """A configuration change is committed but not applied."""
    log = r.log
    lo, hi = Index(log.applied_index + 1), Index(log.commit_index + 1)
    while lo < hi:
        try:
            page = log.slice(lo, hi, _SCAN_PAGE_BYTES)
        except (CompactedError, UnavailableError):
            return True  # can't tell now: a campaign can wait
        if not page or any(entry.type is not EntryType.NORMAL for entry in page):
            return True
        lo = Index(lo + len(page))
    return False


def stand(r: RaftState, campaign: Campaign) -> None:
    """Become (pre-)candidate and ask every voter."""
    if campaign is Campaign.PRE_ELECTION:
        r.become_pre_candidate()
        request, term = MessageType.PRE_VOTE, Term(r.term + 1)
    else:
        r.become_candidate()
        request, term = MessageType.VOTE, r.term
    last_index, last_term = r.log.last_index, r.log.last_term
    context = TRANSFER_CONTEXT if campaign is Campaign.TRANSFER else b""
    for node in r.tracker.config.voters:
        if node == r.id:
            r.send(Message(type=vote_response_type(request), to=node, term=term))
            continue
        r.log_sink.info(
            f"{r.id:x} [logterm: {last_term}, index: {last_index}] sent {message_type_name(request)} request to {node:x} at term {r.term}"
        )
        r.send(Message(type=request, to=node, term=term, index=last_index, log_term=last_term, context=context))


def poll(r: RaftState, node: NodeId, kind: MessageType, granted: bool) -> tuple[int, int, VoteResult]:
    """Record a vote for this member; how many voters granted and rejected so far, and what that amounts to."""
    rejection = "" if granted else " rejection"
    r.log_sink.info(f"{r.id:x} received {message_type_name(kind)}{rejection} from {node:x} at term {r.term}")
    r.tracker.record_vote(node, granted)
    return r.tracker.tally_votes()


def is_in_lease(r: RaftState) -> bool:
    """CheckQuorum is on, and the leader was heard from within the election timeout: other candidates are ignored (thesis 6.4.1)."""
    return r.config.check_quorum and r.lead != NO_NODE and r.election_elapsed_ticks < r.config.election_ticks


def vote_line(r: RaftState, verb: str, message: Message) -> str:
    """How a decision on a vote request reads in the log."""
    return (
        f"{r.id:x} [{r.log_position}, vote: {r.vote:x}] {verb} {message_type_name(message.type)} "
        f"{'for' if verb == 'cast' else 'from'} {message.from_:x} [logterm: {message.log_term}, index: {message.index}] at term {r.term}"
    )


def handle_vote_request(r: RaftState, message: Message) -> None:
    """Grant or reject a (pre-)vote request of the current term, or a pre-vote request of a later one."""
    is_real = message.type is MessageType.VOTE
    may_vote = r.vote == message.from_ or (r.vote == NO_NODE and r.lead == NO_NODE) or (not is_real and message.term > r.term)
    response = vote_response_type(message.type)
    if may_vote and r.log.is_up_to_date(message.index, message.log_term):
        r.log_sink.info(vote_line(r, "cast", message))
        # The answer carries the request's term: a pre-vote's lies ahead of the voter's own, and the candidate would drop a lower one.
        r.send(Message(type=response, to=message.from_, term=message.term))
        if is_real:
            r.election_elapsed_ticks = 0
            r.vote = message.from_
    else:
        r.log_sink.info(vote_line(r, "rejected", message))
        r.send(Message(type=response, to=message.from_, term=r.term, reject=True))
