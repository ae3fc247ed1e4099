"""The rings of tests that a mistake has to get through: the data files, our own suite, the simulator.

Rules: a ring is run in a sandbox and says whether it failed, and by what. Each is first run on the unchanged core (`prove`), and must pass
there: only then does a failure mean that a mistake was noticed. A ring that can't be run here (no data files, no simulator) says why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.raft.mutants.sandbox import REPOSITORY, Finished, Sandbox

DATA: Final = Path(os.environ.get("RAFT_TESTDATA", REPOSITORY.parent / "shared" / "raft-testdata")).resolve()
DATA_TIMEOUT_S: Final = 45.0
SUITE_TIMEOUT_S: Final = 150.0
SIMULATOR_TIMEOUT_S: Final = 90.0
SEED_BATCHES: Final = ((0, 7), (8, 31))
"""Seeds of the simulator, first and last; the first batch with a violation ends the ring."""

_SLOWEST: Final = "tests/raft/test_hostile_messages.py"
"""A third of the suite's time: it runs last."""
_PYTEST_OPTIONS: Final = (
    *("-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-m", "not slow", "--hypothesis-seed=0", "--timeout=45"),
)
_LOADED_FROM: Final = "import raft, sys; sys.stdout.write(raft.__file__)"


class RingError(Exception):
    """A ring did not run as it should; nothing can be said about any mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a ring says: whether it failed (noticed something), and by what."""

    caught: bool
    evidence: str = ""


PASSED: Final = Outcome(caught=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One ring: `name` on the command line, `title` in the report. `why_absent` says why it can't run, or nothing."""

    name: str
    title: str
    why_absent: Callable[[Sandbox], str]
    run: Callable[[Sandbox], Outcome]


def prove(ring: Ring, unchanged: Sandbox) -> None:
    """Check that the ring sees the sandbox's core, and passes on the unchanged one.

    Raises:
        RingError: it does not.
    """
    loaded = unchanged.run(["-c", _LOADED_FROM], timeout_s=DATA_TIMEOUT_S)
    if Path(loaded.output).resolve() != (unchanged.path / "raft" / "__init__.py").resolve():
        raise RingError(f"raft was imported from {loaded.output!r}, not from the sandbox: {loaded.errors}")
    outcome = ring.run(unchanged)
    if outcome.caught:
        raise RingError(f"{ring.title} fail on the core as it is ({outcome.evidence}): nothing can be said about mistakes")


def _judge(finished: Finished, evidence: Callable[[str], str]) -> Outcome:
    """Exit code 0 is a pass, 1 a failure; an endless loop is a failure, too. `evidence` finds in the output what failed."""
    if finished.code == 0:
        return PASSED
    if finished.code is None:
        return Outcome(caught=True, evidence="never ends")
    found = evidence(finished.output)
    if finished.code != 1 or not (found or finished.errors):
        raise RingError(f"exit code {finished.code}:\n{finished.output[-2000:]}\n{finished.errors[-2000:]}")
    return Outcome(caught=True, evidence=found or finished.errors.strip().splitlines()[-1])


# --- the data files -------------------------------------------------------------------------------


def _no_data(sandbox: Sandbox) -> str:
    return "" if any(DATA.rglob("*.txt")) else "no data files: set RAFT_TESTDATA"


def _run_data(sandbox: Sandbox) -> Outcome:
    """All of them, in one process; one that raises what the harness does not expect ends the run."""
    return _judge(sandbox.run(["-m", "tests.raft.datadriven", str(DATA)], timeout_s=DATA_TIMEOUT_S), _failed_files)


def _failed_files(output: str) -> str:
    found = re.search(r"^(\d+) passed, (\d+) failed$", output, re.MULTILINE)
    return f"{found[2]} of {int(found[1]) + int(found[2])}" if found else ""


# --- our own suite --------------------------------------------------------------------------------


def _run_suite(sandbox: Sandbox) -> Outcome:
    """Up to the first failure, with one fixed seed, and without etcd-io/raft's data files."""
    outcome = PASSED
    for selection in (["tests/raft", f"--ignore={_SLOWEST}"], [_SLOWEST]):
        outcome = _judge(sandbox.run(["-m", "pytest", *selection, *_PYTEST_OPTIONS], timeout_s=SUITE_TIMEOUT_S), _failed_test)
        if outcome.caught:
            break
    return outcome


def _failed_test(output: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) tests/raft/(\S+)", output, re.MULTILINE)
    if found is None:
        return "timeout" if "Timeout" in output else ""
    file, _, test = found[1].partition("::")
    return test.partition("[")[0] or file


# --- the simulator --------------------------------------------------------------------------------


def _no_simulator(sandbox: Sandbox) -> str:
    finished = sandbox.run(["-m", "kvserver.testing.sim", "--help"], timeout_s=DATA_TIMEOUT_S)
    return "" if finished.code == 0 else f"no simulator: {(finished.errors.strip().splitlines() or ['it does not start'])[-1]}"


def _run_simulator(sandbox: Sandbox) -> Outcome:
    outcome = PASSED
    for first, last in SEED_BATCHES:
        command = ["-m", "kvserver.testing.sim", "--seeds", f"{first}..{last}", "--jobs", "1"]
        outcome = _judge(sandbox.run(command, timeout_s=SIMULATOR_TIMEOUT_S), _violation)
        if outcome.caught:
            break
    return outcome


def _violation(output: str) -> str:
    found = re.search(r"^(seed \d+: .*)$", output, re.MULTILINE)
    return found[1] if found else ""


RINGS: Final = (
    Ring(name="data", title="data files", why_absent=_no_data, run=_run_data),
    Ring(name="suite", title="suite", why_absent=lambda sandbox: "", run=_run_suite),
    Ring(name="sim", title="simulator", why_absent=_no_simulator, run=_run_simulator),
)
