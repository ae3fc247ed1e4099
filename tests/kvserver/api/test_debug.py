"""The Debug service: a member's page, whatever state the member is in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvserver import errors
from kvserver.api import encode_page
from kvserver.pb import debug_pb2


async def test_the_page_is_answered_as_json_and_nobody_else_is_asked(services: Any) -> None:
    answer = await services.call("Debug", "Memory", debug_pb2.MemoryRequest())
    assert json.loads(answer.json) == {"member": {"id": "a1"}, "term": 3}
    assert services.cluster.asked == [("raft_page",)]


async def test_a_learner_without_a_leader_answers(services: Any) -> None:
    services.cluster.is_learner, services.cluster.leader_id = True, 0
    assert (await services.call("Debug", "Memory", debug_pb2.MemoryRequest())).json


async def test_a_client_that_requires_a_leader_is_heeded(services: Any) -> None:
    services.cluster.leader_id = 0
    with pytest.raises(errors.NoLeaderError):
        await services.call("Debug", "Memory", debug_pb2.MemoryRequest(), metadata=(("hasleader", "true"),))


def test_what_json_has_not_got_is_a_defect_and_not_passed_on() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_page({"remaining_s": float("inf")})
