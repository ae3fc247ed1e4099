"""Tables, JSON and charts made from results."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.members import ETCD, KVSERVER, Program
from bench.report import (
    FAULT_HEADER,
    MEMORY_HEADER,
    Settings,
    as_json,
    fault_rows,
    markdown,
    memory_rows,
    slope_of_second_half,
    table,
    write,
)
from bench.sampling import Peak, Sample
from bench.scenarios import SCENARIOS, Fault, Job, Phase, RunResult, Scenario

MB = 1_000_000


def scenario(name: str) -> Scenario:
    return next(each for each in SCENARIOS if each.name == name)


def samples(*anonymous_mb: int, file_mb: int = 5) -> list[Sample]:
    return [
        Sample(at_s=100.0 + number, rss_bytes=(each + file_mb) * MB, anonymous_bytes=each * MB, file_bytes=file_mb * MB)
        for number, each in enumerate(anonymous_mb)
    ]


def phase(name: str, puts: int, seconds: float, *, p99_ms: float = 7, failures: int = 0, anonymous_mb: int = 0) -> Phase:
    failed = {"RESOURCE_EXHAUSTED": failures} if failures else {}
    peaks = {"m1": Peak(anonymous_bytes=anonymous_mb * MB), "m2": Peak(anonymous_bytes=1 * MB)}
    return Phase(name=name, seconds=seconds, puts=puts, writes_per_s=puts / seconds, p50_ms=1, p99_ms=p99_ms, failures=failed, peaks=peaks)


def healthy(system: Program = KVSERVER, scale: float = 1.0) -> RunResult:
    job = Job(scenario=scenario("one-unique"), clients=50, system=system, scale=scale)
    phases = [phase("load", 1000, 4.0, failures=3), phase("settled", 0, 3.0, anonymous_mb=41)]
    return RunResult(job=job, phases=phases, series={"m1": samples(30, 1837, 60)}, began_s=100, leader="m1", is_complete=True)


def killed() -> RunResult:
    job = Job(scenario=scenario("three-killed"), clients=10, system=ETCD)
    phases = [phase("before", 200, 5.0), phase("away", 1000, 10.0), phase("catch-up", 90, 3.0, p99_ms=1234), phase("settled", 0, 3.0)]
    series = {"m1": samples(30, 2000), "m2": samples(30, 2469), "m3": samples(20, 10)}
    return RunResult(
        job=job,
        phases=phases,
        series=series,
        began_s=100,
        leader="m1",
        affected="m2",
        event_s=11.44,
        snapshots_received=1,
        is_complete=True,
    )


def row(header: tuple[str, ...], cells: list[str]) -> dict[str, str]:
    return dict(zip(header, cells, strict=True))


def test_a_table_is_markdown_with_escaped_bars() -> None:
    assert table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"


def test_a_memory_row_shows_load_peaks_and_what_is_left_after() -> None:
    shown = row(MEMORY_HEADER, memory_rows([healthy()])[0])
    assert shown == {
        "scenario": "one-unique",
        "clients": "50",
        "system": "kvserver",
        "puts": "1000",
        "puts/s": "250",
        "p99 ms": "7",
        "peak RSS MB": "1,842",
        "peak anon MB": "1,837",
        "peak file MB": "5",
        "anon after, MB": "41",
        "failed puts": "3",
        "note": "",
    }


def test_a_fault_row_shows_the_rates_round_it_and_who_held_how_much() -> None:
    shown = row(FAULT_HEADER, fault_rows([healthy(), killed()])[0])
    assert shown == {
        "scenario": "three-killed",
        "system": "etcd",
        "puts/s before": "40",
        "puts/s away": "100",
        "puts/s during": "30",
        "p99 ms during": "1,234",
        "catch-up or snapshot, s": "11.4",
        "snapshots received": "1",
        "leader's peak anon MB": "2,000",
        "follower's peak anon MB": "2,469",
    }
    assert len(fault_rows([healthy(), killed()])) == 1


def test_a_run_that_got_nowhere_has_a_row_with_its_note() -> None:
    lost = RunResult(job=Job(scenario=scenario("three-slow"), clients=1, system=ETCD), note="out of time while waiting for m1 to be ready")
    shown = row(MEMORY_HEADER, memory_rows([lost])[0])
    assert (shown["puts/s"], shown["anon after, MB"], shown["note"]) == ("-", "-", lost.note)
    assert row(FAULT_HEADER, fault_rows([lost])[0])["catch-up or snapshot, s"] == "-"


def test_a_scaled_run_is_marked_as_no_measurement() -> None:
    settings = Settings.here(began="today", versions={"etcd": "etcd 3"}, scale=0.1)
    assert "not a measurement" in markdown(settings, [healthy(scale=0.1)])
    assert "not a measurement" not in markdown(Settings.here(began="today", versions={}, scale=1.0), [healthy()])


def test_the_slope_is_taken_over_the_second_half() -> None:
    assert slope_of_second_half(samples(0, 500, 900, 50, 50, 50)) == pytest.approx(0)
    assert slope_of_second_half(samples(0, 0, 10, 20)) == pytest.approx(10 * MB)


def test_everything_is_written_and_can_be_read_back(tmp_path: Path) -> None:
    settings = Settings.here(began="today", versions={"etcd": "etcd 3"}, scale=1.0)
    results = [healthy(), healthy(ETCD), killed()]
    write(tmp_path / "out", settings, results)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "memory-one-unique-50.svg",
        "memory-three-killed-10.svg",
        "memory.json",
        "memory.md",
    ]
    read = json.loads((tmp_path / "out" / "memory.json").read_text())
    assert read == as_json(settings, results)
    assert read["runs"][0]["peaks"]["m1"]["anonymous_bytes"] == 1837 * MB
    assert read["runs"][2]["is_complete"] is True


def test_the_chart_has_a_line_per_system_and_a_dashed_one_for_the_follower(tmp_path: Path) -> None:
    write(tmp_path, Settings.here(began="today", versions={}, scale=1.0), [healthy(), healthy(ETCD), killed()])
    both = ET.parse(tmp_path / "memory-one-unique-50.svg").getroot()
    lines = both.findall("{http://www.w3.org/2000/svg}polyline")
    assert len({line.get("stroke") for line in lines}) == len(lines) == 2
    follower = ET.parse(tmp_path / "memory-three-killed-10.svg").getroot()
    lines = follower.findall("{http://www.w3.org/2000/svg}polyline")
    assert [line.get("stroke-dasharray") for line in lines] == [None, "5 4"]
    assert lines[0].get("points") != lines[1].get("points")
    texts = [element.text for element in follower.findall("{http://www.w3.org/2000/svg}text")]
    assert "etcd, the killed follower" in texts


def test_every_fault_but_none_is_in_the_matrix() -> None:
    assert {each.fault for each in SCENARIOS} == set(Fault)
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
