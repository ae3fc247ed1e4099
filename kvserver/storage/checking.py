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
from kvserver.storage.page_format import DescribeRow, Faults, describe_plainly
from kvserver.storage.pages import PageFile, check_all, check_pages

CHECK_DISK: Final = "check the disk, its free space and the permissions of the path"


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


def check_structure(
    path: Path,
    tables: Sequence[bytes],
    *,
    every_row: bool = False,
    describe_row: DescribeRow = describe_plainly,
    checking: Checking | None = None,
) -> None:
    """Read the frame of every page of the file; with `every_row` every row, too: its order and its seal. Blocking.

    `describe_row` names a row in the text.

    Raises:
        StoreDamagedError: a page, or with `every_row` a row, isn't what was written.
        StoreUnreadableError: the file can't be read.
        CheckStoppedError: `checking` was stopped.
    """
    faults = Faults()
    watch = None if checking is None else checking.note
    with PageFile.open(path, describe_row) as file:
        if checking is not None:
            checking.of_bytes = file.size_bytes
        try:
            if every_row:
                check_all(file, tables, faults.report, watch=watch)
            else:
                check_pages(file, tables, faults.report, watch)
        except OSError as error:
            raise StoreUnreadableError(path, f"reading it failed: {error.strerror or error}", CHECK_DISK) from error
    faults.raise_any(path)
