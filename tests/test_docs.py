"""The documents hold together: links lead somewhere, commands exist, measured tables are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    missing = [target for target in LINK.findall(document.read_text()) if "://" not in target and not (document.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_command_in_the_documents_is_a_target(document: Path) -> None:
    named = set(re.findall(r"(?:^|`|\s)make ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`|```.*?```", document.read_text(), re.DOTALL))))
    assert named <= makefile_targets(), named - makefile_targets()


def test_make_help_lists_every_target_with_a_purpose() -> None:
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert listed == makefile_targets()


def test_every_package_of_the_layout_is_described() -> None:
    text = (ROOT / "docs/architecture/README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [path.name for path in (ROOT / "kvserver").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if room not in text] == []
