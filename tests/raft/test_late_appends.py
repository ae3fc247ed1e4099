"""The ABA race of asynchronous writes, in our own words: found missing by planting mistakes without etcd-io/raft's data files."""

from __future__ import annotations

from raft import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message
from raft.types import Index, NodeId, Term
from tests.raft.kit import Member, T, conf_state, entry, kinds, storage_with

MEMBER = NodeId(1)


def take(member: Member, leader: int, term: int, entry_term: int) -> Message:
    """Give the member an entry at index 1, as that leader; what goes to the append thread."""
    entries = [entry(entry_term, 1)]
    member.raw.step(Message(type=T.APP, from_=NodeId(leader), to=MEMBER, term=Term(term), entries=entries))
    (request,) = (message for message in member.raw.ready().messages if message.to == LOCAL_APPEND_THREAD)
    return request


def acknowledge(member: Member, request: Message) -> None:
    """Deliver the append thread's own response."""
    member.raw.step(next(response for response in request.responses if response.to == MEMBER))


def test_acknowledgement_of_an_entry_that_was_replaced_and_came_back_counts_for_nothing() -> None:
    member = Member(1, storage_with(conf_state([1, 2, 3])), async_storage_writes=True)
    first = take(member, leader=2, term=1, entry_term=1)
    take(member, leader=3, term=2, entry_term=2)
    last = take(member, leader=2, term=3, entry_term=1)
    member.raw.step(Message(type=T.HEARTBEAT, from_=NodeId(2), to=MEMBER, term=Term(3), commit=Index(1)))
    # By now the disk may hold the entry of term 2: only the last write vouches for the one of term 1.
    acknowledge(member, first)
    assert LOCAL_APPLY_THREAD not in [message.to for message in member.raw.ready().messages]
    member.storage.append(last.entries)
    acknowledge(member, last)
    assert T.STORAGE_APPLY in kinds(member.raw.ready().messages)
