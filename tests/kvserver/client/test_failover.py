"""Failover: reads find a way, mutations are sent at most once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from kvserver.client import CallTimeoutError, Client, ClientConfig, ConnectError, ServerError, parse_endpoint
from kvserver.client.methods import RANGE
from kvserver.pb import rpc_pb2 as pb

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NO_LEADER = (UNAVAILABLE, "etcdserver: no leader")
LEADER_CHANGED = (UNAVAILABLE, "etcdserver: leader changed")
TOO_MANY = (grpc.StatusCode.UNKNOWN, "etcdserver: too many requests")
PUT, GET, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"


def client(*endpoints: str, **options: Any) -> Client:
    return Client(ClientConfig(endpoints=tuple(parse_endpoint(each) for each in endpoints), **options))


def calls(servers: list[Any]) -> list[str]:
    return [path for server in servers for path in server.calls]


def fail_first_call(servers: list[Any], failure: tuple[Any, str]) -> None:
    """Whichever server is called first fails; which one that is, is a race."""
    shared = [failure]
    for server in servers:
        server.failures = shared


def hold_first_call(servers: list[Any]) -> asyncio.Event:
    """Whichever server is called first never answers; the event says that the call is there."""
    held = asyncio.Event()
    shared = [held]
    for server in servers:
        server.holds = shared
    return held


async def test_a_mutation_goes_past_endpoints_that_cannot_be_reached(servers: list[Any]) -> None:
    await servers[0].stop()
    await servers[1].stop()
    async with client(*(each.endpoint for each in servers)) as connected:
        await connected.put(b"k", b"v")
    assert calls(servers) == [PUT]


async def test_a_hanging_endpoint_costs_nothing_while_another_answers(servers: list[Any]) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    port = servers[0].port
    await servers[0].stop()
    silent = await asyncio.start_server(swallow, "127.0.0.1", port)
    try:
        async with asyncio.timeout(5), client(f"127.0.0.1:{port}", servers[1].endpoint, dial_timeout_s=60) as connected:
            await connected.put(b"k", b"v")
        await gone.wait()
    finally:
        silent.close()
        await silent.wait_closed()
    assert calls(servers) == [PUT]


@pytest.mark.parametrize("failure", [NO_LEADER, TOO_MANY])
async def test_a_mutation_is_repeated_after_an_error_that_proves_no_effect(servers: list[Any], failure: tuple[Any, str]) -> None:
    fail_first_call(servers, failure)
    async with client(*(each.endpoint for each in servers)) as connected:
        await connected.put(b"k", b"v")
    assert calls(servers) == [PUT, PUT]


@pytest.mark.parametrize(
    "failure",
    [
        LEADER_CHANGED,
        (UNAVAILABLE, "etcdserver: request timed out"),
        (UNAVAILABLE, "etcdserver: server stopped"),
        (UNAVAILABLE, "etcdserver: no leader, perhaps"),
        (UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.UNKNOWN, "boom"),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ],
)
@pytest.mark.parametrize("kind", ["put", "delete", "txn", "compact", "member add", "member remove", "member update", "member promote"])
async def test_a_mutation_is_never_repeated_after_any_other_error(servers: list[Any], kind: str, failure: tuple[Any, str]) -> None:
    for server in servers:
        server.failures = [failure]
    async with client(*(each.endpoint for each in servers)) as connected:
        requests = {
            "put": lambda: connected.put(b"k", b"v"),
            "delete": lambda: connected.delete(b"k"),
            "compact": lambda: connected.compact(3),
            "member add": lambda: connected.member_add(["http://a:1"]),
            "member remove": lambda: connected.member_remove(1),
            "member update": lambda: connected.member_update(1, ["http://a:1"]),
            "member promote": lambda: connected.member_promote(1),
            "txn": lambda: connected.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k"))])),
        }
        with pytest.raises(ServerError) as caught:
            await requests[kind]()
    assert caught.value.details == failure[1]
    assert len(calls(servers)) == 1


async def test_a_mutation_is_not_repeated_when_the_connection_breaks_under_it(servers: list[Any]) -> None:
    held = hold_first_call(servers)
    async with client(servers[0].endpoint, servers[1].endpoint) as connected:
        sent = asyncio.ensure_future(connected.put(b"k", b"v"))
        await held.wait()
        await next(server for server in servers if server.calls).stop()
        with pytest.raises(ServerError):
            await sent
    assert calls(servers) == [PUT]


async def test_a_read_is_repeated_when_the_connection_breaks_under_it(servers: list[Any]) -> None:
    held = hold_first_call(servers)
    async with client(servers[0].endpoint, servers[1].endpoint) as connected:
        sent = asyncio.ensure_future(connected.get(b"k"))
        await held.wait()
        await next(server for server in servers if server.calls).stop()
        await sent
    assert [server.calls for server in servers] == [[GET], [GET], []]


async def test_a_read_goes_to_another_endpoint_on_unavailability(servers: list[Any]) -> None:
    fail_first_call(servers, LEADER_CHANGED)
    async with client(*(each.endpoint for each in servers)) as connected:
        await connected.get(b"k")
    assert sorted(len(server.calls) for server in servers) == [0, 1, 1]


async def test_a_transaction_that_only_reads_is_a_read(servers: list[Any]) -> None:
    fail_first_call(servers, LEADER_CHANGED)
    inner = pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))])
    async with client(*(each.endpoint for each in servers)) as connected:
        await connected.txn(pb.TxnRequest(success=[pb.RequestOp(request_txn=inner)]))
    assert calls(servers) == [TXN, TXN]


async def test_a_read_that_no_endpoint_can_serve_ends_with_the_servers_word(servers: list[Any]) -> None:
    for server in servers:
        server.failures = [NO_LEADER] * 100
    async with client(*(each.endpoint for each in servers), call_timeout_s=0.4) as connected:
        with pytest.raises(ServerError) as caught:
            await connected.get(b"k")
    assert str(caught.value) == "etcdserver: no leader"
    assert 3 <= len(calls(servers)) <= 10  # the pauses double


async def test_a_read_is_not_repeated_after_a_refusal(servers: list[Any]) -> None:
    fail_first_call(servers, (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"))
    async with client(*(each.endpoint for each in servers)) as connected:
        with pytest.raises(ServerError, match=r"^etcdserver: mvcc: required revision has been compacted$"):
            await connected.get(b"k", revision=1)
    assert calls(servers) == [GET]


async def test_the_endpoint_that_works_is_kept(servers: list[Any]) -> None:
    await servers[0].stop()
    async with client(*(each.endpoint for each in servers[:2])) as connected:
        for _ in range(5):
            await connected.put(b"k", b"v")
    assert servers[1].calls == [PUT] * 5


async def test_a_restarted_server_is_found_again(servers: list[Any]) -> None:
    async with client(servers[0].endpoint) as connected:
        await connected.put(b"k", b"v")
        await servers[0].stop()
        restart = asyncio.ensure_future(servers[0].start())
        await connected.get(b"k")
        await restart
    assert calls(servers) == [PUT, GET]


async def test_nobody_there_says_who_and_why(servers: list[Any]) -> None:
    endpoints = [each.endpoint for each in servers[:2]]
    for server in servers:
        await server.stop()
    async with client(*endpoints, dial_timeout_s=0.3) as connected:
        with pytest.raises(ConnectError) as caught:
            await connected.put(b"k", b"v")
    assert caught.value.reasons == dict.fromkeys(endpoints, "connection refused")
    assert str(caught.value) == f"cannot connect: {endpoints[0]}: connection refused; {endpoints[1]}: connection refused"


async def test_a_call_that_takes_too_long_is_a_timeout(servers: list[Any]) -> None:
    servers[0].hang = True
    async with client(servers[0].endpoint, call_timeout_s=0.2) as connected:
        with pytest.raises(CallTimeoutError, match=r"^context deadline exceeded$"):
            await connected.put(b"k", b"v")
        with pytest.raises(CallTimeoutError):
            await connected.call(RANGE, pb.RangeRequest(key=b"k"), timeout_s=0.1)
    assert calls(servers) == [PUT, GET]


async def test_an_oversized_request_never_leaves(servers: list[Any]) -> None:
    async with client(servers[0].endpoint) as connected:
        with pytest.raises(ServerError) as caught:
            await connected.put(b"big", bytes(2_100_000))
    assert str(caught.value) == "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2100010 vs. 2097152)"
    assert calls(servers) == []


async def test_one_endpoint_can_be_asked_by_name_without_failover(servers: list[Any]) -> None:
    await servers[0].stop()
    async with client(*(each.endpoint for each in servers), dial_timeout_s=0.2) as connected:
        await connected.status(servers[1].endpoint)
        with pytest.raises(ConnectError):
            await connected.status(servers[0].endpoint)
        with pytest.raises(ValueError, match="not an endpoint of this client"):
            await connected.status("elsewhere:1")
    assert [len(server.calls) for server in servers] == [0, 1, 0]


async def test_leadership_is_moved_by_the_endpoint_named_and_asked_for_once(servers: list[Any]) -> None:
    servers[1].failures = [NO_LEADER]
    async with client(*(each.endpoint for each in servers)) as connected:
        with pytest.raises(ServerError, match=r"^etcdserver: no leader$"):
            await connected.move_leader(servers[1].endpoint, 7)
    assert [server.calls for server in servers] == [[], ["/etcdserverpb.Maintenance/MoveLeader"], []]


async def test_the_token_is_fetched_once_and_sent_with_every_call(servers: list[Any]) -> None:
    async with client(servers[0].endpoint, user="root", password="p") as connected:
        await connected.put(b"k", b"v")
        await connected.get(b"k")
    assert calls(servers) == ["/etcdserverpb.Auth/Authenticate", PUT, GET]
    assert [metadata.get("token") for metadata in servers[0].metadata] == [None, "secret", "secret"]


async def test_a_cluster_without_authentication_is_used_without_a_token(servers: list[Any]) -> None:
    servers[0].failures = [(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")]
    async with client(servers[0].endpoint, user="root", password="p") as connected:
        await connected.put(b"k", b"v")
    assert "token" not in servers[0].metadata[-1]


async def test_cancelling_a_call_leaves_nothing_behind(servers: list[Any]) -> None:
    held = hold_first_call(servers)
    before = len(asyncio.all_tasks())
    async with client(servers[0].endpoint) as connected:
        sent = asyncio.ensure_future(connected.put(b"k", b"v"))
        await held.wait()
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("dial ")]
    assert len(asyncio.all_tasks()) <= before + 3


KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.mark.parametrize("failure", [NO_LEADER, (UNAVAILABLE, "Connection reset by peer")])
async def test_a_renewal_is_repeated_whatever_became_of_it(servers: list[Any], failure: tuple[Any, str]) -> None:
    fail_first_call(servers, failure)
    async with client(*(each.endpoint for each in servers)) as connected:
        assert (await connected.lease_keep_alive_once(7)).TTL == 0
    assert calls(servers) == [KEEP_ALIVE, KEEP_ALIVE]


async def test_renewing_ends_with_the_lease_and_fails_at_once_if_it_can_not_begin(servers: list[Any]) -> None:
    async with client(servers[0].endpoint) as connected:
        assert [answer async for answer in connected.lease_keep_alive(7)] == []
        servers[0].failures = [(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")]
        with pytest.raises(ServerError, match="permission denied"):
            await anext(connected.lease_keep_alive(7))
    assert calls(servers) == [KEEP_ALIVE, KEEP_ALIVE]
