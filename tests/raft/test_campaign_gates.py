"""A member that may not stand for election just now: found missing by planting mistakes (tests/raft/mutants)."""

from __future__ import annotations

from raft import LOCAL_APPEND_THREAD, Message, MessageType, StateType
from raft.types import NodeId, Term
from tests.raft.kit import Member, conf_state, snapshot_at, storage_with


def test_member_does_not_campaign_while_a_snapshot_is_being_installed() -> None:
    state = conf_state([1, 2, 3])
    member = Member(1, storage_with(state), async_storage_writes=True)
    raw = member.raw

    raw.step(Message(type=MessageType.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(2), snapshot=snapshot_at(10, 2, state)))
    requests = [message for message in raw.ready().messages if message.to == LOCAL_APPEND_THREAD]
    raw.campaign()
    assert (raw.state, raw.term) == (StateType.FOLLOWER, 2)
    assert member.log.has("1 is unpromotable and can not campaign")
    snapshot = requests[0].snapshot
    assert snapshot is not None
    member.storage.apply_snapshot(snapshot)
    for response in requests[0].responses:
        if response.to == NodeId(1):
            raw.step(response)
    raw.campaign()
    assert (raw.state, raw.term) == (StateType.CANDIDATE, 3)
