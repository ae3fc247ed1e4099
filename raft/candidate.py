"""The candidate and the pre-candidate: counting votes, and giving way to a leader of the same term.

    role            won                      lost                    a leader appears
    PRE_CANDIDATE   campaign for real        follower, same term     follower of it
    CANDIDATE       leader                   follower, same term     follower of it

Source: Ongaro's thesis, 3.4 and 9.6.
"""

from __future__ import annotations

from raft.describe import message_type_name
from raft.election import Campaign, poll, stand
from raft.errors import ProposalDroppedError
from raft.follower import FROM_LEADER
from raft.leader import lead
from raft.messages import Message, MessageType
from raft.quorum import VoteResult
from raft.ready import StateType
from raft.state import RaftState
from raft.types import NO_NODE


def step_candidate(r: RaftState, message: Message) -> None:
    """Handle a message of the current term (for a granted pre-vote: of the next one) as candidate or pre-candidate."""
    kind = message.type
    is_pre = r.state is StateType.PRE_CANDIDATE
    if kind is MessageType.PROP:
        r.log_sink.info(f"{r.id:x} no leader at term {r.term}; dropping proposal")
        raise ProposalDroppedError
    if kind in FROM_LEADER:
        r.become_follower(message.term, message.from_)
        FROM_LEADER[kind](r, message)
    elif kind is (MessageType.PRE_VOTE_RESP if is_pre else MessageType.VOTE_RESP):
        _count_vote(r, message)
    elif kind is MessageType.TIMEOUT_NOW:
        r.log_sink.debug(f"{r.id:x} [term {r.term} state {r.state.value}] ignored MsgTimeoutNow from {message.from_:x}")


def _count_vote(r: RaftState, message: Message) -> None:
    granted, rejected, result = poll(r, message.from_, message.type, not message.reject)
    r.log_sink.info(f"{r.id:x} has received {granted} {message_type_name(message.type)} votes and {rejected} vote rejections")
    if result is VoteResult.WON:
        if r.state is StateType.PRE_CANDIDATE:
            stand(r, Campaign.ELECTION)
        else:
            lead(r)
    elif result is VoteResult.LOST:
        r.become_follower(r.term, NO_NODE)
