"""Who the members of a cluster are: ids from URLs, and the membership that a new cluster starts with.

Rules: pure functions. A member's id is the first 8 bytes of SHA-1 over its sorted peer URLs and the cluster token; the cluster's id is
the first 8 bytes of SHA-1 over the sorted member ids. Every member of a new cluster computes the same ids and the same ConfState from the
same flags.

Source: etcd's membership/member.go and cluster.go (computeMemberId, genID) for the construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from kvserver.types import ClusterId, ConfState, Member, NodeId


def member_id(peer_urls: Sequence[str], cluster_token: str) -> NodeId:
    """The id of a member of a new cluster; never 0."""
    digest = hashlib.sha1(("".join(sorted(peer_urls)) + cluster_token).encode(), usedforsecurity=False).digest()
    return NodeId(int.from_bytes(digest[:8], "big") or 1)


def cluster_id(members: Iterable[NodeId]) -> ClusterId:
    """The id of the cluster that these members found."""
    joined = b"".join(member.to_bytes(8, "big") for member in sorted(members))
    return ClusterId(int.from_bytes(hashlib.sha1(joined, usedforsecurity=False).digest()[:8], "big") or 1)


def initial_members(initial_cluster: Mapping[str, Sequence[str]], cluster_token: str) -> dict[NodeId, Member]:
    """The members that `--initial-cluster` names, by id, with the names that they will publish."""
    members = (
        Member(id=member_id(urls, cluster_token), name=name, peer_urls=tuple(sorted(urls))) for name, urls in initial_cluster.items()
    )
    return {member.id: member for member in members}


def conf_state_of(members: Mapping[NodeId, Member]) -> ConfState:
    """The configuration in which exactly these members take part."""
    return ConfState(
        voters=tuple(sorted(m.id for m in members.values() if not m.is_learner)),
        learners=tuple(sorted(m.id for m in members.values() if m.is_learner)),
    )
