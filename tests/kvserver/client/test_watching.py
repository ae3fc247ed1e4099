"""The client library's watch over servers that break: one sequence of messages, whatever happens to the connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from kvserver.client import Client, ClientConfig, ServerError, parse_endpoint
from kvserver.pb import rpc_pb2 as pb
from kvserver.pb.kv_pb2 import Event, KeyValue

UNAVAILABLE, DENIED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED
Script = list[pb.WatchResponse | tuple[grpc.StatusCode, str]]


def created(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(created=True, header=pb.ResponseHeader(revision=revision))


def told(*revisions: int, fragment: bool = False) -> pb.WatchResponse:
    events = [Event(kv=KeyValue(key=b"a", mod_revision=revision)) for revision in revisions]
    return pb.WatchResponse(events=events, fragment=fragment, header=pb.ResponseHeader(revision=revisions[-1]))


@dataclass
class Server:
    """Answers each stream from a script of its own; notes what it was asked."""

    scripts: list[Script]
    asked: list[pb.WatchCreateRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""

    async def watch(self, requests: AsyncIterator[pb.WatchRequest], context: Any) -> AsyncIterator[pb.WatchResponse]:
        self.metadata.append(dict(context.invocation_metadata()))
        self.asked.append((await anext(requests)).create_request)
        for step in self.scripts.pop(0):
            if isinstance(step, tuple):
                await context.abort(*step)
            yield step


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    started: list[grpc.aio.Server] = []

    async def start(*scripts: Script) -> Server:
        served, server = Server(list(scripts)), grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            served.watch, request_deserializer=pb.WatchRequest.FromString, response_serializer=pb.WatchResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.Watch", {"Watch": handler}),))
        served.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.append(server)
        return served

    yield start
    for server in started:
        await server.stop(None)


def client_of(*servers: Server) -> Client:
    return Client(ClientConfig(endpoints=tuple(parse_endpoint(each.endpoint) for each in servers)))


def end() -> pb.WatchResponse:
    return pb.WatchResponse(canceled=True, compact_revision=99, header=pb.ResponseHeader(revision=100))


async def revisions(client: Client, request: pb.WatchCreateRequest) -> list[list[int]]:
    async with client.watch(request, require_leader=True) as watch:
        return [[event.kv.mod_revision for event in message.events] async for message in watch]


async def test_it_goes_on_at_the_next_endpoint_behind_the_last_revision(serve: Any) -> None:
    one = await serve([created(5), told(6), told(7, 7), (UNAVAILABLE, "gone")])
    other = await serve([created(9), told(8), end()])
    async with client_of(one, other) as client:
        assert await revisions(client, pb.WatchCreateRequest(key=b"a", prev_kv=True)) == [[6], [7, 7], [8], []]
    assert [request.start_revision for request in (*one.asked, *other.asked)] == [0, 8]
    assert other.asked[0].prev_kv
    assert one.metadata[0]["hasleader"] == "true"


async def test_one_that_was_told_nothing_yet_goes_on_behind_its_creation(serve: Any) -> None:
    server = await serve([created(5), (UNAVAILABLE, "gone")], [(UNAVAILABLE, "gone")], [created(50), end()])
    async with client_of(server) as client:
        assert await revisions(client, pb.WatchCreateRequest(key=b"a")) == [[]]
    assert [request.start_revision for request in server.asked] == [0, 6, 6]


async def test_progress_moves_the_place_to_go_on_from(serve: Any) -> None:
    progress = pb.WatchResponse(header=pb.ResponseHeader(revision=40))
    server = await serve([created(5), progress, (UNAVAILABLE, "gone")], [created(50), end()])
    async with client_of(server) as client:
        assert await revisions(client, pb.WatchCreateRequest(key=b"a")) == [[], []]
    assert server.asked[1].start_revision == 41


async def test_fragments_are_one_message_and_half_of_them_are_asked_for_again(serve: Any) -> None:
    cut = [created(5), told(6, 6, fragment=True), (UNAVAILABLE, "gone")]
    whole = [created(7), told(6, 6, fragment=True), told(6), end()]
    server = await serve(cut, whole)
    async with client_of(server) as client:
        assert await revisions(client, pb.WatchCreateRequest(key=b"a", fragment=True)) == [[6, 6, 6], []]
    assert server.asked[1].start_revision == 6


async def test_a_stream_that_ends_in_peace_is_opened_again(serve: Any) -> None:
    server = await serve([created(5), told(6)], [created(7), end()])
    async with client_of(server) as client:
        assert await revisions(client, pb.WatchCreateRequest(key=b"a")) == [[6], []]


async def test_what_no_endpoint_can_mend_is_raised(serve: Any) -> None:
    server = await serve([(DENIED, "etcdserver: permission denied")])
    async with client_of(server) as client:
        with pytest.raises(ServerError, match="permission denied"):
            await revisions(client, pb.WatchCreateRequest(key=b"a"))


async def test_a_refused_watch_is_its_only_message(serve: Any) -> None:
    refused = pb.WatchResponse(watch_id=-1, created=True, canceled=True, cancel_reason="no")
    server = await serve([refused])
    async with client_of(server) as client, client.watch(pb.WatchCreateRequest(key=b"a")) as watch:
        assert [message.cancel_reason async for message in watch] == ["no"]
