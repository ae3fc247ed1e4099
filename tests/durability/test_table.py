"""The damage table of docs/architecture/durability.md and the tests of this folder hold together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs/architecture/durability.md"

SPECIFIED = [
    "cut inside the last record or its length",
    "cut exactly at a record's end; zero-filled tail",
    "any other tail",
    "bit flip in data",
    "high bit of a length in the middle; length zeroed; sector zeroed",
    "zero-length only segment",
    "missing segment",
    "swapped segments",
    "WAL directory removed",
    "value flipped in the store",
    "index 2^63; length",
    "metadata mismatch",
    "read-only directory",
    "two processes on one directory",
    "indexes rewritten with a higher term above commit",
    "leftover temporary files",
    "a crash at each step of a cut",
    "a crash at each step of a snapshot install",
    "snapshot without marker",
    "corrupt newest snapshot",
    "fsync EIO",
    "disk full",
    "store lost after the WAL was released",
]


def rows() -> dict[str, list[str]]:
    """Case -> the other cells."""
    text = PAGE.read_text().split("## The damage table", 1)[1].split("\n## ", 1)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {case: rest for case, *rest in cells[2:]}


def defined_in(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)) if path.exists() else set()


@pytest.mark.parametrize("case", SPECIFIED)
def test_every_case_of_the_specification_has_a_row(case):
    assert [row for row in rows() if row.startswith(case)]


@pytest.mark.parametrize("case", rows())
def test_every_row_says_both_outcomes_and_names_tests_that_exist(case):
    kept, lost, tests = rows()[case]
    assert kept
    assert lost
    named = re.findall(r"`([^`]+)`", tests)
    assert named
    for each in named:
        file, _, name = each.partition("::")
        assert name in defined_in(HERE / file), each


def test_every_damage_test_is_of_a_row_or_stands_beside_one():
    """A test that the page does not name covers a variant; its file does have a row."""
    page = PAGE.read_text()
    for path in (HERE / "damage").glob("test_*.py"):
        assert path.name in page
