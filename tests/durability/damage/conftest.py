"""The member whose directory is damaged: built once for each test process; a fresh copy for each test."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durability.damage.member import Directory, States, build


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[States]:
    """The moments of one member's life."""
    home = tmp_path_factory.mktemp("damage")
    yield asyncio.run(build(home))
    shutil.rmtree(home, ignore_errors=True)


Take = Callable[..., Directory]


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Take]:
    """A copy to damage; with "lost", its store is removed."""

    def copy(state: Directory, store: str = "kept") -> Directory:
        directory = state.copy_to(tmp_path / "data")
        if store == "lost":
            directory.lose_store()
        return directory

    yield copy
    shutil.rmtree(tmp_path, ignore_errors=True)
