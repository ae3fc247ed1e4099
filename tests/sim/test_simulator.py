"""The simulator itself: no promise is broken, a seed is a history, the command line replays and explores, everything is exercised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from random import Random, SystemRandom

import pytest

from kvserver.testing.sim import simulate
from kvserver.testing.sim.__main__ import main
from kvserver.testing.sim.disk import SimWal
from kvserver.testing.sim.kernel import Kernel, Trace, ViolationError
from raft.types import Entry, HardState, Index, NodeId, Term

CI_SEEDS = 40
FRESH_SEEDS = 5
SLOW_SEEDS = 2000
STRANDED_PER_SEED = 1 / 200
"""How often the known limit of membership changes (docs/architecture/simulator.md) may end a run early."""


def run_all(seeds: range, steps: int) -> Counter[str]:
    """Run them; the first violation fails with its replay."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        outcome = simulate(seed, steps=steps)
        assert not outcome.violation, f"{outcome.violation}\nreplay: python -m kvserver.testing.sim --seed {seed} --steps {steps} --nodes 5"
        counts.update(outcome.counts)
    return counts


def test_keeps_every_promise_and_exercises_everything() -> None:
    counts = run_all(range(CI_SEEDS), 1000)
    least = {
        "crashes": 50,
        "compactions (cap)": 100,
        "compactions (follower)": 50,
        "compactions (progress)": 10,
        "configurations applied": 100,
        "entries committed": 1000,
        "reads served": 200,
        "removed members stopped": 5,
        "snapshots installed": 10,
        "terms with a leader": 60,
        "transfers asked for": 50,
        "writes acknowledged": 500,
    }
    missing = {what: counts[what] for what, count in least.items() if counts[what] < count}
    assert not missing, missing
    assert counts["stranded by a membership change"] <= 1


def test_keeps_every_promise_with_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    first = SystemRandom().randrange(10**6, 10**9)
    with capsys.disabled():
        print(f"\nsimulator: fresh seeds {first}..{first + FRESH_SEEDS - 1}")
    run_all(range(first, first + FRESH_SEEDS), 1000)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_keeps_every_promise_in_clusters_of(nodes: int) -> None:
    for seed in range(5):
        outcome = simulate(seed, steps=600, nodes=nodes)
        assert not outcome.violation, f"--seed {seed} --steps 600 --nodes {nodes}: {outcome.violation}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_keeps_every_promise_over_many_seeds() -> None:
    counts = run_all(range(SLOW_SEEDS), 2000)
    assert counts["stranded by a membership change"] <= SLOW_SEEDS * STRANDED_PER_SEED


def test_same_seed_gives_the_same_trace_in_every_process() -> None:
    expected = simulate(11, steps=800).trace_hash
    command = [sys.executable, "-m", "kvserver.testing.sim", "--seed", "11", "--steps", "800", "--quiet"]
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
        assert expected in answer.stdout


def test_different_seeds_give_different_traces() -> None:
    assert simulate(1, steps=200).trace_hash != simulate(2, steps=200).trace_hash


def test_replay_shows_a_readable_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--steps", "300", "--core"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ +\d+\.\d{6} \d+ StateLeader of term \d+", shown, re.MULTILINE)
    assert "raft: " in shown
    assert shown.rstrip().endswith("seed 5: all promises kept")


def test_showing_the_trace_does_not_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "5", "--steps", "300", "--core"])
    assert simulate(5, steps=300).trace_hash in capsys.readouterr().out


def test_exploring_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0..3", "--steps", "200", "--jobs", "1"]) == 0
    assert "4 seeds, 0 failed" in capsys.readouterr().out


def test_a_failing_seed_is_printed_with_its_replay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.log.RaftLog.is_up_to_date", lambda self, index, term: 1 // 0)
    assert main(["--seeds", "3..3", "--steps", "300", "--jobs", "1"]) == 1
    assert "replay: python -m kvserver.testing.sim --seed 3 --steps 300 --nodes 5" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--seeds", "5"], ["--seeds", "9..1"], ["--seed", "1", "--nodes", "0"], []])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_events_run_in_order_of_time_then_of_scheduling() -> None:
    kernel = Kernel(Random(1), Trace())
    ran: list[str] = []
    for delay_us, name in ((20, "c"), (10, "a"), (10, "b")):
        kernel.after(delay_us, ran.append, name)
    for _ in range(3):
        kernel.run_one()
    assert ran == ["a", "b", "c"]
    assert kernel.now_us == 20


def _entry(index: int, term: int) -> Entry:
    return Entry(term=Term(term), index=Index(index))


def _recovered_last(wal: SimWal) -> int:
    seen: list[Entry] = []
    return wal.recover(Index(0), seen.append).last_index


def test_a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() -> None:
    survived = set()
    for seed in range(30):
        wal = SimWal(NodeId(1))
        wal.write([_entry(1, 1), _entry(2, 1)], HardState(term=Term(1)))
        wal.sync()
        wal.write([_entry(3, 1), _entry(4, 1)], None)
        wal.crash(Random(seed))
        survived.add(_recovered_last(wal))
    assert survived == {2, 3, 4}


def test_the_wal_refuses_to_overwrite_what_is_committed() -> None:
    wal = SimWal(NodeId(1))
    wal.write([_entry(1, 1), _entry(2, 1)], HardState(term=Term(1), commit=Index(2)))
    with pytest.raises(ViolationError, match="WAL rules"):
        wal.write([_entry(2, 2)], None)


def test_released_entries_are_not_read_back() -> None:
    wal = SimWal(NodeId(1))
    wal.write([_entry(1, 1), _entry(2, 1), _entry(3, 2)], HardState(term=Term(2), commit=Index(3)))
    wal.sync()
    wal.release(Index(2))
    seen: list[Entry] = []
    recovered = wal.recover(Index(3), seen.append)
    assert [entry.index for entry in seen] == [3]
    assert (recovered.first_index, recovered.prev_term, recovered.last_index) == (3, 1, 3)
