"""What the operator sees: a real process that refuses ends with code 1, one line that says where and what to do, and no traceback."""

from __future__ import annotations

import shutil

import pytest

from tests.durability.damage.member import Directory, flip, overwrite, truncate
from tests.durability.damage.test_directory import assert_exits, run_server

pytestmark = pytest.mark.process


def cut_last_record(directory: Directory) -> None:
    truncate(directory.newest, directory.entries(directory.newest)[-1].offset_bytes + 40)


def garbage_tail(directory: Directory) -> None:
    overwrite(directory.newest, directory.end_bytes(), b"\xff" * 600)


def flip_in_the_middle(directory: Directory) -> None:
    flip(directory.segments[1], directory.entries(directory.segments[1])[3].offset_bytes + 100)


def flip_in_the_last_record(directory: Directory) -> None:
    flip(directory.newest, directory.entries(directory.newest)[-1].offset_bytes + 100)


def blank_sector(directory: Directory) -> None:
    overwrite(directory.segments[1], 8192, bytes(512))


def empty_segment(directory: Directory) -> None:
    truncate(directory.newest, 0)


def missing_segment(directory: Directory) -> None:
    directory.segments[1].unlink()


def swapped_segments(directory: Directory) -> None:
    first, second = (path.read_bytes() for path in directory.segments[:2])
    directory.segments[0].write_bytes(second)
    directory.segments[1].write_bytes(first)


def no_wal(directory: Directory) -> None:
    shutil.rmtree(directory.wal)


def no_store(directory: Directory) -> None:
    directory.store.unlink()


def broken_store(directory: Directory) -> None:
    overwrite(directory.store, 0, b"\xa5" * 8192)


def directory_is_a_file(directory: Directory) -> None:
    shutil.rmtree(directory.root)
    directory.root.write_text("a file")


WAY_OUT = "docs/operations/replace-a-dead-member.md"
CASES = {
    "cut last record": ("covered", cut_last_record, ["offset", "is known to be committed", WAY_OUT]),
    "garbage tail": ("covered", garbage_tail, ["damaged at offset", "behind index", WAY_OUT]),
    "flip in the middle": ("covered", flip_in_the_middle, ["damaged at offset", "behind index", WAY_OUT]),
    "flip in the last record": ("behind", flip_in_the_last_record, ["damaged at offset", "behind index", WAY_OUT]),
    "blank sector": ("covered", blank_sector, ["damaged at offset", "behind index", WAY_OUT]),
    "empty segment": ("covered", empty_segment, ["the segment file is empty", WAY_OUT]),
    "missing segment": ("covered", missing_segment, ["is missing", WAY_OUT]),
    "swapped segments": ("covered", swapped_segments, ["under another one's name", WAY_OUT]),
    "no WAL": ("covered", no_wal, ["is missing or empty", WAY_OUT]),
    "no store after a release": ("released", no_store, ["is missing", WAY_OUT]),
    "broken store": ("covered", broken_store, ["snap/db"]),
    "a file": ("covered", directory_is_a_file, ["can't be used"]),
}
DEFAULT = {"cut last record", "missing segment", "no store after a release", "broken store"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in DEFAULT else pytest.mark.slow) for case in CASES])
def test_refusal_is_one_line_and_code_1(take, states, case):
    state, damage, words = CASES[case]
    directory = take(getattr(states, state))
    damage(directory)
    answer = run_server(directory)
    assert_exits(answer, directory.root, *words)
    assert answer.stderr.count("fatal") == 1
