"""Where the operator reads on: how every text names a page of docs/operations.

Purpose: an error says what to do in half a line and names the page that says it whole. Who installed the package has no `docs` directory
beside it, but has the pages in it: `kvserver docs PAGE` prints one. So a text names both, and it names them through this module.

Rules: `PAGES` are the files of docs/operations; `guide_path` is the one place that knows where they lie.
"""

from __future__ import annotations

from typing import Final

DIRECTORY: Final = "docs/operations"
"""Where the pages lie in the source tree."""
PAGES: Final = ("backup-and-restore", "corruption", "disk-full", "quota", "replace-a-dead-member")
"""The pages by name, as `kvserver docs PAGE` takes them."""


def guide_path(name: str) -> str:
    """A page's path in the source tree; a name that is no page is a defect of the caller."""
    assert name in PAGES, name
    return f"{DIRECTORY}/{name}.md"


def guide(name: str) -> str:
    """A page as texts name it: its path, and the command that prints it."""
    return f"{guide_path(name)}, printed by `kvserver docs {name}`"


WAY_OUT: Final = (
    f"in a cluster remove this member and add it again with an empty data directory ({guide_path('replace-a-dead-member')});"
    f" restore a single node, or a cluster without a majority, from a backup ({guide_path('backup-and-restore')});"
    " `kvserver docs` prints both pages"
)
"""What to do when nothing on this member can bring back what is lost."""
