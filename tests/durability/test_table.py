"""The damage table of docs/architecture/durability.md and the tests of this folder hold together.

A row names tests and says, for the store kept and for the store lost, what they show. Held against it: what pytest collects, with its
parameters and marks, and the source of each test.

Caveat: a test that finds at run time that this machine lacks something (root, etcd) still skips itself; where CI runs, nothing is lacking.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs/architecture/durability.md"
HALVES = ("kept", "lost")
WORDS = {"kept": "the store kept", "lost": "the store lost"}
BOOTS = re.compile(r"\b(boots|repaired|recovered|removed|win|works|built again|dropped|applied again)\b")
REFUSES = re.compile(r"\brefused\b")
BOOT_CALLS = {"assert_boots"}
REFUSAL_CALLS = {"assert_refused", "refusal_of", "assert_exits", "raises"}

JUDGED_WITHIN = {"../wal/test_every_io.py::test_nothing_saved_is_lost_in_many_crash_states"}
"""The life that such a test lives compares itself with what was promised, at every loss of power."""

ELSEWHERE = {
    # Without a store beside it: a log that is sound alone is so with both.
    "../wal/test_every_io.py::test_nothing_saved_is_lost_when_any_operation_fails": {"kept", "lost"},
    "../wal/test_every_io.py::test_nothing_saved_is_lost_in_many_crash_states": {"kept", "lost"},
    "../wal/test_damage.py::test_tail_of_a_failed_sync_is_proven_again_before_open_returns": {"kept", "lost"},
    # With the whole directory gone.
    "../kvserver/node/test_joining.py::test_a_member_that_took_part_may_not_come_back_empty_handed": {"lost"},
    "../kvserver/node/test_joining.py::test_a_founding_member_with_an_empty_directory_is_refused_when_it_took_part": {"lost"},
    "../kvserver/apply/test_flips.py::test_flipped_bits_of_the_store_are_never_served": {"kept"},
    "../process/test_disk_full.py::test_a_single_member_survives_a_full_disk_without_a_restart_and_with_one": {"kept"},
    "io/test_every_failure.py::test_nothing_promised_is_lost_when_a_sampled_operation_fails": {"kept"},
    "io/test_every_failure.py::test_a_full_disk_makes_the_log_wait_and_nothing_else": {"kept"},
    # Looks at both, one after the other.
    "damage/test_directory.py::test_etcds_directory": {"kept", "lost"},
}
"""The halves of the tests that don't say so by a parameter `store`, or by what they do with the store."""

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


def named(case: str) -> list[str]:
    """The tests of a row."""
    return re.findall(r"`([^`]+)`", rows()[case][2])


def said(case: str, half: str) -> str:
    """What the row says of one half."""
    kept, lost, _ = rows()[case]
    return kept if half == "kept" or lost == "the same" else lost


_COLLECT = """
import json, sys, pytest

class Collected:
    def pytest_collection_finish(self, session):
        for item in session.items:
            callspec = getattr(item, "callspec", None)
            store = None if callspec is None else callspec.params.get("store")
            function = item.nodeid.partition("[")[0]
            marks = [mark.name for mark in item.iter_markers()]
            print("ITEM", json.dumps([function, store, marks]))

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Collected()]))
"""


@dataclass(slots=True)
class Found:
    """What is collected of one test: the values of its parameter `store`, and its marks."""

    stores: set[str]
    marks: set[str]


@functools.cache
def collected() -> dict[str, Found]:
    """The tests in the files that the page names."""
    files = sorted({str((HERE / each.partition("::")[0]).resolve()) for case in rows() for each in named(case)})
    ended = subprocess.run([sys.executable, "-c", _COLLECT, *files], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, Found] = {}
    for line in ended.stdout.splitlines():
        if line.startswith("ITEM "):
            function, store, marks = json.loads(line[5:])
            entry = found.setdefault(function, Found(set(), set()))
            entry.marks.update(marks)
            if store is not None:
                entry.stores.add(store)
    return found


def found(test: str) -> Found | None:
    """What is collected of a test that the page names."""
    file, _, name = test.partition("::")
    return collected().get(f"{(HERE / file).resolve().relative_to(ROOT)}::{name}")


@functools.cache
def source_of(test: str) -> ast.AST:
    """The definition of a test."""
    file, _, name = test.partition("::")
    for node in ast.walk(ast.parse((HERE / file).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise AssertionError(f"{test} is not defined there")


def calls_of(test: str) -> set[str]:
    """The names of what a test calls."""
    functions = [node.func for node in ast.walk(source_of(test)) if isinstance(node, ast.Call)]
    return {each.attr if isinstance(each, ast.Attribute) else each.id for each in functions if isinstance(each, ast.Attribute | ast.Name)}


def judges(test: str) -> bool:
    """Whether a test judges: in `damage/`, that a member boots or is refused; elsewhere it asserts, or calls what is named for that."""
    calls = calls_of(test)
    if calls & (BOOT_CALLS | REFUSAL_CALLS) or test in JUDGED_WITHIN:
        return True
    if test.startswith("damage/"):
        return False
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(source_of(test)))
    return asserts or any(name.startswith(("check", "judge", "assert")) for name in calls)


def loses_the_store(test: str) -> bool:
    """Whether a test takes a directory whose store is lost, or removes it."""
    constants = {node.value for node in ast.walk(source_of(test)) if isinstance(node, ast.Constant)}
    return "lost" in constants or "lose_store" in calls_of(test) or ".store.unlink(" in ast.unparse(source_of(test))


def halves_of(test: str) -> set[str]:
    """The halves that a test covers."""
    if test in ELSEWHERE:
        return ELSEWHERE[test]
    entry = found(test)
    if entry is not None and entry.stores:
        return entry.stores
    return {"lost"} if loses_the_store(test) else {"kept"}


def is_slow(test: str) -> bool:
    """Whether a test runs in `make test-all` only."""
    entry = found(test)
    return entry is not None and "slow" in entry.marks


@pytest.mark.parametrize("case", SPECIFIED)
def test_every_case_of_the_specification_has_a_row(case):
    assert [row for row in rows() if row.startswith(case)]


@pytest.mark.parametrize("case", rows())
def test_every_test_of_a_row_is_collected_judges_something_and_is_never_skipped(case):
    assert named(case)
    for test in named(case):
        entry = found(test)
        assert entry is not None, f"{test} is not collected"
        assert not entry.marks & {"skip", "skipif", "xfail"}, f"{test} is marked {entry.marks}"
        assert judges(test), f"{test} judges nothing"


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("case", rows())
def test_every_row_has_tests_in_the_default_run_of_both_halves_where_both_can_arise(case, half):
    assert said(case, half)
    covered = {test for test in named(case) if half in halves_of(test) and not is_slow(test)}
    if said(case, half) == "does not arise":
        assert covered == set(), "it does arise"
    else:
        assert covered, f"no test of this row has {WORDS[half]}"


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("case", rows())
def test_the_tests_of_a_row_judge_as_its_column_says(case, half):
    """By the words of the cell: what boots is booted, what is refused is refused. Elsewhere than in `damage/` other words are used."""
    ours = [test for test in named(case) if half in halves_of(test) and test.startswith("damage/")]
    calls = set().union(*map(calls_of, ours))
    if ours and REFUSES.search(said(case, half)):
        assert calls & REFUSAL_CALLS, f"{ours}: nothing is refused"
    if ours and BOOTS.search(said(case, half)):
        assert calls & BOOT_CALLS, f"{ours}: nothing boots"


@pytest.mark.parametrize("file", sorted((HERE / "damage").glob("test_*.py")), ids=lambda path: path.name)
def test_a_test_with_a_parameter_for_the_store_heeds_it(file):
    """Both halves are collected, and the parameter reaches whatever takes the directory."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "store" in {argument.arg for argument in node.args.args}:
            if not node.name.startswith("test_"):
                continue
            used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            entry = collected().get(f"{file.relative_to(ROOT)}::{node.name}")
            assert entry is None or entry.stores == set(HALVES), node.name
            assert "store" in used, f"{node.name} does not look at its parameter"
            assert {"take", "laggard"} & used == set() or passes_on(node) or loses_the_store(f"damage/{file.name}::{node.name}"), node.name


def passes_on(function: ast.AST) -> bool:
    """Whether `store` is an argument of the call that takes the directory."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("take", "laggard")
        and any(isinstance(argument, ast.Name) and argument.id == "store" for argument in node.args)
        for node in ast.walk(function)
    )


def test_every_damage_test_is_of_a_row_or_stands_beside_one():
    """A test that the page does not name covers a variant; its file does have a row."""
    page = PAGE.read_text()
    for path in (HERE / "damage").glob("test_*.py"):
        assert path.name in page
