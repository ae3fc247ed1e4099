"""Raising an alarm: proposed once at a time, until it is applied; and what the log says of alarms."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kvserver.commands import CommandKind
from kvserver.errors import NoLeaderError, NoSpaceError, RequestError, RequestTimeoutError, StoppedError, TooManyRequestsError
from kvserver.logs import Logger
from kvserver.node import alarms as alarms_module
from kvserver.node.alarms import AlarmLog, AlarmRaiser
from kvserver.pb.rpc_pb2 import CORRUPT, NOSPACE, AlarmMember, AlarmRequest, AlarmResponse
from kvserver.types import NodeId

MEMBER = NodeId(7)


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


class FakeCluster:
    """Answers each proposal with the next of `answers` (applied when there is none), when `free` is set."""

    def __init__(self, *answers: RequestError) -> None:
        self.answers = list(answers)
        self.free = asyncio.Event()
        self.free.set()
        self.asked = asyncio.Event()
        self.applied = asyncio.Event()
        self.proposed: list[AlarmRequest] = []
        self.raised: set[tuple[int, int]] = set()

    async def propose(self, kind: CommandKind, request: Any, *, deadline_s: float) -> Any:
        assert kind is CommandKind.ALARM
        assert deadline_s > asyncio.get_running_loop().time()
        self.proposed.append(request)
        self.asked.set()
        await self.free.wait()
        if self.answers:
            raise self.answers.pop(0)
        self.raised.add((request.memberID, request.alarm))
        self.applied.set()
        return AlarmResponse()

    def is_raised(self, alarm: AlarmMember) -> bool:
        return (alarm.memberID, alarm.alarm) in self.raised

    def raiser(self, log: Logger) -> AlarmRaiser:
        return AlarmRaiser(member_id=MEMBER, proposals=self, is_raised=self.is_raised, attempt_timeout_s=5.0, log=log)


@pytest.fixture
def log() -> Logger:
    return Logger(SilentOutput())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(alarms_module, "MAX_PAUSE_S", 0.004)


def soon(delay_s: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + delay_s


async def test_the_alarm_is_raised_for_this_member(log: Logger) -> None:
    cluster = FakeCluster()
    assert await cluster.raiser(log).wait_raised(NOSPACE, deadline_s=soon())
    assert cluster.proposed == [AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=MEMBER, alarm=NOSPACE)]


async def test_those_who_come_meanwhile_share_the_proposal(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.free.clear()
    raiser = cluster.raiser(log)
    waiting = [asyncio.create_task(raiser.wait_raised(NOSPACE, deadline_s=soon())) for _ in range(50)]
    raiser.raise_alarm(CORRUPT)
    await cluster.asked.wait()
    cluster.free.set()
    assert all(await asyncio.gather(*waiting))
    assert sorted(request.alarm for request in cluster.proposed) == [NOSPACE, CORRUPT]


async def test_an_alarm_that_is_raised_is_not_proposed_and_one_that_was_disarmed_is(log: Logger) -> None:
    cluster = FakeCluster()
    raiser = cluster.raiser(log)
    for _ in range(3):
        assert await raiser.wait_raised(CORRUPT, deadline_s=soon())
    assert len(cluster.proposed) == 1
    cluster.raised.clear()
    assert await raiser.wait_raised(CORRUPT, deadline_s=soon())
    assert len(cluster.proposed) == 2


async def test_another_members_alarm_does_not_count(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.raised.add((MEMBER + 1, NOSPACE))
    assert await cluster.raiser(log).wait_raised(NOSPACE, deadline_s=soon())
    assert len(cluster.proposed) == 1


async def test_it_is_proposed_again_until_it_is_applied(log: Logger) -> None:
    failures = [NoLeaderError(), RequestTimeoutError(), TooManyRequestsError(), NoSpaceError()]
    cluster = FakeCluster(*failures)
    assert await cluster.raiser(log).wait_raised(CORRUPT, deadline_s=soon())
    assert len(cluster.proposed) == len(failures) + 1


async def test_an_attempt_with_an_unknown_outcome_that_was_applied_is_the_last(log: Logger) -> None:
    cluster = FakeCluster(RequestTimeoutError())
    raiser = cluster.raiser(log)
    cluster.free.clear()
    waiting = asyncio.create_task(raiser.wait_raised(NOSPACE, deadline_s=soon()))
    await cluster.asked.wait()
    cluster.raised.add((MEMBER, NOSPACE))
    cluster.free.set()
    assert await waiting
    assert len(cluster.proposed) == 1


async def test_attempts_have_pauses_between_them(log: Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        pauses.append(delay_s)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    cluster = FakeCluster(*[NoLeaderError() for _ in range(5)])
    assert await cluster.raiser(log).wait_raised(NOSPACE, deadline_s=soon())
    assert pauses == [0.001, 0.002, 0.004, 0.004, 0.004]


async def test_who_waits_is_let_go_at_the_deadline_while_the_attempt_goes_on(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.free.clear()
    raiser = cluster.raiser(log)
    assert not await raiser.wait_raised(NOSPACE, deadline_s=soon(0.01))
    assert not await raiser.wait_raised(NOSPACE, deadline_s=soon(-1))
    cluster.free.set()
    assert await raiser.wait_raised(NOSPACE, deadline_s=soon())
    assert len(cluster.proposed) == 1


async def test_cancelling_who_waits_does_not_cancel_the_alarm(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.free.clear()
    raiser = cluster.raiser(log)
    waiting = asyncio.create_task(raiser.wait_raised(NOSPACE, deadline_s=soon()))
    await cluster.asked.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    cluster.free.set()
    assert await raiser.wait_raised(NOSPACE, deadline_s=soon())
    assert len(cluster.proposed) == 1


async def test_stopping_gives_up(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.free.clear()
    raiser = cluster.raiser(log)
    waiting = asyncio.create_task(raiser.wait_raised(NOSPACE, deadline_s=soon()))
    await cluster.asked.wait()
    raiser.stop()
    assert not await waiting
    assert not await raiser.wait_raised(CORRUPT, deadline_s=soon())
    assert len(cluster.proposed) == 1


async def test_a_member_that_stops_ends_the_attempts(log: Logger) -> None:
    cluster = FakeCluster(StoppedError())
    assert not await cluster.raiser(log).wait_raised(NOSPACE, deadline_s=soon())
    assert len(cluster.proposed) == 1


async def test_other_threads_may_raise_too(log: Logger) -> None:
    cluster = FakeCluster()
    raiser = cluster.raiser(log)
    await asyncio.to_thread(raiser.raise_from_any_thread, CORRUPT)
    async with asyncio.timeout(10):
        await cluster.applied.wait()
    assert cluster.raised == {(MEMBER, CORRUPT)}


class Lines:
    """The lines of a log, as (event, alarm, from)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def write_line(self, line: str) -> None:
        entry = json.loads(line)
        self.found.append((entry["msg"], entry["alarm"], entry["from"]))

    def take(self) -> list[tuple[str, str, str]]:
        """What came since the last look."""
        found, self.found = self.found, []
        return found


def alarm(member: int, kind: int) -> AlarmMember:
    return AlarmMember(memberID=member, alarm=kind)  # type: ignore[arg-type]


def test_every_change_of_the_alarms_is_logged_once_with_its_kind_and_the_member_in_hexadecimal() -> None:
    lines = Lines()
    log = AlarmLog((), Logger(lines))
    log.note((alarm(0xAB, NOSPACE),))
    assert lines.take() == [("alarm raised", "NOSPACE", "ab")]
    log.note((alarm(0xAB, NOSPACE), alarm(2**64 - 1, CORRUPT)))
    assert lines.take() == [("alarm raised", "CORRUPT", "f" * 16)]
    log.note((alarm(0xAB, NOSPACE), alarm(2**64 - 1, CORRUPT)))
    assert lines.take() == []
    log.note((alarm(2**64 - 1, CORRUPT),))
    assert lines.take() == [("alarm disarmed", "NOSPACE", "ab")]


def test_what_a_snapshot_changed_is_logged_alarm_by_alarm() -> None:
    lines = Lines()
    log = AlarmLog((alarm(1, NOSPACE), alarm(2, NOSPACE)), Logger(lines))
    assert lines.take() == [("alarm raised before this start", "NOSPACE", "1"), ("alarm raised before this start", "NOSPACE", "2")]
    log.note((alarm(2, NOSPACE), alarm(3, 77)))
    assert lines.take() == [("alarm raised", "77", "3"), ("alarm disarmed", "NOSPACE", "1")]


async def test_hastening_begins_an_attempt_anew_that_would_have_taken_long(log: Logger) -> None:
    cluster = FakeCluster()
    cluster.free.clear()
    raiser = cluster.raiser(log)
    raiser.raise_alarm(CORRUPT)
    await cluster.asked.wait()
    cluster.asked.clear()
    raiser.hasten(0.5)
    await cluster.asked.wait()
    raiser.raise_alarm(CORRUPT)
    assert not await raiser.wait_raised(CORRUPT, deadline_s=soon(0.01))
    assert len(cluster.proposed) == 2, "the attempt that was given up takes the memory of the new one along"
    cluster.free.set()
    assert await raiser.wait_raised(CORRUPT, deadline_s=soon())
    assert len(cluster.proposed) == 2
