"""The six guarantees of watching, over random lives of the hub (life.py)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.watch import catch_up, hub
from tests.kvserver.watch.life import live, random_steps

FAST_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None

small = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 6), st.sampled_from([3, 200, 1500])),
        st.tuples(st.just("txn"), st.lists(st.integers(0, 6), min_size=1, max_size=7), st.sampled_from([3, 300])),
        st.tuples(st.just("delete"), st.integers(0, 12)),
        st.tuples(st.just("compact"), st.integers(0, 4)),
        st.tuples(st.just("create"), small, st.integers(0, 12), st.integers(-6, 8), st.integers(0, 15)),
        st.tuples(st.just("cancel"), small, small),
        st.tuples(st.just("progress"), small),
        st.tuples(st.just("read"), small, st.integers(1, 12)),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["leave", "reconnect"]), small),
        st.just(("behind",)),
    ),
    min_size=5,
    max_size=50,
)


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """Everything that is bounded, so tight that these short lives meet it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(hub, "FANOUT_CHANGES", 4)
    patch.setattr(hub, "FANOUT_BYTES", 6000)
    patch.setattr(catch_up, "PIECE_CHANGES", 3)
    patch.setattr(catch_up, "PIECE_BYTES", 1500)
    yield
    patch.undo()


def run(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as directory:
        asyncio.run(live(Path(directory) / "db", steps))


@settings(max_examples=60)
@given(steps=STEPS)
def test_every_watcher_is_told_everything_once_in_order_or_cancelled(steps: list[Any]) -> None:
    run(steps)


@pytest.mark.parametrize("seed", range(40))
def test_lives_by_seed(seed: int) -> None:
    run(random_steps(seed))
