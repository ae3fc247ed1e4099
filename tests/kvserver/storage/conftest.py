"""Engines on temporary files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kvserver.storage import Engine, EngineConfig, EngineHooks, batch
from tests.kvserver.storage.held import HeldCommits

OpenEngine = Callable[..., Engine]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldCommits]:
    commits = HeldCommits()
    monkeypatch.setattr(batch, "write", commits)
    yield commits
    commits.open()


@pytest.fixture
async def open_engine(tmp_path: Path) -> AsyncIterator[OpenEngine]:
    opened: list[Engine] = []

    def make(name: str = "db", hooks: EngineHooks | None = None, **config: int | float) -> Engine:
        engine = Engine.open(tmp_path / name, tables=(b"one", b"two"), config=EngineConfig(**config), hooks=hooks)  # type: ignore[arg-type]
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        await engine.close(commit=False)
