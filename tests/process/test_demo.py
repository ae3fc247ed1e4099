"""The demo holds, and cleans up after itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


def command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
    return lines


def test_the_demo_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "kvserver.testing.demo"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-2000:]
    assert "Every check held." in answer.stdout
    assert list(tmp_path.iterdir()) == []
    assert [line for line in command_lines() if str(tmp_path) in line] == []
