"""Finding the leader among the endpoints."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvserver.cli.move_leader import find_leader
from kvserver.client import CallTimeoutError, ClientError, ConnectError
from kvserver.pb import rpc_pb2 as pb

REFUSED = ConnectError({"down:1": "connection refused"})


def status(member_id: int, leader_id: int) -> pb.StatusResponse:
    return pb.StatusResponse(header=pb.ResponseHeader(member_id=member_id), leader=leader_id)


class Scripted:
    """Answers by endpoint; one without an answer hangs."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def status(self, endpoint: str) -> pb.StatusResponse:
        self.asked.append(endpoint)
        answer = self._answers.get(endpoint)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, ClientError):
            raise answer
        assert isinstance(answer, pb.StatusResponse)
        return answer


async def test_the_leader_is_the_one_that_names_itself() -> None:
    found = await find_leader(Scripted({"a:1": status(1, 2), "b:1": status(2, 2), "c:1": status(3, 2)}), ["a:1", "b:1", "c:1"])
    assert (found.endpoint, found.leader_id, found.failures) == ("b:1", 2, {})


async def test_neither_a_dead_nor_a_hanging_endpoint_is_in_the_way() -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(5):
        found = await find_leader(Scripted({"down:1": REFUSED, "b:1": status(2, 2)}), ["down:1", "hangs:1", "b:1"])
    assert (found.endpoint, found.failures) == ("b:1", {"down:1": REFUSED})
    assert asyncio.all_tasks() == before


async def test_without_a_leader_the_failures_come_in_the_order_of_the_endpoints() -> None:
    failures = {"late:1": CallTimeoutError(), "down:1": REFUSED}
    found = await find_leader(Scripted({"a:1": status(1, 0), **failures}), ["late:1", "a:1", "down:1"])
    assert (found.endpoint, list(found.failures.items())) == (None, list(failures.items()))


async def test_an_endpoint_given_twice_is_asked_once() -> None:
    client = Scripted({"a:1": status(1, 2)})
    await find_leader(client, ["a:1", "a:1"])
    assert client.asked == ["a:1"]


async def test_a_defect_in_one_question_is_not_hidden() -> None:
    with pytest.raises(AssertionError):
        await find_leader(Scripted({"a:1": "nonsense"}), ["a:1", "hangs:1"])
