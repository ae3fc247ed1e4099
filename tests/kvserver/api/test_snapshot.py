"""Maintenance.Snapshot: the messages of the stream, who may ask, and a client that takes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from kvserver.api.guard import Guard
from kvserver.api.snapshot import CHUNK_BYTES, SnapshotService
from kvserver.errors import RequestTimeoutError, SnapshotFailedError, TooManyRequestsError
from kvserver.pb import rpc_pb2
from tests.kvserver.api.conftest import REQUEST_TIMEOUT_S, FakeCall, FakeClock, FakeCluster

CONTENT = os.urandom(2 * CHUNK_BYTES + 4096)


class FakeSource:
    """Hands out the content, and knows how many hold it."""

    def __init__(self) -> None:
        self.held = 0
        self.reads: list[tuple[int, int]] = []
        self.deadlines_s: list[float] = []
        self.refuses: Exception | None = None
        self.breaks_at: int | None = None

    size_bytes = len(CONTENT)
    sha256 = hashlib.sha256(CONTENT).digest()

    async def read(self, offset: int, length_bytes: int) -> bytes:
        self.reads.append((offset, length_bytes))
        if offset == self.breaks_at:
            raise SnapshotFailedError
        return CONTENT[offset : offset + length_bytes]

    @asynccontextmanager
    async def open(self, *, deadline_s: float) -> AsyncIterator[FakeSource]:
        self.deadlines_s.append(deadline_s)
        if self.refuses is not None:
            raise self.refuses
        self.held += 1
        try:
            yield self
        finally:
            self.held -= 1


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


class StalledCall(FakeCall):
    """Notes with what it was cut off."""

    def __init__(self, **call: Any) -> None:
        super().__init__(**call)
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def cut_off(self, error: Exception) -> None:
        self.ended.set_result(error)


def service(source: FakeSource, cluster: FakeCluster | None = None, stall_s: float = 60.0) -> SnapshotService:
    guard = Guard(view=cluster or FakeCluster(), clock=FakeClock(), request_timeout_s=REQUEST_TIMEOUT_S)
    return SnapshotService(guard=guard, source=source, stall_s=stall_s)


async def all_of(served: SnapshotService, **call: Any) -> list[rpc_pb2.SnapshotResponse]:
    return [answer async for answer in served.snapshot(rpc_pb2.SnapshotRequest(), StalledCall(**call))]


async def test_the_content_comes_in_bounded_chunks_and_the_checksum_behind_it(source: FakeSource) -> None:
    answers = await all_of(service(source))
    assert b"".join(answer.blob for answer in answers) == CONTENT + source.sha256
    assert answers[-1].blob == source.sha256
    assert [answer.remaining_bytes for answer in answers] == [CHUNK_BYTES + 4096, 4096, 0, 0]
    assert max(len(answer.blob) for answer in answers) == CHUNK_BYTES
    assert {answer.version for answer in answers} == {"3.6.0"}
    assert source.held == 0


async def test_the_next_chunk_is_read_when_the_last_was_taken(source: FakeSource) -> None:
    async with aclosing(service(source).snapshot(rpc_pb2.SnapshotRequest(), StalledCall())) as answers:
        await anext(answers)
        await asyncio.sleep(0)
        assert source.reads == [(0, CHUNK_BYTES)]
        assert source.held == 1
    assert source.held == 0


async def test_a_learner_answers_and_nobody_needs_a_leader(source: FakeSource) -> None:
    assert len(await all_of(service(source, FakeCluster(is_learner=True)))) == 4


async def test_the_deadline_is_the_clients_or_the_servers(source: FakeSource) -> None:
    await all_of(service(source))
    await all_of(service(source), deadline_s=101.0)
    assert source.deadlines_s == [100.0 + REQUEST_TIMEOUT_S, 101.0]


async def test_refusals_and_failures_reach_the_client(source: FakeSource) -> None:
    source.breaks_at = CHUNK_BYTES
    with pytest.raises(SnapshotFailedError):
        await all_of(service(source))
    assert source.held == 0
    source.refuses = TooManyRequestsError()
    with pytest.raises(TooManyRequestsError):
        await all_of(service(source))


async def test_a_client_that_takes_nothing_is_cut_off(source: FakeSource) -> None:
    call = StalledCall()
    async with aclosing(service(source, stall_s=0.05).snapshot(rpc_pb2.SnapshotRequest(), call)) as answers:
        await anext(answers)
        async with asyncio.timeout(30):
            assert isinstance(await call.ended, RequestTimeoutError)
    assert source.held == 0


async def test_a_client_that_takes_its_time_but_goes_on_is_not_cut_off(source: FakeSource) -> None:
    taken = 0
    async with aclosing(service(source, stall_s=5.0).snapshot(rpc_pb2.SnapshotRequest(), StalledCall())) as answers:
        async for _ in answers:
            taken += 1
            await asyncio.sleep(0.01)
    assert taken == 4
