"""Commands that were started without their standard streams: nothing breaks, and no file of theirs gets the number of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvserver import streams

PROGRAM = """
import os, sys
from kvserver import streams
streams.open_closed()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
assert opened > 2, opened
sys.stdout.write("out"); sys.stdout.flush()
sys.stderr.write("error"); sys.stderr.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_opened_on_nothing_before_a_file_takes_their_number(tmp_path: Path, closing: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    line = f"{sys.executable} {tmp_path}/program.py {tmp_path}/file {closing}"
    done = subprocess.run(["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == (b"" if ">&-" in closing.split() else b"out")
    assert done.stderr == (b"" if "2>&-" in closing else b"error")
    assert (tmp_path / "file").read_bytes() == b""


def test_what_a_command_returns_is_its_exit_code() -> None:
    assert streams.ended("x", lambda: 3) == 3
