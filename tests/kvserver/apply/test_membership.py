"""Membership changes: what each does, what is refused, and that the encoding keeps everything."""

from __future__ import annotations

import pytest

from kvserver.apply import MemberChange, MemberChangeKind, Membership, change_members, decode_change, encode_change
from kvserver.commands import ProposalId
from kvserver.errors import MemberIdExistsError, MemberNotFoundError, MemberNotLearnerError, PeerUrlExistsError
from kvserver.types import ClusterId, Member, NodeId

A = Member(id=NodeId(1), name="a", peer_urls=("http://a:1",), client_urls=("http://a:2",))
B = Member(id=NodeId(2), name="b", peer_urls=("http://b:1",), is_learner=True)
BASE = Membership(cluster_id=ClusterId(9), members={A.id: A, B.id: B}, removed_ids=frozenset({NodeId(7)}), cluster_token="t")


def change(kind: MemberChangeKind, member: Member) -> MemberChange:
    return MemberChange(kind=kind, member=member)


def test_an_added_member_is_unstarted() -> None:
    new = Member(id=NodeId(3), name="said", peer_urls=("http://c:1",), client_urls=("http://c:2",))
    after = change_members(BASE, change(MemberChangeKind.ADD, new))
    assert after.members[NodeId(3)] == Member(id=NodeId(3), peer_urls=("http://c:1",))
    assert (after.cluster_id, after.cluster_token, set(after.members)) == (9, "t", {1, 2, 3})


@pytest.mark.parametrize(
    ("member", "error"),
    [
        (Member(id=NodeId(1), peer_urls=("http://new:1",)), MemberIdExistsError),
        (Member(id=NodeId(7), peer_urls=("http://new:1",)), MemberIdExistsError),
        (Member(id=NodeId(3), peer_urls=("http://new:1", "http://b:1")), PeerUrlExistsError),
    ],
)
def test_an_id_or_url_that_was_taken_is_refused(member: Member, error: type[Exception]) -> None:
    with pytest.raises(error):
        change_members(BASE, change(MemberChangeKind.ADD, member))


def test_a_removed_id_never_comes_back() -> None:
    after = change_members(BASE, change(MemberChangeKind.REMOVE, A))
    assert set(after.members) == {2}
    assert after.removed_ids == {1, 7}
    with pytest.raises(MemberIdExistsError):
        change_members(after, change(MemberChangeKind.ADD, A))


def test_an_update_changes_peer_urls_only() -> None:
    after = change_members(BASE, change(MemberChangeKind.UPDATE, Member(id=NodeId(1), peer_urls=("http://z:1",))))
    assert after.members[NodeId(1)] == Member(id=NodeId(1), name="a", peer_urls=("http://z:1",), client_urls=("http://a:2",))
    with pytest.raises(PeerUrlExistsError):
        change_members(BASE, change(MemberChangeKind.UPDATE, Member(id=NodeId(1), peer_urls=("http://b:1",))))


def test_a_promotion_makes_a_voter_of_a_learner_once() -> None:
    after = change_members(BASE, change(MemberChangeKind.PROMOTE, B))
    assert not after.members[NodeId(2)].is_learner
    with pytest.raises(MemberNotLearnerError):
        change_members(after, change(MemberChangeKind.PROMOTE, B))


@pytest.mark.parametrize("kind", [MemberChangeKind.REMOVE, MemberChangeKind.UPDATE, MemberChangeKind.PROMOTE])
def test_an_unknown_member_is_not_found(kind: MemberChangeKind) -> None:
    with pytest.raises(MemberNotFoundError):
        change_members(BASE, change(kind, Member(id=NodeId(5), peer_urls=("http://new:1",))))


@pytest.mark.parametrize("kind", list(MemberChangeKind))
def test_the_encoding_keeps_the_change_and_its_proposer(kind: MemberChangeKind) -> None:
    proposal = ProposalId(NodeId(2**64 - 1), 2**63, 5)
    member = Member(id=NodeId(2**63), peer_urls=("http://x:1", "http://y:1"), is_learner=True)
    assert decode_change(encode_change(change(kind, member), proposal)) == (change(kind, member), proposal)


def test_foreign_bytes_are_no_change() -> None:
    with pytest.raises(ValueError, match="MemberChangeKind"):
        decode_change(b"")
