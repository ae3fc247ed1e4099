"""Linearizable reads in a joint configuration: found missing by planting mistakes (tests/raft/mutants)."""

from __future__ import annotations

import pytest

from raft.types import ConfState, Index, NodeId
from tests.raft.kit import Member, T, of_kind, storage_with


def joint_leader() -> Member:
    """Member 1 as leader of (1 2 3)&&(1 4 5), its first entry committed."""
    state = ConfState(voters=tuple(map(NodeId, (1, 2, 3))), voters_outgoing=tuple(map(NodeId, (1, 4, 5))))
    found = Member(1, storage_with(state))
    found.raw.campaign()
    found.drain()
    for peer in (2, 4):
        found.step(T.VOTE_RESP, peer)
    for peer in (2, 4):
        found.step(T.APP_RESP, peer, index=Index(1))
    assert (found.raw.is_leader, found.raw.commit_index) == (True, 1)
    return found


@pytest.mark.parametrize(("one_half", "other_half"), [((2, 3), (4,)), ((4, 5), (2,))])
def test_read_needs_the_confirmation_of_both_halves(one_half: tuple[int, ...], other_half: tuple[int, ...]) -> None:
    found = joint_leader()
    found.raw.read_index(b"read")
    context = of_kind(found.drain(), T.HEARTBEAT)[0].context
    for peer in one_half:
        found.step(T.HEARTBEAT_RESP, peer, context=context)
    assert found.read_states == []
    for peer in other_half:
        found.step(T.HEARTBEAT_RESP, peer, context=context)
    assert found.read_states == [(1, b"read")]
