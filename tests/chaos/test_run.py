"""Real processes: a short run keeps every promise, its history is worth judging, and servers with a mistake are found out."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from kvserver.testing.chaos import FaultKind, Findings, Load, Plan, ViolationKind, check, leftovers, load, run, summarize
from kvserver.testing.chaos.__main__ import main
from kvserver.testing.chaos.files import END, OPERATIONS
from tests.chaos.planted import PLANTED, Planted, spoiled
from tests.chaos.planted_server import MISTAKES
from tests.chaos.targets import NoTargetError

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SERVER = Path(__file__).with_name("planted_server.py")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a run with every way of killing two or all; its history is good or the tests below say why not."""
    directory = tmp_path_factory.mktemp("chaos")
    only = frozenset({FaultKind.LEADER, FaultKind.STOPPED_THEN_KILLED, FaultKind.CATCH_UP})
    plan = Plan(directory=directory, seed=4, kills=6, only=only, load=Load(rate_per_s=50.0, clients=6, value_size_bytes=64))
    try:
        run(plan, print)
        yield directory
    finally:
        assert leftovers(directory) == []
        shutil.rmtree(directory, ignore_errors=True)


def test_a_short_run_keeps_every_promise(short_run: Path) -> None:
    history = load(short_run / "history")
    assert check(history).lines() == []
    summary = summarize(history)
    assert summary.kills >= 6
    assert summary.writes_acknowledged > 150
    assert summary.linearizable_reads > 50
    assert set(history.ends) == {"kv1", "kv2", "kv3"}


def find_planted(directory: Path, chosen: Sequence[Planted]) -> int:
    """How many of the mistakes could be planted; every one that was must be found."""
    found = 0
    history = load(directory / "history")
    for planted in chosen:
        try:
            bad = spoiled(planted, history, Random(1))
        except NoTargetError:
            continue
        findings = check(bad)
        assert any(each.kind is planted.kind and planted.says in each.text for each in findings.kept), (planted.name, findings.lines())
        found += 1
    return found


def test_mistakes_planted_in_its_history_are_found(short_run: Path) -> None:
    assert find_planted(short_run, PLANTED[::3]) >= 8, "the history holds too little that can be spoiled"


@pytest.mark.slow
def test_every_mistake_planted_in_its_history_is_found(short_run: Path) -> None:
    assert find_planted(short_run, PLANTED) >= 28, "the history holds too little that can be spoiled"


def test_a_history_is_judged_again_from_its_files(short_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert main(["check", str(short_run / "history"), f"--json={report}"]) == 0
    assert "0 violations in" in capsys.readouterr().out
    assert '"violations": []' in report.read_text()
    copied = shutil.copytree(short_run / "history", tmp_path / "bad")
    lines = (copied / "kv2.changes.jsonl").read_text().splitlines()
    (copied / "kv2.changes.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert main(["check", str(copied)]) == 1
    assert "VIOLATION" in capsys.readouterr().out
    (copied / "kv2.changes.jsonl").write_text("\n".join([*lines[:3], lines[3][:10]]) + "\n")
    assert main(["check", str(copied)]) == 2
    assert "kv2.changes.jsonl, line 4" in capsys.readouterr().err
    (copied / END).unlink()
    assert main(["check", str(copied)]) == 2
    assert "cut short" in capsys.readouterr().err
    assert OPERATIONS in {path.name for path in (short_run / "history").iterdir()}


def test_an_interrupted_run_leaves_no_process_and_no_verdict(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "kvserver.testing.chaos", "--kills=50", "--seed=3", f"--directory={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert "3 members are up" in running.stdout.readline()
        assert len(leftovers(tmp_path / "seed-3")) == 3, "the look for left-over processes sees nothing"
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "interrupted" in errors
    assert leftovers(tmp_path / "seed-3") == []
    assert main(["check", str(tmp_path / "seed-3" / "history")]) == 2


@dataclass(frozen=True, slots=True)
class Hunt:
    """A mistake, the faults that bring it to light, and what it may show as."""

    mistake: str
    faults: tuple[FaultKind, ...]
    kinds: tuple[ViolationKind, ...]
    kills: int = 8


K = ViolationKind
F = FaultKind
HUNTS = [
    Hunt("commit-without-quorum", (F.LONE_LEADER,), (K.LOST_WRITE, K.CHANGED_WRITE, K.NO_RECOVERY)),
    Hunt("read-without-index", (F.LEADER,), (K.STALE_READ,), kills=4),
    Hunt("leader-reads-unconfirmed", (F.STOPPED_LEADER, F.STOPPED_THEN_KILLED), (K.STALE_READ, K.HEADER_WENT_BACK), kills=9),
    Hunt("lose-log-tail", (F.ALL, F.TWO), (K.LOST_WRITE, K.CHANGED_WRITE, K.NO_RECOVERY)),
    Hunt("apply-twice", (F.LEADER,), (K.DUPLICATE_WRITE,), kills=4),
    Hunt("replay-one-entry-too-many", (F.LEADER,), (K.MEMBER_DIFFERS, K.CHANGED_WRITE, K.STALE_READ), kills=5),
    Hunt("skip-an-entry-at-start", (F.LEADER,), (K.MEMBER_DIFFERS, K.LOST_WRITE, K.CHANGED_WRITE, K.NO_RECOVERY), kills=5),
    Hunt("compares-hold", (F.LEADER,), (K.WRONG_COMPARE,), kills=4),
    Hunt("forget-versions", (F.LEADER,), (K.WRONG_NUMBERS,), kills=4),
]


def hunt(directory: Path, wanted: Hunt) -> Findings:
    plan = Plan(
        directory=directory,
        seed=11,
        kills=wanted.kills,
        only=frozenset(wanted.faults),
        load=Load(rate_per_s=150.0, clients=16, value_size_bytes=32),
        program=(str(SERVER), wanted.mistake),
    )
    try:
        return check(load(run(plan, print)))
    finally:
        assert leftovers(directory) == []


@pytest.mark.slow
@pytest.mark.parametrize("wanted", HUNTS, ids=lambda wanted: wanted.mistake)
def test_a_server_with_a_mistake_is_found_out(wanted: Hunt, tmp_path: Path) -> None:
    try:
        findings = hunt(tmp_path, wanted)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
    print({kind.value: count for kind, count in findings.counts.items()})
    assert findings.kinds & set(wanted.kinds), findings.lines()


def test_every_mistake_is_hunted() -> None:
    assert {each.mistake for each in HUNTS} == set(MISTAKES)
