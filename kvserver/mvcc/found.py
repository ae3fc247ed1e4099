"""A key that a range has met."""

from __future__ import annotations

from typing import NamedTuple

from kvserver.mvcc import layout


class Found(NamedTuple):
    """A key that exists at the revision that was asked for, and what of it is known without its value."""

    key: bytes
    revision: bytes
    create_revision: int
    version: int
    lease: int

    @property
    def mod_revision(self) -> int:
        """The main revision of the change."""
        return layout.main_of(self.revision)
