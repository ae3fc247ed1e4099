"""Engines with mvcc's tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvserver.mvcc import TABLES
from kvserver.storage import Engine, EngineConfig


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """Nothing is committed unless the test asks for it."""
    opened = Engine.open(tmp_path / "db", tables=TABLES, config=EngineConfig(interval_s=600, commit_count=10**9))
    yield opened
    await opened.close(commit=False)
