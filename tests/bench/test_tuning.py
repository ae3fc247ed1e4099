"""The tuning study: its plan, what is made of a run, how it is resumed, and (slow) a whole run."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import tuning_run
from bench.members import OutOfTimeError
from bench.pages import Look, largest
from bench.report import Settings
from bench.sampling import Sample
from bench.tuning import Study, in_plan_order, left_over, main, parse, shown_plan
from bench.tuning_plan import ENTRY_OVERHEAD_BYTES, FACTORS, MB, MIB, RATES_PER_S, Point, Way, estimate_s, plan
from bench.tuning_report import HEADER, as_json, markdown, noise, read, rows, write
from bench.tuning_run import Outcome, PhaseFigures, carry_out, figures, note_of, thinned, way_taken
from bench.workloads import LoadResult
from kvserver.config.parser import Run
from kvserver.config.parser import parse as parse_flags
from kvserver.testing.ports import PortAllocator

DEFAULT = plan(["default"])[0]
SETTINGS = Settings.here(began="today", versions={"kvserver": "kvserver 1"}, scale=1.0)


def phase(p99_ms: float = 9.0, puts: int = 100) -> PhaseFigures:
    return PhaseFigures(seconds=2.0, puts=puts, writes_per_s=puts / 2, p50_ms=3.0, p99_ms=p99_ms, longest_ms=20.0, failures=0)


PARTS = {"starting": phase(p99_ms=70.0), "applying": phase(p99_ms=30.0)}


def outcome(point: Point = DEFAULT, *, caught_up_s: float = 2.5, **values: object) -> Outcome:
    settings: dict[str, object] = {
        "is_complete": True,
        "took_s": 30.0,
        "phases": {"before": phase(), "away": phase(), "catch-up": phase(p99_ms=50.0), **PARTS},
        "up_s": 1.0,
        "ready_s": 2.6,
        "way": point.way.value,
        "leader_base_bytes": 40 * MB,
        "leader_peak_bytes": 90 * MB,
        "follower_peak_bytes": 110 * MB,
        "window_peak_bytes": 41 * MB,
        "window_peak_entries": 4_100,
        "leader_series": [(0.0, 40 * MB), (0.5, 90 * MB)],
    }
    return Outcome(point=point, caught_up_s=caught_up_s, **{**settings, **values})  # type: ignore[arg-type]


def row(each: Outcome) -> dict[str, str]:
    return dict(zip(HEADER, rows([each])[0], strict=True))


# --- the plan ----------------------------------------------------------------------------------------------------------------------------


def test_the_plan_has_every_level_of_the_issue_within_its_bounds() -> None:
    points = plan()
    assert {each.window_bytes for each in plan(["window-bytes"])} == {1 * MIB, 8 * MIB, 64 * MIB, 256 * MIB}
    assert {each.window_entries for each in plan(["window-entries"])} == {1, 500, 5_000, 50_000}
    assert {each.entry_bytes for each in plan(["entry"])} == {1_000, 10_000, 100_000, MB} == set(RATES_PER_S)
    assert {each.store_bytes for each in plan(["store"])} == {50 * MB, 500 * MB, 2_000 * MB}
    assert {each.delay_s for each in plan(["latency"])} == {0.0, 0.02}
    assert {each.way for each in plan(["way"])} == set(Way)
    assert len(points) <= 60
    assert sum(map(estimate_s, points)) < 45 * 60


def test_every_run_has_a_name_of_its_own_and_the_order_is_that_of_the_factors() -> None:
    points = plan()
    assert len({each.name for each in points}) == len(points)
    assert list(dict.fromkeys(each.factor for each in points)) == list(FACTORS)
    assert [each.factor for each in plan(["store", "way"])] == ["way"] * 6 + ["store"] * 6


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_what_a_laggard_has_to_be_helped_by_follows_from_its_lag_and_the_caps(scale: float) -> None:
    for point in plan(scale=scale):
        lag_bytes = point.away_puts * (point.entry_bytes + ENTRY_OVERHEAD_BYTES)
        fits = lag_bytes < point.window_bytes and point.away_puts < point.window_entries
        assert fits == (point.way is Way.MEMORY), point.name
        assert (point.retain_bytes == 0) == (point.way is Way.SNAPSHOT), point.name
        assert lag_bytes < 256 * MIB, point.name  # the WAL reaches back to it


def test_points_differ_from_the_default_only_in_what_their_factor_says() -> None:
    varied = {
        "default": {"repeat"},
        "way": {"lag_bytes", "window_bytes", "retain_bytes"},
        "window-bytes": {"lag_bytes", "window_bytes"},
        "window-entries": {"lag_bytes", "window_bytes", "window_entries"},
        "entry": {"entry_bytes", "window_bytes"},
        "store": {"store_bytes", "lag_bytes", "window_bytes", "retain_bytes"},
        "latency": {"delay_s", "is_relayed", "window_bytes", "retain_bytes"},
    }
    for point in plan():
        other = {each.name for each in dataclasses.fields(point) if getattr(point, each.name) != getattr(DEFAULT, each.name)}
        assert other <= varied[point.factor] | {"factor", "label", "way"}, point.name


def test_the_flags_are_those_of_the_point() -> None:
    point = Point(factor="x", label="y", way=Way.WAL, window_entries=0, window_bytes=5 * MB, retain_bytes=7)
    shown = " ".join(point.flags)
    assert "--log-window-entries=0 --log-window-bytes=5000000 --wal-retain-bytes=7" in shown


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.001])
def test_the_server_takes_the_flags_of_every_point(scale: float) -> None:
    for point in plan(scale=scale):
        invocation = parse_flags(point.flags, {})
        assert isinstance(invocation, Run)
        window = invocation.config.log_window
        assert (window.max_entries, window.max_bytes, window.peer_grace_s) == (point.window_entries, point.window_bytes, 120)
        assert invocation.config.wal_retain_bytes == point.retain_bytes


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--scale", "0"], ["--seconds", "x"], ["--total-seconds", "inf"]])
def test_a_wrong_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_plan_is_shown_with_its_estimate_and_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--only", "way", "--match", "by WAL", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "way: lag 120 MB, by WAL" in shown
    assert "snapshot" not in shown
    assert "2 runs, about" in shown
    assert not (tmp_path / "out").exists()


# --- one run's figures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wal", "snapshots", "expected"),
    [(0, 0, "memory"), (95, 0, "WAL"), (200, 0, "WAL"), (40, 0, "WAL and memory"), (0, 1, "snapshot"), (40, 2, "snapshot and WAL")],
)
def test_the_way_is_told_from_the_counters(wal: int, snapshots: int, expected: str) -> None:
    assert way_taken(wal_read_bytes=wal, snapshots=snapshots, lag_bytes=100) == expected


def test_a_phase_counts_the_puts_that_were_answered_within_it() -> None:
    done = LoadResult(began_s=0, ended_s=9, done_s=(1.0, 2.0, 3.0, 4.0), latencies_s=(0.9, 0.1, 0.3, 0.8), failures={"UNAVAILABLE": 2})
    found = figures(done, 2.0, 4.0)
    assert (found.puts, found.writes_per_s, found.failures) == (2, 1.0, 2)
    assert (found.p50_ms, found.p99_ms, found.longest_ms) == pytest.approx((100, 300, 300))
    assert figures(done, 5.0, 5.0).writes_per_s == 0


def test_the_last_answer_of_a_whole_load_counts() -> None:
    done = LoadResult(began_s=0, ended_s=2.001, done_s=(1.0, 2.0), latencies_s=(0.1, 0.2), failures={})
    assert figures(done, done.began_s, done.ended_s).puts == 2


def test_a_note_says_what_happened_and_how_the_log_ended() -> None:
    assert note_of(RuntimeError("m1 ended before it was ready:\nline\nlast line")) == "m1 ended before it was ready: last line"
    assert note_of(OutOfTimeError("out of time")) == "out of time"


def test_a_series_is_thinned_to_the_highest_of_each_step() -> None:
    samples = [Sample(at_s=10 + each / 10, rss_bytes=0, anonymous_bytes=each, file_bytes=0) for each in (-1, 0, 4, 2, 5, 6)]
    assert thinned(samples, 10.0) == [(0.0, 4), (0.5, 6)]


def test_the_largest_look_is_that_with_the_most_bytes_within_the_time() -> None:
    looks = [Look(at_s=each, entries=each, size_bytes=size) for each, size in ((1, 900), (2, 10), (3, 30), (4, 20))]
    assert largest(looks, 2, 4) == looks[2]
    assert largest(looks, 5, 6) is None


def test_a_run_without_enough_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10 * MB

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    found = carry_out(DEFAULT, tmp_path, 1.0, PortAllocator())
    assert not found.is_complete
    assert found.note.startswith("not run: needs")
    assert list(tmp_path.iterdir()) == []


# --- the report --------------------------------------------------------------------------------------------------------------------------


def test_a_row_tells_the_start_of_the_process_from_what_follows() -> None:
    shown = row(outcome())
    assert (shown["catch-up s"], shown["of it starting"], shown["applying"]) == ("2.50", "1.00", "1.50")
    assert (shown["p50 / p99 before, ms"], shown["p50 / p99 catching up"], shown["puts/s away"]) == ("3.00 / 9.00", "3.00 / 50.0", "50")
    assert shown["p99 of it starting / applying"] == "70.0 / 30.0"
    assert (shown["leader: MB before"], shown["peak MB"], shown["follower: peak MB"]) == ("40", "90", "110")
    assert (shown["window: peak MB"], shown["entries"], shown["note"]) == ("41", "4,100", "")


def test_a_row_says_when_the_laggard_was_helped_otherwise_and_when_the_run_was_cut() -> None:
    failed = dataclasses.replace(phase(), failures=3)
    assert row(outcome(phases={"away": failed, "catch-up": failed, "starting": failed}))["note"] == "6 failed puts"
    assert row(outcome(way="WAL"))["note"] == "meant to be by memory"
    lost = row(Outcome(point=DEFAULT, note="out of time while waiting for m1 to be ready"))
    assert (lost["catch-up s"], lost["puts/s away"], lost["p50 / p99 catching up"]) == ("-", "-", "-")
    assert lost["note"] == "out of time while waiting for m1 to be ready"


def test_the_noise_is_the_span_of_complete_repeats() -> None:
    runs = [outcome(), outcome(caught_up_s=3.5), Outcome(point=DEFAULT)]
    assert noise(runs).startswith("Over 2 runs: catch-up 2.50-3.50 s, p99 while catching up 50.0-50.0 ms")
    assert noise(runs[1:]) == ""


def test_the_section_has_a_table_per_factor_in_the_plan_s_order() -> None:
    text = markdown(SETTINGS, [outcome(plan(["store"])[0]), outcome(), outcome(plan(["way"])[2])])
    assert [line for line in text.splitlines() if line.startswith("###")] == ["### default", "### way", "### store"]
    assert sum(line.startswith("| --- |") for line in text.splitlines()) == 3
    assert "3 runs, 2 minutes" in text
    assert "not a measurement" not in text
    assert "not a measurement" in markdown(dataclasses.replace(SETTINGS, scale=0.1), [outcome()])


def test_what_is_written_is_read_back_whole(tmp_path: Path) -> None:
    runs = [outcome(), Outcome(point=plan(["way"])[1], note="cut")]
    write(tmp_path / "out", SETTINGS, runs)
    names = ["tuning-default-memory.svg", "tuning-default.svg", "tuning-way-memory.svg", "tuning-way.svg", "tuning.json", "tuning.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert read(tmp_path / "out") == (SETTINGS, runs)
    for name in names[:4]:
        assert ET.parse(tmp_path / "out" / name).getroot().tag.endswith("svg")
    assert as_json(SETTINGS, runs)["runs"][0]["leader_peak_bytes"] == 90 * MB
    assert read(tmp_path / "nothing") is None


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {}, "runs": []}', "[1]"])
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(ValueError, match="can't be resumed"):
        read(tmp_path)
    assert main(["--resume", "--plan", "--out", str(tmp_path)]) == 2
    assert "can't be resumed" in capsys.readouterr().err


def test_a_study_of_another_scale_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SETTINGS, [outcome()])
    assert main(["--resume", "--plan", "--scale", "0.5", "--out", str(tmp_path)]) == 2
    assert "has scale 1, not 0.5" in capsys.readouterr().err


# --- the study ---------------------------------------------------------------------------------------------------------------------------


def test_complete_runs_are_not_done_again_and_cut_ones_are() -> None:
    points = plan(["way"])
    assert left_over(points, [outcome(points[0]), Outcome(point=points[1])]) == points[1:]
    assert "6 runs" in shown_plan(points)


def test_the_study_writes_after_every_run_and_replaces_a_cut_one(tmp_path: Path) -> None:
    points = plan(["way"])[:2]
    seen: list[int] = []

    def run(point: Point, base: Path | None, seconds: float, ports: PortAllocator) -> Outcome:
        path = tmp_path / "tuning.json"
        seen.append(len(json.loads(path.read_text())["runs"]) if path.exists() else 0)
        return outcome(point)

    study = Study(parse(["--out", str(tmp_path)]), SETTINGS, [Outcome(point=points[1], note="cut"), outcome()])
    assert study.carry_out(points, run) == []
    assert seen == [0, 3]
    found = read(tmp_path)
    assert found is not None
    assert [each.point for each in found[1]] == [DEFAULT, *points]
    assert all(each.is_complete for each in found[1])


def test_a_run_that_would_not_end_in_time_is_not_begun(tmp_path: Path) -> None:
    points = plan(["way"])
    seconds = estimate_s(points[0]) * 2.5
    study = Study(parse(["--out", str(tmp_path), "--total-seconds", str(seconds)]), SETTINGS, [])
    runs: list[Point] = []

    def slow(point: Point, base: Path | None, seconds: float, ports: PortAllocator) -> Outcome:
        runs.append(point)
        return outcome(point, took_s=estimate_s(point) * 5)  # five times as slow as was thought: nothing else fits

    assert study.carry_out(points, slow) == points[1:]
    assert runs == points[:1]


def test_outcomes_stand_in_the_order_of_the_plan() -> None:
    points = plan(scale=0.1)
    assert [each.point for each in in_plan_order([outcome(each) for each in reversed(points)])] == points


def tiny(way: Way) -> Point:
    """A run of seconds, in which the lag is beyond the window when the way says so."""
    return next(each for each in plan(["latency"], 0.02) if each.way is way and each.delay_s)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("way", [Way.MEMORY, Way.WAL])
def test_a_run_goes_through_its_phases_and_tells_the_way(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_run, "QUIET_S", 0.0)
    point = tiny(way)
    if way is Way.MEMORY:
        point = dataclasses.replace(point, window_bytes=64 * MIB)  # a slow machine's start does not outgrow it
    found = carry_out(point, tmp_path, 100.0, PortAllocator())
    assert found.is_complete, found.note
    assert list(found.phases) == ["before", "away", "catch-up", "starting", "applying"]
    assert found.phases["catch-up"].puts == found.phases["starting"].puts + found.phases["applying"].puts > 0
    assert way.value in found.way
    assert found.phases["before"].p50_ms >= 40  # there and back
    assert found.phases["away"].puts == point.away_puts <= found.lag_entries
    assert found.up_s is not None
    assert found.caught_up_s is not None
    assert 0 < found.up_s <= found.caught_up_s
    assert 10 * MB < found.leader_base_bytes <= found.leader_peak_bytes < 1_000 * MB
    assert found.window_peak_bytes > 0
    assert found.leader_series
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.process
def test_a_study_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    script = Path(tuning_run.__file__).with_name("tuning.py")
    options = ["--only", "default", "--scale", "0.02", "--out", str(tmp_path / "out"), "--directory", str(tmp_path)]
    with subprocess.Popen([sys.executable, str(script), *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as study:
        assert study.stderr is not None
        assert "1/3" in study.stderr.readline()
        study.send_signal(signal.SIGTERM)
        study.communicate(timeout=60)
    assert study.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("kvserver-tuning-*"))
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [each for each in commands if str(tmp_path).encode() in each]
