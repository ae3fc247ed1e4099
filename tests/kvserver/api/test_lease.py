"""The Lease service over fakes: what is decided before anything is proposed, headers, and the keep-alive stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvserver import errors
from kvserver.api import min_ttl_s
from kvserver.api.lease import MAX_AHEAD, draw_lease_id
from kvserver.commands import CommandKind
from kvserver.pb import rpc_pb2

HEADER = rpc_pb2.ResponseHeader(cluster_id=0xC1, member_id=0xA1, revision=9, raft_term=3)


def granted(lease: int = 7, ttl_s: int = 60) -> rpc_pb2.LeaseGrantResponse:
    return rpc_pb2.LeaseGrantResponse(header=rpc_pb2.ResponseHeader(revision=9), ID=lease, TTL=ttl_s)


async def grant(services: Any, **fields: int) -> Any:
    services.cluster.response = services.cluster.response or granted()
    return await services.call("Lease", "LeaseGrant", rpc_pb2.LeaseGrantRequest(**fields))


def proposed(services: Any) -> list[rpc_pb2.LeaseGrantRequest]:
    return [step[2] for step in services.cluster.asked if step[0] == "propose"]


async def test_grant_is_proposed_as_it_came_and_its_answer_has_a_whole_header(services: Any) -> None:
    assert await grant(services, ID=7, TTL=60) == rpc_pb2.LeaseGrantResponse(header=HEADER, ID=7, TTL=60)
    assert proposed(services) == [rpc_pb2.LeaseGrantRequest(ID=7, TTL=60)]
    assert services.cluster.asked[0][1] is CommandKind.LEASE_GRANT


@pytest.mark.parametrize(("asked_s", "proposed_s"), [(-5, 3), (0, 3), (2, 3), (3, 3), (4, 4), (9_000_000_000, 9_000_000_000)])
async def test_ttl_is_raised_to_the_smallest_one_before_it_is_proposed(services: Any, asked_s: int, proposed_s: int) -> None:
    await grant(services, ID=7, TTL=asked_s)
    assert [request.TTL for request in proposed(services)] == [proposed_s]


@pytest.mark.parametrize(("election_timeout_s", "smallest_s"), [(0.1, 2), (1.0, 2), (1.3, 2), (1.4, 3), (5.0, 8)])
def test_smallest_ttl_outlives_the_loss_of_a_leader(election_timeout_s: float, smallest_s: int) -> None:
    assert min_ttl_s(election_timeout_s) == smallest_s


async def test_ttl_that_is_too_large_is_refused_without_a_proposal(services: Any) -> None:
    with pytest.raises(errors.LeaseTtlTooLargeError):
        await grant(services, TTL=9_000_000_001)
    assert services.cluster.asked == []


async def test_id_that_the_client_leaves_open_is_drawn_before_it_is_proposed(services: Any) -> None:
    for _ in range(20):
        await grant(services, TTL=60)
    ids = {request.ID for request in proposed(services)}
    assert len(ids) == 20
    assert all(0 < lease < 2**63 for lease in ids)
    assert 0 < draw_lease_id() < 2**63


async def test_id_that_is_taken_is_drawn_again_and_one_that_the_client_chose_is_refused(services: Any) -> None:
    cluster = services.cluster
    taken = [errors.LeaseExistsError(), errors.LeaseExistsError()]
    real = cluster.propose

    async def propose(kind: CommandKind, request: Any, **options: Any) -> Any:
        cluster.raises = taken.pop() if taken else None
        return await real(kind, request, **options)

    cluster.propose = propose
    await grant(services, TTL=60)
    assert len({request.ID for request in proposed(services)}) == 3
    taken.append(errors.LeaseExistsError())
    with pytest.raises(errors.LeaseExistsError):
        await grant(services, ID=7, TTL=60)
    assert len(proposed(services)) == 4


async def test_full_store_refuses_a_grant_and_takes_a_revoke(services: Any) -> None:
    services.cluster.size_in_use_bytes = 1 << 20
    with pytest.raises(errors.NoSpaceError):
        await grant(services, TTL=60)
    assert proposed(services) == []
    services.cluster.response = rpc_pb2.LeaseRevokeResponse(header=rpc_pb2.ResponseHeader(revision=9))
    answer = await services.call("Lease", "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=7))
    assert answer == rpc_pb2.LeaseRevokeResponse(header=HEADER)


async def test_time_to_live_tells_what_is_left_and_on_demand_the_keys(services: Any) -> None:
    services.cluster.leases = {7: (60, [b"a", b"b"])}
    bare = await services.call("Lease", "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7))
    assert bare == rpc_pb2.LeaseTimeToLiveResponse(header=HEADER, ID=7, TTL=59, grantedTTL=60)
    whole = await services.call("Lease", "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True))
    assert whole == rpc_pb2.LeaseTimeToLiveResponse(header=HEADER, ID=7, TTL=59, grantedTTL=60, keys=[b"a", b"b"])
    assert services.cluster.steps[:3] == ["wait_linearizable", "read_lease", "remaining_s"]


async def test_time_to_live_of_a_lease_that_is_not_there_is_minus_one(services: Any) -> None:
    answer = await services.call("Lease", "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=8, keys=True))
    assert answer == rpc_pb2.LeaseTimeToLiveResponse(header=HEADER, ID=8, TTL=-1)


async def test_leases_are_listed_linearizably(services: Any) -> None:
    services.cluster.leases = {7: (60, []), 5: (60, [])}
    answer = await services.call("Lease", "LeaseLeases", rpc_pb2.LeaseLeasesRequest())
    assert answer == rpc_pb2.LeaseLeasesResponse(header=HEADER, leases=[rpc_pb2.LeaseStatus(ID=5), rpc_pb2.LeaseStatus(ID=7)])
    assert services.cluster.steps == ["wait_linearizable", "read_leases"]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=60)),
        ("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=7)),
        ("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7)),
        ("LeaseLeases", rpc_pb2.LeaseLeasesRequest()),
    ],
)
async def test_learner_serves_none_of_it(services: Any, method: str, request_: Any) -> None:
    services.cluster.is_learner = True
    with pytest.raises(errors.NotSupportedForLearnerError):
        await services.call("Lease", method, request_)
    with pytest.raises(errors.NotSupportedForLearnerError):
        await anext(stream_of(services, requests_of(7)))


# --- the stream --------------------------------------------------------------------------------------------------------------------------


class Call:
    metadata = ()


def stream_of(services: Any, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]) -> Any:
    return services.api.bidi_streams["Lease", "LeaseKeepAlive"](requests, Call())


async def requests_of(*leases: int) -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
    for lease in leases:
        yield rpc_pb2.LeaseKeepAliveRequest(ID=lease)


async def test_stream_answers_in_order_with_whole_headers_and_ends_with_its_requests(services: Any) -> None:
    services.cluster.leases = {7: (60, []), -1: (5, [])}
    answers = [answer async for answer in stream_of(services, requests_of(7, 8, -1, 0, 7))]
    expected = [(7, 60), (8, 0), (-1, 5), (0, 0), (7, 60)]
    assert answers == [rpc_pb2.LeaseKeepAliveResponse(header=HEADER, ID=lease, TTL=ttl_s) for lease, ttl_s in expected]


async def test_stream_without_requests_ends(services: Any) -> None:
    assert [answer async for answer in stream_of(services, requests_of())] == []


async def test_requests_that_are_there_are_renewed_together_and_no_more_than_so_many(services: Any) -> None:
    services.cluster.leases = {7: (60, [])}
    count = 0
    async for answer in stream_of(services, requests_of(*[7] * 1000)):
        assert answer.TTL == 60
        count += 1
    assert count == 1000
    batches = [step[1] for step in services.cluster.asked if step[0] == "renew"]
    assert max(map(len, batches)) <= MAX_AHEAD + 1
    assert len(batches) < 50


async def test_stream_reads_no_further_ahead_than_it_may_while_its_client_takes_nothing(services: Any) -> None:
    services.cluster.leases = {7: (60, [])}
    read = 0

    async def counted() -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
        nonlocal read
        while True:
            read += 1
            yield rpc_pb2.LeaseKeepAliveRequest(ID=7)

    stream = stream_of(services, counted())
    await anext(stream)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert read <= 2 * MAX_AHEAD + 3
    await stream.aclose()


async def test_failed_renewal_ends_the_stream_with_its_error(services: Any) -> None:
    services.cluster.raises = errors.NoLeaderError()
    stream = stream_of(services, requests_of(7, 7))
    with pytest.raises(errors.NoLeaderError):
        await anext(stream)


async def test_request_that_can_not_be_read_ends_the_stream_when_those_before_it_are_answered(services: Any) -> None:
    async def broken() -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
        yield rpc_pb2.LeaseKeepAliveRequest(ID=7)
        raise RuntimeError("not readable")

    stream = stream_of(services, broken())
    assert (await anext(stream)).ID == 7
    with pytest.raises(RuntimeError, match="not readable"):
        await anext(stream)


async def test_client_that_leaves_an_idle_stream_leaves_no_task_behind(services: Any) -> None:
    async def idle() -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
        yield rpc_pb2.LeaseKeepAliveRequest(ID=7)
        await asyncio.Event().wait()

    stream = stream_of(services, idle())
    await anext(stream)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "keep-alive-requests"] == []
