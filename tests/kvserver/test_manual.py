"""`kvserver docs`, and that every text names its pages in the one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvserver import manual
from wal.guides import DIRECTORY, PAGES, WAY_OUT, guide, guide_path

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_are_those_of_the_directory() -> None:
    assert {path.stem for path in (ROOT / DIRECTORY).glob("*.md")} - {"README"} == set(PAGES)
    for name in PAGES:
        assert (ROOT / guide_path(name)).is_file()
        assert manual.title_of(manual.read_page(name))
    assert all(guide_path(name) in WAY_OUT for name in ("replace-a-dead-member", "backup-and-restore"))


@pytest.mark.parametrize("named", ["corruption", "corruption.md", "docs/operations/corruption.md"])
def test_a_page_is_printed_by_its_name_or_its_path(capsys: pytest.CaptureFixture[str], named: str) -> None:
    assert manual.main(["docs", named]) == 0
    assert capsys.readouterr().out == (ROOT / guide_path("corruption")).read_text()


def test_without_a_name_they_are_listed_and_a_wrong_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert manual.main(["docs"]) == 0
    assert all(name in capsys.readouterr().out for name in PAGES[:1])
    assert manual.main(["docs", "nonsense"]) == 2
    assert "there is no page 'nonsense'; the pages are backup-and-restore, corruption" in capsys.readouterr().err
    assert manual.main(["docs", "quota", "corruption"]) == 2


def test_what_a_text_says_can_be_typed() -> None:
    said = guide("corruption")
    (command,) = re.findall("`(.*)`", said)
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, (ROOT / said.split(",")[0]).read_bytes())


def test_no_text_names_a_page_by_itself() -> None:
    """Docstrings may: they are read beside the source."""
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in [*ROOT.glob("kvserver/**/*.py"), *ROOT.glob("wal/*.py")] for line in places(path)
    ]
    assert found == []


def places(path: Path) -> list[int]:
    """The lines of the strings in a source file that name a page, docstrings left out."""
    source = path.read_text()
    if f"{DIRECTORY}/" not in source:
        return []
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.lineno for node in strings if id(node) not in docstrings and f"{DIRECTORY}/" in str(node.value)]
