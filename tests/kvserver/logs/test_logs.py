"""Log lines: their form, their levels, and that nothing a caller passes can break them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.clock import MonotonicSeconds
from kvserver.logs import Level, Logger, RaftLogSink, StdlibBridge, open_outputs


class Lines:
    """A destination that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_line(self, line: str) -> None:
        assert "\n" not in line
        self.lines.append(line)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=_refuse_constant) for line in self.lines]


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


class FixedClock:
    def monotonic_s(self) -> MonotonicSeconds:
        return MonotonicSeconds(0.0)

    def wall_ns(self) -> int:
        return 1_700_000_000_123_456_789


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_line_has_level_time_caller_message_then_fields(lines: Lines) -> None:
    logger = Logger(lines, clock=FixedClock()).bind(member_id="a1")
    logger.info("became leader", term=7)
    assert list(lines.records[0].items()) == [
        ("level", "info"),
        ("ts", "2023-11-14T22:13:20.123Z"),
        ("caller", lines.records[0]["caller"]),
        ("msg", "became leader"),
        ("member_id", "a1"),
        ("term", 7),
    ]
    assert lines.records[0]["caller"].startswith("logs/test_logs.py:")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warn", "error", "fatal"]),
        ("info", ["info", "warn", "error", "fatal"]),
        ("warn", ["warn", "error", "fatal"]),
        ("error", ["error", "fatal"]),
        ("panic", ["fatal"]),
    ],
)
def test_only_what_reaches_the_level_is_written(lines: Lines, level: str, written: list[str]) -> None:
    logger = Logger(lines, level=Level.named(level))
    for write in (logger.debug, logger.info, logger.warning, logger.error, logger.fatal):
        write("x")
    assert [record["level"] for record in lines.records] == written


def test_an_error_carries_its_text_and_traceback(lines: Lines) -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        Logger(lines).error("failed", error=error, path="/x")
    record = lines.records[0]
    assert (record["error"], record["path"]) == ("broken", "/x")
    assert "test_logs.py" in record["stacktrace"]


def test_fields_can_not_replace_the_lines_own_keys(lines: Lines) -> None:
    Logger(lines).info("m", level="x", msg="y")
    assert (lines.records[0]["level"], lines.records[0]["msg"], lines.records[0]["msg_"]) == ("info", "m", "y")


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\x00",
        {1, 2},
        float("nan"),
        float("inf"),
        {(1, 2): 3},
        Hostile(),
        [Hostile()],
        object(),
        "\ud800",
        "a\nb",
        1 << 70,
        None,
        Path("/"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown(lines: Lines, value: object) -> None:
    Logger(lines).info("m", value=value, other=1)
    assert lines.records[0]["msg"] == "m"
    assert "value" in lines.records[0]


def test_a_value_that_contains_itself_is_shown(lines: Lines) -> None:
    loop: list[object] = []
    loop.append(loop)
    Logger(lines).info("m", value=loop)
    assert lines.records[0]["msg"] == "m"


def test_a_long_field_is_cut(lines: Lines) -> None:
    Logger(lines).info("m", text="x" * 1_000_000, data=b"x" * 1_000_000)
    assert len(lines.lines[0]) < 40_000


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.binary() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner),
    max_leaves=5,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), json_like, max_size=3))
def test_every_line_is_json(fields: dict[str, object]) -> None:
    lines = Lines()
    Logger(lines).info("m", **fields)
    assert lines.records[0]["msg"] == "m"


def test_a_destination_that_fails_loses_the_line_and_counts_it() -> None:
    class Full:
        def write_line(self, line: str) -> None:
            raise OSError(28, "No space left on device")

    logger = Logger(Full())
    logger.info("m")
    logger.bind(a=1).info("m")
    assert logger.lost_lines == 2


def test_outputs_go_to_files_and_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    output = open_outputs(["stdout", "default", str(path)])
    output.write_line("x")
    output.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err, path.read_text()) == ("x\n", "x\n", "x\n")


def test_library_logs_become_ours(lines: Lines) -> None:
    before = logging.getLogger().handlers[:]
    with StdlibBridge(Logger(lines)).installed():
        logging.getLogger("some.library").warning("%d things", 3)
        logging.getLogger("some.library").warning("%d things", "three")
        logging.getLogger("some.library").info("too much")
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("asyncio").exception("task failed")
    assert logging.getLogger().handlers == before
    assert [(record["level"], record["msg"], record["logger"]) for record in lines.records] == [
        ("warn", "3 things", "some.library"),
        ("warn", "%d things", "some.library"),
        ("error", "task failed", "asyncio"),
    ]
    assert lines.records[2]["error"] == "broken"


@pytest.mark.parametrize(
    ("call", "level"),
    [(RaftLogSink.debug, "debug"), (RaftLogSink.info, "info"), (RaftLogSink.warning, "warn"), (RaftLogSink.error, "error")],
)
def test_rafts_lines_become_ours(lines: Lines, call: Callable[[RaftLogSink, str], None], level: str) -> None:
    call(RaftLogSink(Logger(lines, level=Level.DEBUG)), "1 became leader at term 2")
    assert [(record["level"], record["msg"], record["caller"]) for record in lines.records] == [
        (level, "1 became leader at term 2", "raft")
    ]
