"""Mistakes in the log window that more than one ring of tests must find."""

from __future__ import annotations

import pytest

from kvserver.node.log_window import LogWindow
from raft.types import Index

Patch = pytest.MonkeyPatch


def term_not_kept(patch: Patch) -> None:
    """Compaction forgets the term of what it dropped last."""
    original = LogWindow.compact

    def forgetful(self: LogWindow, index: Index) -> int:
        previous = self._prev_term
        dropped = original(self, index)
        self._prev_term = previous
        return dropped

    patch.setattr(LogWindow, "compact", forgetful)
