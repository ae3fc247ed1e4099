"""Maintenance, Cluster, Health and the checks behind the HTTP endpoints."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvserver import errors
from kvserver.api import HealthReport
from kvserver.commands import CommandKind
from kvserver.pb import health_pb2, rpc_pb2
from kvserver.types import Member, NodeId

NOSPACE = rpc_pb2.AlarmMember(memberID=5, alarm=rpc_pb2.NOSPACE)
CORRUPT = rpc_pb2.AlarmMember(memberID=6, alarm=rpc_pb2.CORRUPT)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_status_shows_this_member(services: Any) -> None:
    response = await services.call("Maintenance", "Status", rpc_pb2.StatusRequest())
    assert response == rpc_pb2.StatusResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=0xC1, member_id=0xA1, revision=9, raft_term=3),
        version="3.6.0",
        dbSize=4096,
        leader=0xA1,
        raftIndex=21,
        raftTerm=3,
        raftAppliedIndex=20,
        dbSizeInUse=1024,
        storageVersion="3.6.0",
        dbSizeQuota=1 << 31,
    )


async def test_status_is_answered_without_a_leader_and_by_a_learner_and_names_what_is_wrong(services: Any) -> None:
    services.cluster.leader_id = 0
    services.cluster.is_learner = True
    services.cluster.raised_alarms = [NOSPACE]
    services.cluster.status_errors = ("disk full",)
    response = await services.call("Maintenance", "Status", rpc_pb2.StatusRequest())
    assert response.isLearner
    assert list(response.errors) == ["disk full", "etcdserver: no leader", "memberID:5 alarm:NOSPACE "]


async def test_hash_kv_asks_the_store_for_the_revision(services: Any) -> None:
    response = await services.call("Maintenance", "HashKV", rpc_pb2.HashKVRequest(revision=4))
    assert services.cluster.asked == [("hash_kv", 4)]
    assert (response.hash, response.compact_revision, response.header.cluster_id, response.header.revision) == (77, 2, 0xC1, 9)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(rpc_pb2.NONE, [NOSPACE, CORRUPT]), (rpc_pb2.NOSPACE, [NOSPACE]), (rpc_pb2.CORRUPT, [CORRUPT])],
)
async def test_alarms_are_listed_linearizably(services: Any, kind: Any, expected: list[rpc_pb2.AlarmMember]) -> None:
    services.cluster.raised_alarms = [NOSPACE, CORRUPT]
    response = await services.call("Maintenance", "Alarm", rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET, alarm=kind))
    assert list(response.alarms) == expected
    assert services.cluster.steps == ["wait_linearizable"]


@pytest.mark.parametrize("action", [rpc_pb2.AlarmRequest.ACTIVATE, rpc_pb2.AlarmRequest.DEACTIVATE])
async def test_alarms_are_raised_and_disarmed_through_the_log(services: Any, action: Any) -> None:
    services.cluster.response = rpc_pb2.AlarmResponse(alarms=[NOSPACE])
    request = rpc_pb2.AlarmRequest(action=action, memberID=5, alarm=rpc_pb2.NOSPACE)
    response = await services.call("Maintenance", "Alarm", request)
    assert services.cluster.asked == [("propose", CommandKind.ALARM, request, 107.0)]
    assert list(response.alarms) == [NOSPACE]
    assert (response.header.member_id, response.header.revision) == (0xA1, 9)


async def test_an_action_that_does_not_exist_proposes_nothing(services: Any) -> None:
    with pytest.raises(errors.UnimplementedError):
        await services.call("Maintenance", "Alarm", rpc_pb2.AlarmRequest.FromString(b"\x08\x09"))
    assert services.cluster.asked == []


async def test_alarms_without_a_name_are_shown_as_etcd_shows_them(services: Any) -> None:
    strange = rpc_pb2.AlarmMember.FromString(b"\x08\x09\x10\x07")
    services.cluster.raised_alarms = [strange, rpc_pb2.AlarmMember(memberID=4), rpc_pb2.AlarmMember(alarm=rpc_pb2.CORRUPT)]
    response = await services.call("Maintenance", "Status", rpc_pb2.StatusRequest())
    assert list(response.errors) == ["memberID:9 alarm:7 ", "memberID:4 ", "alarm:CORRUPT "]
    assert outcome(await services.api.probes.health(serializable=False, exclude=())) == (False, "ALARM UNKNOWN")


@pytest.mark.parametrize(("linearizable", "steps"), [(True, ["wait_linearizable"]), (False, [])])
async def test_members_are_listed_by_id_with_an_unset_revision(services: Any, linearizable: bool, steps: list[str]) -> None:
    services.cluster.known_members = [
        Member(id=NodeId(7), name="b", peer_urls=("http://b:2380",), client_urls=("http://b:2379",)),
        Member(id=NodeId(3), peer_urls=("http://c:2380",), is_learner=True),
    ]
    response = await services.call("Cluster", "MemberList", rpc_pb2.MemberListRequest(linearizable=linearizable))
    assert response == rpc_pb2.MemberListResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=0xC1, member_id=0xA1, raft_term=3),
        members=[
            rpc_pb2.Member(ID=3, peerURLs=["http://c:2380"], isLearner=True),
            rpc_pb2.Member(ID=7, name="b", peerURLs=["http://b:2380"], clientURLs=["http://b:2379"]),
        ],
    )
    assert services.cluster.steps == steps


@pytest.mark.parametrize(
    ("service", "method", "request_"),
    [
        ("Cluster", "MemberList", rpc_pb2.MemberListRequest()),
        ("Maintenance", "HashKV", rpc_pb2.HashKVRequest()),
        ("Maintenance", "Alarm", rpc_pb2.AlarmRequest()),
    ],
)
async def test_a_learner_refuses_what_is_not_its_own(services: Any, service: str, method: str, request_: Any) -> None:
    services.cluster.is_learner = True
    with pytest.raises(errors.NotSupportedForLearnerError):
        await services.call(service, method, request_)


async def test_health_follows_the_switch(services: Any) -> None:
    request = health_pb2.HealthCheckRequest()
    assert (await services.call("Health", "Check", request)).status == NOT_SERVING
    services.api.health.set_serving(True)
    assert (await services.call("Health", "Check", request)).status == SERVING


async def test_health_knows_no_other_service(services: Any) -> None:
    with pytest.raises(errors.HealthServiceUnknownError):
        await services.call("Health", "Check", health_pb2.HealthCheckRequest(service="etcdserverpb.KV"))
    stream = services.api.server_streams["Health", "Watch"](health_pb2.HealthCheckRequest(service="x"), None)
    assert (await anext(stream)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await stream.aclose()


async def test_health_watch_sends_the_state_and_every_change(services: Any) -> None:
    stream = services.api.server_streams["Health", "Watch"](health_pb2.HealthCheckRequest(), None)
    assert (await anext(stream)).status == NOT_SERVING
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    services.api.health.set_serving(False)
    await asyncio.sleep(0)
    assert not waiting.done()
    services.api.health.set_serving(True)
    assert (await waiting).status == SERVING
    await stream.aclose()


def outcome(report: HealthReport) -> tuple[bool, str]:
    return report.healthy, report.reason


async def test_health_probe_reads_linearizably(services: Any) -> None:
    assert outcome(await services.api.probes.health(serializable=False, exclude=())) == (True, "")
    assert services.cluster.steps == ["wait_linearizable", "read_range"]


async def test_health_probe_fails_without_a_leader_unless_serializable(services: Any) -> None:
    services.cluster.leader_id = 0
    services.cluster.raises = errors.NoLeaderError()
    assert outcome(await services.api.probes.health(serializable=False, exclude=())) == (False, "RAFT NO LEADER")
    assert outcome(await services.api.probes.health(serializable=True, exclude=())) == (True, "")
    assert services.cluster.steps == ["read_range"]


async def test_health_probe_fails_by_an_alarm_that_is_not_excluded(services: Any) -> None:
    services.cluster.raised_alarms = [NOSPACE]
    assert outcome(await services.api.probes.health(serializable=False, exclude=())) == (False, "ALARM NOSPACE")
    assert outcome(await services.api.probes.health(serializable=False, exclude={"NOSPACE"})) == (True, "")


async def test_health_probe_names_the_error_of_the_read(services: Any) -> None:
    services.cluster.raises = errors.RequestTimeoutError()
    report = await services.api.probes.health(serializable=False, exclude=())
    assert outcome(report) == (False, "RANGE ERROR:etcdserver: request timed out")


async def test_live_needs_the_local_store_only(services: Any) -> None:
    services.cluster.leader_id = 0
    services.cluster.raises = errors.NoLeaderError()
    assert (await services.api.probes.live()).healthy
    services.cluster.read_raises = errors.CorruptError()
    assert outcome(await services.api.probes.live()) == (False, "RANGE ERROR:etcdserver: corrupt cluster")


async def test_ready_makes_every_check_that_is_not_excluded(services: Any) -> None:
    services.cluster.raised_alarms = [CORRUPT]
    services.cluster.raises = errors.NoLeaderError()
    report = await services.api.probes.ready(exclude=())
    assert [(check.name, bool(check.reason)) for check in report.checks] == [
        ("data_corruption", True),
        ("serializable_read", False),
        ("linearizable_read", True),
    ]
    assert (await services.api.probes.ready(exclude={"data_corruption", "linearizable_read"})).healthy
