"""The allocator's settings, seen in processes of their own: they can't be taken back."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from kvserver import memory

pytestmark = pytest.mark.skipif(not memory.HeapTrimmer().is_possible, reason="needs glibc 2.33 or later")

PRELUDE = """
import time
from kvserver import memory
assert memory.tune_allocator()
def leave_holes():
    blocks = [b"x" * 1_000_000 for _ in range(60)]
    return blocks[::6]
"""


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_values_of_a_megabyte_come_from_the_heap() -> None:
    grown_bytes = run(
        """
        from pathlib import Path
        def heap_bytes():
            line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
            low, high = line.split()[0].split("-")
            return int(high, 16) - int(low, 16)
        before = heap_bytes()
        kept = [b"x" * 1_000_000 for _ in range(10)]
        print(heap_bytes() - before)
        """
    )
    assert int(grown_bytes) > 9_000_000


def test_the_holes_of_a_burst_are_returned_when_the_process_is_quiet() -> None:
    program = """
        trimmer = memory.HeapTrimmer()
        kept = leave_holes()
        before = memory.anonymous_bytes()
        memory.time.process_time = lambda: 0.0
        assert trimmer.trim_if_worth()
        print(before - memory.anonymous_bytes())
        """
    assert int(run(program)) > 30_000_000


def test_a_busy_process_is_left_alone_until_the_minute_is_over() -> None:
    program = """
        trimmer = memory.HeapTrimmer()
        kept = leave_holes()
        clock_s = [time.monotonic()]
        memory.time.monotonic = lambda: clock_s[0]
        memory.time.process_time = lambda: clock_s[0]
        answers = []
        for passed_s in (1, 1, memory.BUSY_INTERVAL_S):
            clock_s[0] += passed_s
            answers.append(trimmer.trim_if_worth())
        print(answers)
        """
    assert run(program) == "[False, False, True]"


def test_a_process_that_did_not_grow_is_not_trimmed_again() -> None:
    program = """
        trimmer = memory.HeapTrimmer()
        kept = leave_holes()
        memory.time.process_time = lambda: 0.0
        print(trimmer.trim_if_worth(), trimmer.trim_if_worth())
        """
    assert run(program) == "True False"
