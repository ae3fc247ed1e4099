"""The index lives on disk: memory doesn't grow with the keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_BYTES = 150_000_000


@pytest.mark.process
@pytest.mark.parametrize(
    ("keys", "overwrites"),
    [(20_000, 5_000), pytest.param(1_000_000, 200_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_keys_and_their_writing_stay_below_the_memory_limit(tmp_path: Path, keys: int, overwrites: int) -> None:
    program = Path(__file__).with_name("million_keys.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "db"), str(keys), str(overwrites)],
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    assert int(done.stdout) < LIMIT_BYTES, done.stderr
