"""New kinds of commands wait until every member is known to understand them, and then never again."""

from __future__ import annotations

import pytest

from kvserver.commands import KINDS_VERSION, CommandKind, kinds_version
from kvserver.errors import NotCapableError
from kvserver.node.capability import Capability
from kvserver.pb.rpc_pb2 import LeaseGrantRequest, PutRequest
from kvserver.types import Member, NodeId

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


class Cluster:
    def __init__(self) -> None:
        self.applied = 1
        self.heard: dict[NodeId, int] = {TWO: KINDS_VERSION, THREE: KINDS_VERSION}
        self.members = {number: Member(id=number, name=f"m{number}", client_urls=("http://c",)) for number in (ONE, TWO, THREE)}
        self.capability = Capability(self_id=ONE, applied=lambda: self.applied, members=lambda: self.members, heard=self.heard.get)

    def takes(self, kind: CommandKind = CommandKind.LEASE_GRANT) -> bool:
        try:
            self.capability.check(kind, LeaseGrantRequest())
        except NotCapableError:
            return False
        return True


def test_leases_are_taken_when_every_member_has_said_that_it_knows_them() -> None:
    assert Cluster().takes()


@pytest.mark.parametrize("kind", [CommandKind.LEASE_GRANT, CommandKind.LEASE_REVOKE, CommandKind.LEASE_EXPIRE])
def test_one_older_member_is_enough_to_refuse(kind: CommandKind) -> None:
    cluster = Cluster()
    cluster.heard[THREE] = 1
    assert not cluster.takes(kind)
    Capability.check(cluster.capability, CommandKind.PUT, PutRequest())


@pytest.mark.parametrize(("published", "takes"), [(0, False), (1, False), (KINDS_VERSION, True)])
def test_member_that_was_not_heard_of_is_known_by_what_it_published(published: int, takes: bool) -> None:
    cluster = Cluster()
    del cluster.heard[THREE]
    cluster.members[THREE] = Member(id=THREE, name="m3", client_urls=("http://c",), kinds_version=published)
    assert cluster.takes() is takes


def test_last_hello_counts_more_than_what_was_published() -> None:
    cluster = Cluster()
    cluster.heard[THREE] = 1
    cluster.members[THREE] = Member(id=THREE, name="m3", client_urls=("http://c",), kinds_version=KINDS_VERSION)
    assert not cluster.takes()


def test_member_that_never_ran_is_not_asked() -> None:
    cluster = Cluster()
    del cluster.heard[THREE]
    cluster.members[THREE] = Member(id=THREE, name="m3")
    assert cluster.takes()
    cluster.heard[THREE] = 1  # it runs now, and is about to publish
    assert not cluster.takes()


def test_cluster_that_has_used_leases_is_not_asked_again() -> None:
    cluster = Cluster()
    cluster.heard.clear()
    cluster.applied = 2
    assert cluster.takes()


def test_every_kind_is_known_to_this_version() -> None:
    assert max(map(kinds_version, CommandKind)) == KINDS_VERSION
