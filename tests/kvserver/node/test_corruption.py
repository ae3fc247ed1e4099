"""Reports of damaged data: logged, and raised as an alarm as soon as somebody can."""

from __future__ import annotations

import asyncio

from kvserver.logs import Logger
from kvserver.node import corruption
from kvserver.node.corruption import CorruptionDesk
from kvserver.pb.rpc_pb2 import AlarmType


class Sink:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.raised: list[int] = []

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def raise_from_any_thread(self, kind: AlarmType.ValueType) -> None:
        self.raised.append(kind)


async def test_a_report_is_logged_and_raises_the_alarm() -> None:
    sink = Sink()
    desk = CorruptionDesk(Logger(sink))
    desk.attach(sink)
    assert sink.raised == []
    await asyncio.to_thread(desk.report, "db: the row 00ff of table 1 fails its checksum")
    assert sink.raised == [AlarmType.CORRUPT]
    assert "the row 00ff of table 1" in sink.lines[0]
    assert desk.report_count == 1


def test_what_was_found_before_the_member_ran_is_raised_when_it_does() -> None:
    sink = Sink()
    desk = CorruptionDesk(Logger(sink))
    desk.report("at the opening")
    assert sink.raised == []
    desk.attach(sink)
    assert sink.raised == [AlarmType.CORRUPT]


def test_a_damaged_range_does_not_fill_the_log() -> None:
    sink = Sink()
    desk = CorruptionDesk(Logger(sink))
    for _ in range(corruption.MAX_REPORTS + 50):
        desk.report("again")
    assert len(sink.lines) == corruption.MAX_REPORTS
