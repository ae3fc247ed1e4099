"""Is this file an intact store? Looked at page by page, without LMDB, before anything relies on it.

Rules
- Blocking, for as long as the file is large (docs/architecture/storage.md has the figures): call it in a thread. A `Checking` shows
  another thread how far it is, and lets it stop the walk.
- Nothing is written. Only of a file that nobody writes meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvserver.storage.errors import CheckStoppedError, StoreUnreadableError
from kvserver.storage.pages import PageFile, check_all, check_pages

RESTORE: Final = (
    "nothing was changed; `kvserver check` lists all the damage, restore this member from its peers or from a backup "
    "(docs/operations/corruption.md)"
)


@dataclass(slots=True, kw_only=True)
class Checking:
    """A check under way, seen from another thread: how far it is, and a way to end it."""

    pages: int = 0
    of_pages: int = 0
    of_bytes: int = 0
    is_stopped: bool = False

    def stop(self) -> None:
        """End it within some milliseconds, with a CheckStoppedError."""
        self.is_stopped = True

    def note(self, pages: int, of_pages: int) -> None:
        """Called by the walk. Raises CheckStoppedError."""
        self.pages, self.of_pages = pages, of_pages
        if self.is_stopped:
            raise CheckStoppedError

    @property
    def percent(self) -> int:
        """Of the file's pages."""
        return 100 * self.pages // self.of_pages if self.of_pages else 0


def check_structure(path: Path, tables: Sequence[bytes], *, every_row: bool = False, checking: Checking | None = None) -> None:
    """Read the frame of every page of the file; with `every_row` every row, too: its order and its seal. Blocking.

    Raises:
        StoreUnreadableError: a page, or with `every_row` a row, isn't what was written.
        CheckStoppedError: `checking` was stopped.
    """
    found = 0
    first = ""
    watch = None if checking is None else checking.note

    def report(offset_bytes: int, reason: str) -> None:
        nonlocal found, first
        found += 1
        first = first or f"at offset {offset_bytes} {reason}"

    with PageFile.open(path) as file:
        if checking is not None:
            checking.of_bytes = file.size_bytes
        try:
            if every_row:
                check_all(file, tables, report, watch=watch)
            else:
                check_pages(file, tables, report, watch)
        except OSError as error:
            raise StoreUnreadableError(path, f"reading it failed: {error.strerror or error}") from error
    if found:
        raise StoreUnreadableError(path, f"it is damaged: {first}{f' (and {found - 1} more)' if found > 1 else ''}; {RESTORE}")
