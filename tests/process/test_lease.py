"""Leases on real members: expiry everywhere, renewing through followers, and what a loss of the leader must not do."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

WAIT_S = 15.0
_ANSWERS: dict[type[Message], tuple[str, type[Message]]] = {
    pb.RangeRequest: ("KV/Range", pb.RangeResponse),
    pb.PutRequest: ("KV/Put", pb.PutResponse),
    pb.LeaseGrantRequest: ("Lease/LeaseGrant", pb.LeaseGrantResponse),
    pb.LeaseRevokeRequest: ("Lease/LeaseRevoke", pb.LeaseRevokeResponse),
    pb.LeaseTimeToLiveRequest: ("Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse),
    pb.LeaseLeasesRequest: ("Lease/LeaseLeases", pb.LeaseLeasesResponse),
    pb.HashKVRequest: ("Maintenance/HashKV", pb.HashKVResponse),
}


class Talk:
    """Calls of one member."""

    def __init__(self, node: NodeProcess) -> None:
        self._channel = grpc.insecure_channel(node.endpoint, options=[("grpc.use_local_subchannel_pool", 1)])

    def __call__(self, request: Message, timeout_s: float = 10.0) -> Any:
        path, answer = _ANSWERS[type(request)]
        return self._channel.unary_unary(f"/etcdserverpb.{path}", response_deserializer=answer.FromString)(
            request.SerializeToString(), timeout=timeout_s
        )

    def keep_alive(self, requests: Iterator[pb.LeaseKeepAliveRequest], timeout_s: float = 10.0) -> Any:
        invoke = self._channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        return invoke(requests, timeout=timeout_s)

    def renew(self, lease: int) -> int:
        """The TTL of a single keep-alive."""
        (answer,) = self.keep_alive(iter([pb.LeaseKeepAliveRequest(ID=lease)]))
        return int(answer.TTL)

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def talk() -> Iterator[Callable[[NodeProcess], Talk]]:
    with contextlib.ExitStack() as stack:
        yield lambda node: stack.enter_context(contextlib.closing(Talk(node)))


def grant(member: Talk, ttl_s: int, *keys: bytes) -> int:
    """A lease with keys."""
    lease = int(member(pb.LeaseGrantRequest(TTL=ttl_s)).ID)
    for key in keys:
        member(pb.PutRequest(key=key, value=b"v", lease=lease))
    return lease


def exists(member: Talk, key: bytes, *, serializable: bool = False) -> bool:
    return bool(member(pb.RangeRequest(key=key, serializable=serializable)).count)


def remaining_s(member: Talk, lease: int) -> int:
    return int(member(pb.LeaseTimeToLiveRequest(ID=lease)).TTL)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def followers_of(cluster: ProcessCluster) -> list[NodeProcess]:
    leader = cluster.leader()
    return [node for node in cluster.nodes if node is not leader]


def hashes(members: Sequence[Talk]) -> set[tuple[int, int]]:
    return {(answer.hash, answer.header.revision) for answer in (member(pb.HashKVRequest()) for member in members)}


def test_expired_lease_takes_its_keys_along_on_every_member(cluster: ProcessCluster, talk: Any) -> None:
    members = [talk(node) for node in cluster.nodes]
    began_s = time.monotonic()
    lease = grant(members[0], 2, b"expiring/b", b"expiring/a")
    kept = grant(members[1], 60, b"kept")
    found = members[2](pb.LeaseTimeToLiveRequest(ID=lease, keys=True))
    assert (list(found.keys), found.grantedTTL) == ([b"expiring/a", b"expiring/b"], 2)
    for member in members:
        wait_until(lambda member=member: not exists(member, b"expiring/a", serializable=True), "the key is gone")  # type: ignore[misc]
        assert not exists(member, b"expiring/b", serializable=True)
        assert exists(member, b"kept", serializable=True)
        assert remaining_s(member, lease) == -1
    assert time.monotonic() - began_s >= 2
    wait_until(lambda: len(hashes(members)) == 1, "all members have the same revision and the same hash")
    assert [each.ID for each in members[0](pb.LeaseLeasesRequest()).leases] == [kept]
    members[0](pb.LeaseRevokeRequest(ID=kept))
    assert not exists(members[2], b"kept")


def test_keep_alive_through_a_follower_keeps_the_lease_as_long_as_it_goes_on(cluster: ProcessCluster, talk: Any) -> None:
    member = talk(followers_of(cluster)[0])
    lease = grant(member, 2, b"renewed")

    def every_half_second() -> Iterator[pb.LeaseKeepAliveRequest]:
        for _ in range(8):
            yield pb.LeaseKeepAliveRequest(ID=lease)
            time.sleep(0.5)

    assert [(answer.ID, answer.TTL) for answer in member.keep_alive(every_half_second())] == [(lease, 2)] * 8
    assert exists(member, b"renewed")
    wait_until(lambda: not exists(member, b"renewed"), "the lease ends when nobody renews it any more")
    assert member.renew(lease) == 0


def test_one_stream_carries_many_requests_in_order_and_ends_with_the_client(cluster: ProcessCluster, talk: Any) -> None:
    for node in (cluster.leader(), followers_of(cluster)[0]):
        member = talk(node)
        leases = [grant(member, 60) for _ in range(3)]
        asked = [*leases, 12345, 0] * 400
        call = member.keep_alive(iter(pb.LeaseKeepAliveRequest(ID=lease) for lease in asked))
        answers = [(answer.ID, answer.TTL) for answer in call]
        assert answers == [(lease, 60 if lease in leases else 0) for lease in asked]
        assert call.code() is grpc.StatusCode.OK
        for lease in leases:
            member(pb.LeaseRevokeRequest(ID=lease))


def test_new_leader_gives_a_lease_its_whole_time_again(cluster: ProcessCluster, talk: Any) -> None:
    leader, (survivor, _) = cluster.leader(), followers_of(cluster)
    member = talk(survivor)
    lease = grant(member, 4, b"key")
    wait_until(lambda: remaining_s(member, lease) <= 1, "most of the time has passed")
    leader.kill()
    killed_s = time.monotonic()
    assert remaining_s(member, lease) >= 3  # waits for the new leader
    found_s = time.monotonic()
    while time.monotonic() < found_s + 2.5:
        assert exists(member, b"key"), f"the key is gone {time.monotonic() - killed_s} s after the leader was killed"
        time.sleep(0.1)
    wait_until(lambda: not exists(member, b"key"), "it expires all the same")
    leader.start()


def test_stopped_leader_that_wakes_up_revokes_nothing(cluster: ProcessCluster, talk: Any) -> None:
    old, (survivor, _) = cluster.leader(), followers_of(cluster)
    member = talk(survivor)
    lease = grant(member, 3, b"key")
    revision = member(pb.RangeRequest(key=b"key")).header.revision
    old.send_signal(signal.SIGSTOP)
    try:
        until_s = time.monotonic() + 4.0
        while time.monotonic() < until_s:
            assert member.renew(lease) == 3
            time.sleep(0.3)
    finally:
        old.send_signal(signal.SIGCONT)
    woken = talk(old)
    until_s = time.monotonic() + 1.5
    while time.monotonic() < until_s:
        assert member.renew(lease) == 3
        answer = woken(pb.RangeRequest(key=b"key"))
        assert (answer.count, answer.header.revision) == (1, revision)
    assert remaining_s(woken, lease) >= 1


def test_restart_of_all_members_keeps_leases_and_their_keys(cluster: ProcessCluster, talk: Any) -> None:
    lease = grant(talk(cluster.nodes[0]), 30, b"a", b"b")
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        node.start(wait_ready=False)
    for node in cluster.nodes:
        node.wait_ready()
    members = [talk(node) for node in cluster.nodes]
    for member in members:
        found = member(pb.LeaseTimeToLiveRequest(ID=lease, keys=True))
        assert (found.grantedTTL, list(found.keys)) == (30, [b"a", b"b"])
        assert found.TTL >= 27
    members[1](pb.LeaseRevokeRequest(ID=lease))
    assert not exists(members[2], b"a")
    wait_until(lambda: len(hashes(members)) == 1, "all members have the same hash")
