"""The ring "every IO": a directory in memory, and queues that do not wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvserver.node import append_queue
from tests.durability.io.member import fast_directory


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit index alone waits for the next entries, whatever the clock says; a full disk is tried again at once."""
    monkeypatch.setattr(append_queue, "COMMIT_DELAY_S", 3600.0)
    monkeypatch.setattr(append_queue, "RETRY_S", 0.0)


@pytest.fixture
def home() -> Iterator[Path]:
    """Where members, donors and crash states lie."""
    with fast_directory() as path:
        yield path
