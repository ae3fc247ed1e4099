"""Conformance: etcd-io/raft's data files, byte for byte, and our own scenarios in the same language.

The data files are not part of this project: `RAFT_TESTDATA` names their folder (default: ../shared/raft-testdata beside the repository).
Every file found there is a test. `python -m tests.raft.datadriven FILE...` shows the same as diffs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft.datadriven.__main__ import main
from tests.raft.datadriven.runner import difference, run_file
from tests.raft.datadriven.script import Argument, parse, parse_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RAFT_TESTDATA", REPOSITORY.parent / "shared" / "raft-testdata"))
SCENARIOS = Path(__file__).resolve().parent / "scenarios"
FILES = sorted(DATA.rglob("*.txt")) if DATA.is_dir() else []
ABSENT = [pytest.param(None, marks=pytest.mark.skip(reason=f"no data files in {DATA}: set RAFT_TESTDATA"), id="absent")]


@pytest.mark.parametrize("path", [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in FILES] or ABSENT)
def test_data_file_passes_byte_for_byte(path: Path) -> None:
    outcomes = run_file(path)
    assert outcomes, "the file has no stanza"
    assert not "".join(difference(path, outcome) for outcome in outcomes)


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario_passes(path: Path) -> None:
    outcomes = run_file(path)
    assert outcomes, "the file has no stanza"
    assert not "".join(difference(path, outcome) for outcome in outcomes)


def test_arguments_split_at_blanks_outside_parentheses() -> None:
    assert parse_arguments('1 cfg=(1, 2) "foo" flag=true') == [
        Argument("1"),
        Argument("cfg", ("1", "2")),
        Argument('"foo"'),
        Argument("flag", ("true",)),
    ]


def test_expected_output_may_hold_empty_lines_between_double_separators() -> None:
    stanzas = parse("a 1\ninput\n----\n----\none\n\ntwo\n----\n----\n\nb\n----\nok\n")
    assert [(stanza.command, stanza.input, stanza.expected) for stanza in stanzas] == [("a", "input", "one\n\ntwo\n"), ("b", "", "ok\n")]


def test_command_line_prints_a_diff_for_each_failing_stanza(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("vote cfg=(1) votes=(y)\n----\nVoteWon\n")
    bad.write_text("# why\n\nvote cfg=(1) votes=(n)\n----\nVoteWon\n\nvote cfg=(1) votes=(_)\n----\nVotePending\n")
    assert main([str(good), str(bad)]) == 1
    printed = capsys.readouterr().out
    assert "-VoteWon\n+VoteLost" in printed
    assert "VotePending" not in printed
    assert printed.endswith("1 passed, 1 failed\n")


def test_rewrite_replaces_outputs_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "case.txt"
    path.write_text("# why\n\nvote cfg=(1) votes=(n)\n----\nVoteWon\n\n# end\nvote\n----\n\n# tail\n")
    assert main(["--rewrite", str(path)]) == 0
    assert path.read_text() == "# why\n\nvote cfg=(1) votes=(n)\n----\nVoteLost\n\n# end\nvote\n----\nVoteWon\n\n# tail\n"
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed\n")


def test_unreadable_file_counts_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.txt"
    path.write_text("vote cfg=(1) votes=(n)\n")
    assert main([str(path), str(tmp_path / "missing.txt")]) == 1
    assert capsys.readouterr().out.endswith("0 passed, 2 failed\n")
