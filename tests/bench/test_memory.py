"""The plan of a comparison, its workloads, and (slow) whole runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.members import KVSERVER, SYSTEMS, Deadline, OutOfTimeError
from bench.memory import carry_out, needed_bytes, parse, plan
from bench.scenarios import SCENARIOS, Job
from bench.workloads import FEWEST_PUTS, LoadResult, Workload
from kvserver.testing.ports import PortAllocator


def scenario_of(name: str, **options: object) -> Job:
    scenario = next(each for each in SCENARIOS if each.name == name)
    return Job(scenario=scenario, clients=4, system=KVSERVER, **options)  # type: ignore[arg-type]


def test_systems_take_turns_within_a_scenario() -> None:
    options = parse(["--only", "one-unique,three-killed", "--clients", "1,8"])
    jobs = [(job.scenario.name, job.clients, job.system.name) for job in plan(options, list(SYSTEMS))]
    assert jobs[:4] == [("one-unique", 1, "kvserver"), ("one-unique", 1, "etcd"), ("one-unique", 8, "kvserver"), ("one-unique", 8, "etcd")]
    assert len(jobs) == 8


def test_without_a_choice_all_scenarios_run_with_their_own_clients() -> None:
    jobs = plan(parse([]), ["kvserver"])
    assert [(job.scenario.name, job.clients) for job in jobs] == [(each.name, clients) for each in SCENARIOS for clients in each.clients]


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--systems", "redis"], ["--clients", "0"], ["--clients", "x"]])
def test_a_wrong_choice_is_refused_with_the_right_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_scaled_workload_keeps_its_values_and_some_puts() -> None:
    job = scenario_of("three-100k", scale=0.1)
    assert job.workload == Workload(puts=1_500, value_bytes=100_000, clients=4)
    assert scenario_of("three-100k", scale=1e-6).workload.puts == FEWEST_PUTS


def test_a_run_without_enough_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = scenario_of("three-unique")
    assert needed_bytes(job) == 9_000_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=1 << 30))
    result = carry_out(job, tmp_path, 1.0, PortAllocator())
    assert not result.is_complete
    assert result.note == "not run: needs 8 GiB of disk, 1 are free"
    assert list(tmp_path.iterdir()) == []


def test_puts_are_counted_in_half_open_spans() -> None:
    load = LoadResult(began_s=0, ended_s=4, done_s=(1.0, 2.0, 3.0), latencies_s=(), failures={})
    assert (load.puts_between(1.0, 3.0), load.puts_between(3.1, 9)) == (2, 0)


def test_a_deadline_says_what_was_waited_for() -> None:
    Deadline(60).check("nothing")
    with pytest.raises(OutOfTimeError, match="a leader"):
        Deadline(0).check("a leader")
    assert Deadline(0).left_s() == 0


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", ["one-snapshot", "three-killed-10k", "three-stopped", "three-slow"])
def test_a_run_goes_through_its_phases_and_samples_every_member(name: str, tmp_path: Path) -> None:
    job = scenario_of(name, scale=0.02)
    result = carry_out(job, tmp_path, 100.0, PortAllocator())
    assert result.is_complete, result.note
    names = ["load", "snapshot", "settled"] if name == "one-snapshot" else ["before", "away", "catch-up", "settled"]
    assert [phase.name for phase in result.phases] == names
    assert all(phase.writes_per_s > 0 for phase in result.phases[:-2])
    assert result.event_s is not None
    assert len(result.series) == job.scenario.nodes
    assert all(10_000_000 < result.peak(member).anonymous_bytes < 1_000_000_000 for member in result.series)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.process
def test_a_run_that_is_cut_by_its_time_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    result = carry_out(scenario_of("one-5000"), tmp_path, 6.0, PortAllocator())
    assert not result.is_complete
    assert result.note.startswith("out of time")
    assert list(tmp_path.iterdir()) == []
