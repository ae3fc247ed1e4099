"""A folder with a copy of the core, in which one mistake can be planted and the tests be run against it.

    <sandbox>/raft           the copy; found before the repository's own, as the sandbox is the working directory and first in PYTHONPATH
    <sandbox>/tests/raft     a copy of our suite, without the mutants
    <sandbox>/pyproject.toml pytest's settings

Everything else (kvserver, wal) is imported from the repository. Nothing outside the sandbox is written but byte code.

Rules: a command has a time limit and an address-space limit, as a mistake may loop or send for ever; one that is over its time is killed
with its whole process group.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.raft.mutants.mutant import Mutant

REPOSITORY: Final = Path(__file__).resolve().parents[3]
ADDRESS_SPACE_LIMIT_KIB: Final = 3 * 1024 * 1024
_LIMITED: Final = ("/bin/sh", "-c", 'ulimit -v "$0" && exec "$@"', str(ADDRESS_SPACE_LIMIT_KIB))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended: its exit code (None: it had to be killed after its time limit), and what it printed."""

    code: int | None
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox at `path`."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Sandbox:
        """Copy the core and its suite as they are now to `path`, which must not exist."""
        shutil.copytree(REPOSITORY / "raft", path / "raft", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(REPOSITORY / "tests" / "raft", path / "tests" / "raft", ignore=shutil.ignore_patterns("__pycache__", "mutants"))
        shutil.copy2(REPOSITORY / "pyproject.toml", path)
        return cls(path)

    def with_mutant(self, mutant: Mutant, path: Path) -> Sandbox:
        """A copy of this sandbox at `path`, with a mistake in it.

        Raises:
            PlantError: the mistake does not fit the source.
        """
        # Byte code comes along (copies keep their times), but not that of the module that changes.
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns(f"{mutant.module}.*.pyc", ".hypothesis"))
        mutant.plant(path / "raft")
        return Sandbox(path)

    def run(self, arguments: Sequence[str], *, timeout_s: float, data: Path | None = None) -> Finished:
        """Run Python with `arguments` here. `data` is where the suite finds etcd-io/raft's data files (None: nowhere)."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(self.path), str(REPOSITORY))),
            "RAFT_TESTDATA": str(data or self.path / "absent"),
        }
        with subprocess.Popen(
            [*_LIMITED, sys.executable, *arguments],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, errors = process.communicate()
                return Finished(code=None, output=output, errors=errors)
            return Finished(code=process.returncode, output=output, errors=errors)
