"""The Watch service over the hub: requests, messages, leaders and the end of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.api.guard import Guard
from kvserver.api.watch import LEADERLESS_TIMEOUTS, EncodedResponse, WatchService, options_of
from kvserver.errors import NoLeaderError, NotSupportedForLearnerError, StoppedError
from kvserver.pb.kv_pb2 import Event, KeyValue
from kvserver.pb.rpc_pb2 import ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse
from kvserver.watch import KeyRange, WatchHub, WatchLimits
from kvserver.watch.changes import Change
from raft.types import NO_NODE


@dataclass
class FakeBidi:
    """A client whose requests and whose window the test decides."""

    metadata: list[tuple[str, str]] = field(default_factory=list)
    requests: asyncio.Queue[WatchRequest | None] = field(default_factory=asyncio.Queue)
    answers: asyncio.Queue[WatchResponse] = field(default_factory=asyncio.Queue)
    window: asyncio.Event = field(default_factory=asyncio.Event)
    reads: int = 0

    task: asyncio.Task[None] | None = None
    cut_off_by: Exception | None = None

    async def read(self) -> AsyncGenerator[WatchRequest, None]:
        while True:
            self.reads += 1
            if (request := await self.requests.get()) is None:
                return
            yield request

    def cut_off(self, error: Exception) -> None:
        self.cut_off_by = error
        assert self.task is not None
        self.task.cancel()

    async def serve(self, service: WatchService) -> None:
        """As the wire does it."""
        try:
            async with aclosing(self.read()) as requests, aclosing(service.watch(requests, self)) as responses:  # type: ignore[arg-type]
                async for response in responses:
                    await self.window.wait()
                    self.answers.put_nowait(WatchResponse.FromString(response.SerializeToString()))
        except asyncio.CancelledError:
            if self.cut_off_by is None:
                raise
            raise self.cut_off_by from None

    def ask(self, **request: Any) -> None:
        self.requests.put_nowait(WatchRequest(**request))

    async def next(self) -> WatchResponse:
        async with asyncio.timeout(5):
            return await self.answers.get()


@dataclass
class Serving:
    services: Any
    service: WatchService
    hub: WatchHub
    call: FakeBidi
    task: asyncio.Task[None]

    async def end(self) -> BaseException:
        """What the stream ended with."""
        async with asyncio.timeout(5):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - the test looks at it
                await self.task
        return caught.value


@pytest.fixture
async def serving(services: Any) -> AsyncIterator[Any]:
    made: list[Serving] = []

    def serve(metadata: list[tuple[str, str]] | None = None, **limits: int) -> Serving:
        cluster = services.cluster
        hub = WatchHub(cluster, WatchLimits(**limits))
        guard = Guard(view=cluster, clock=services.clock, request_timeout_s=5.0)
        service = WatchService(guard=guard, hub=hub, view=cluster, election_timeout_s=0.01, random=Random(1), progress_s=0.02)
        call = FakeBidi(metadata or [])
        call.window.set()
        task = call.task = asyncio.create_task(call.serve(service))
        made.append(Serving(services, service, hub, call, task))
        return made[-1]

    yield serve
    for each in made:
        each.task.cancel()
        await asyncio.wait([each.task])
        assert (each.hub.stream_count, each.hub.held_bytes) == (0, 0)


async def test_requests_are_answered_with_the_members_header(serving: Any) -> None:
    call = serving().call
    call.ask(create_request=WatchCreateRequest(key=b"a"))
    call.ask()  # no request at all: passed over
    call.ask(create_request=WatchCreateRequest(key=b"b", range_end=b"a"))
    call.ask(cancel_request=WatchCancelRequest(watch_id=0))
    call.ask(progress_request=WatchProgressRequest())
    header = ResponseHeader(cluster_id=0xC1, member_id=0xA1, revision=9, raft_term=3)
    assert await call.next() == WatchResponse(header=header, created=True)
    refused = await call.next()
    assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
    assert await call.next() == WatchResponse(header=header, canceled=True)
    assert await call.next() == WatchResponse(header=header, watch_id=-1)


async def test_a_client_that_sends_no_more_is_still_told(serving: Any) -> None:
    call = serving().call
    call.ask(create_request=WatchCreateRequest(key=b"a", progress_notify=True))
    call.requests.put_nowait(None)
    assert (await call.next()).created
    progress = await call.next()
    assert (progress.watch_id, progress.events) == (0, [])


async def test_requests_wait_while_the_client_takes_no_answers(serving: Any) -> None:
    each = serving(stream_bytes=4000)
    each.call.window.clear()
    for _ in range(200):
        each.call.ask(create_request=WatchCreateRequest(key=b"a"))
    await asyncio.sleep(0.01)
    assert each.hub.queued_bytes <= 4000
    assert each.call.reads < 20
    each.call.window.set()
    assert [(await each.call.next()).watch_id for _ in range(200)] == list(range(200))


async def test_a_stream_that_requires_a_leader_ends_when_there_is_none_for_long(serving: Any, services: Any) -> None:
    strict, lax = serving([("hasleader", "true")]), serving()
    strict.call.ask(create_request=WatchCreateRequest(key=b"a"))
    assert (await strict.call.next()).created
    services.cluster.leader_id = NO_NODE
    began_s = asyncio.get_running_loop().time()
    assert isinstance(await strict.end(), NoLeaderError)
    assert asyncio.get_running_loop().time() - began_s >= 0.01 * (LEADERLESS_TIMEOUTS - 1)
    lax.call.ask(create_request=WatchCreateRequest(key=b"a"))
    assert (await lax.call.next()).created


@pytest.mark.parametrize(("leaderless", "learner", "error"), [(True, False, NoLeaderError), (False, True, NotSupportedForLearnerError)])
async def test_who_may_not_watch_hears_so_at_once(
    serving: Any, services: Any, leaderless: bool, learner: bool, error: type[Exception]
) -> None:
    if leaderless:
        services.cluster.leader_id = NO_NODE
    services.cluster.is_learner = learner
    each = serving([("hasleader", "true")])
    with pytest.raises(error):
        await each.task


async def test_the_end_of_the_member_ends_the_stream(serving: Any) -> None:
    each = serving()
    await asyncio.sleep(0)
    each.hub.stop(StoppedError())
    assert isinstance(await each.end(), StoppedError)


@pytest.mark.parametrize(
    ("key", "end", "keys"),
    [
        (b"", b"", KeyRange(b"\x00", b"\x00\x00")),
        (b"", b"\x00", KeyRange(b"\x00", None)),
        (b"a", b"", KeyRange(b"a", b"a\x00")),
        (b"a", b"\x00", KeyRange(b"a", None)),
        (b"a", b"b", KeyRange(b"a", b"b")),
    ],
)
def test_ranges_mean_what_they_mean_in_etcd(key: bytes, end: bytes, keys: KeyRange) -> None:
    assert options_of(WatchCreateRequest(key=key, range_end=end)).keys == keys


async def test_what_is_no_request_ends_the_stream_with_its_error(serving: Any) -> None:
    each = serving()

    class BrokenError(Exception):
        pass

    async def broken() -> AsyncGenerator[WatchRequest, None]:
        yield WatchRequest(create_request=WatchCreateRequest(key=b"a"))
        raise BrokenError

    async with aclosing(each.service.watch(broken(), each.call)) as responses:
        with pytest.raises(BrokenError):
            async for _ in responses:
                pass


PAIRS = st.builds(KeyValue, key=st.binary(min_size=1, max_size=9), value=st.binary(max_size=300), mod_revision=st.integers(1, 1 << 62))


@given(events=st.lists(st.tuples(PAIRS, st.none() | PAIRS, st.booleans()), max_size=4))
def test_a_message_put_together_is_the_message(events: list[tuple[KeyValue, KeyValue | None, bool]]) -> None:
    changes = [
        Change(1, b"", kv.SerializeToString(), None if previous is None else memoryview(previous.SerializeToString()), is_delete=gone)
        for kv, previous, gone in events
    ]
    expected = WatchResponse(watch_id=3)
    for kv, previous, gone in events:
        expected.events.append(Event(type=Event.DELETE if gone else Event.PUT, kv=kv, prev_kv=previous))
    chunks = tuple(change.full_chunk for change in changes)
    assert EncodedResponse(WatchResponse(watch_id=3), chunks).SerializeToString() == expected.SerializeToString()
