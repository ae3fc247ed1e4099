"""docs/operations/corruption.md has a row for every text about damage; the texts are taken from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/operations/corruption.md").read_text().split("## What it says, and what to do")[1].split("## Replace the damaged")[0]
SOURCES = {
    "kvserver/storage/pages.py": {"report", "_bad"},
    "kvserver/storage/page_format.py": {"StoreDamagedError"},
    "kvserver/mvcc/integrity.py": {"_report"},
    "kvserver/inspect/check_report.py": {"problem"},
    "kvserver/apply/inspection.py": {"StoreDamagedError"},
    "kvserver/apply/errors.py": {"__init__"},
    "kvserver/apply/meta.py": {"ValueError"},
    "kvserver/node/halt.py": {"error", "warning"},
    "kvserver/storage/reader.py": {"_reject"},
    "wal/reader.py": {"SegmentError"},
    "wal/segment.py": {"SegmentError"},
    "wal/errors.py": {"__init__"},
    "kvserver/node/refusals.py": {"return"},
    "kvserver/node/bootstrap.py": {"BootstrapError"},
    "kvserver/node/directory.py": {"DataDirectoryError"},
}
CALLERS_OWN = ("IllegalSaveError", "WalClosedError", "WalExistsError", "WalIOError")
"""Errors of wal that no file on the disk causes: a defect of the caller, or the system's own words."""
NOT_ABOUT_DAMAGE = (
    "was begun for another cluster",
    "is missing, and the WAL that belongs",
    "was restored from a snapshot",
    "can't be locked",
)
"""A cluster that was never begun, a restore without its WAL: backup-and-restore.md and the text itself say what to do."""


def fragments() -> list[re.Pattern[str]]:
    """The first column of every table: what stands in backticks, with `...` for anything."""
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [re.compile(".*".join(re.escape(part) for part in text.split("..."))) for text in quoted]


def template(node: ast.expr) -> str | None:
    """A text with X for what is put into it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value) or "X" if isinstance(value, ast.Constant) else "X" for value in values)
    return None


def texts(path: str, names: set[str]) -> Iterator[str]:
    """The texts that are given to the named functions in a source file."""
    tree = ast.parse((ROOT / path).read_text())
    if path == "wal/errors.py":
        for kind in tree.body:
            if isinstance(kind, ast.ClassDef) and kind.name not in CALLERS_OWN and kind.name != "WalError":
                whole = " ".join(found for node in ast.walk(kind) if isinstance(node, ast.expr) and (found := template(node)))
                yield f"{kind.name}: {whole}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and "return" in names and node.value is not None:
            found = template(node.value)
            if found is not None:
                yield found
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
        if name in names:
            yield from (found for argument in node.args if (found := template(argument)) and len(found) > 3)


@pytest.mark.parametrize("path", SOURCES)
def test_every_text_about_damage_has_a_row(path: str) -> None:
    known = fragments()
    found = list(texts(path, SOURCES[path]))
    assert found, "the names of the functions have changed"
    missing = [
        text for text in found if not any(each.search(text) for each in known) and not any(each in text for each in NOT_ABOUT_DAMAGE)
    ]
    assert missing == []


def test_every_row_is_about_a_text_that_there_is() -> None:
    everything = [text for path, names in SOURCES.items() for text in texts(path, names)]
    sources = "".join((ROOT / path).read_text() for path in (*SOURCES, "kvserver/inspect/wal_report.py", "kvserver/storage/errors.py"))
    others = ("joining", "corruption", "backups", "foreign", "log_history")
    sources += "".join((ROOT / f"kvserver/node/{name}.py").read_text() for name in others)
    stale = [
        each.pattern
        for each in fragments()
        if not any(each.search(text) for text in everything)
        and not any(part in sources for part in re.split(r"\.\*", each.pattern.replace("\\", "")))
    ]
    assert stale == []
