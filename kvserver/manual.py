"""`kvserver docs`: the pages of docs/operations, which the texts of errors name, for whoever has the package and not the source tree.

Rules: the pages are the files themselves. The wheel carries them beside this module (`PACKAGED`); in a source tree they lie in docs.

Exit codes: 0; 2 for a page that there is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wal.guides import DIRECTORY, PAGES

PACKAGED: Final = Path(__file__).parent / "operations"
IN_SOURCE: Final = Path(__file__).parent.parent / DIRECTORY
USAGE: Final = "usage: kvserver docs [PAGE]"


def main(arguments: Sequence[str]) -> int:
    """Run `kvserver docs ...`; returns the exit code. Raises BrokenPipeError, KeyboardInterrupt."""
    names = [each.removesuffix(".md").rpartition("/")[2] for each in arguments[1:]]  # a path, as texts have it, is a name, too
    if any(name in ("-h", "--help") for name in names):
        names = []
    unknown = [name for name in names if name not in PAGES]
    if unknown or len(names) > 1:
        what = f"there is no page {unknown[0]!r}" if unknown else "one page at a time"
        sys.stderr.write(f"kvserver docs: {what}; the pages are {', '.join(PAGES)}\n{USAGE}\n")
        return 2
    try:
        sys.stdout.write(read_page(names[0]) if names else overview())
    except FileNotFoundError as error:
        sys.stderr.write(f"kvserver docs: {error.filename}: this installation has no such page; it is {DIRECTORY} of the source tree\n")
        return 2
    return 0


def overview() -> str:
    """The names of the pages and what each is about."""
    width = max(map(len, PAGES))
    lines = [f"  {name:<{width}}  {title_of(read_page(name))}" for name in PAGES]
    return "\n".join((f"{USAGE}\n\nPrints a page of the operator's guide:\n", *lines, ""))


def read_page(name: str) -> str:
    """The text of one of `PAGES`. Raises OSError."""
    path = PACKAGED / f"{name}.md"
    return (path if path.exists() else IN_SOURCE / f"{name}.md").read_text(encoding="utf-8")


def title_of(text: str) -> str:
    """A page's first heading."""
    return next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "")
