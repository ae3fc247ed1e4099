"""The simulator finds known mistakes: each is planted alone, and must show within the number of seeds that its row states."""

from __future__ import annotations

import pytest

from kvserver.testing.sim import simulate
from tests.sim.planted import PLANTED, Planted
from tests.sim.planted_window import PLANTED_WINDOW

STEPS = 1000


def _parameter(planted: Planted) -> object:
    return pytest.param(planted, id=planted.name.replace(" ", "-"), marks=[pytest.mark.slow] if planted.is_slow else [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", [_parameter(planted) for planted in (*PLANTED, *PLANTED_WINDOW)])
def test_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    for seed in range(planted.within_seeds):
        violation = simulate(seed, steps=STEPS, nodes=planted.nodes).violation
        if violation:
            assert violation.startswith(planted.promises), f"seed {seed}: {violation}"
            return
    pytest.fail(f"not found within {planted.within_seeds} seeds of {STEPS} steps")


def test_table_is_large_enough_for_ci() -> None:
    """At least ten of them are looked for in every run."""
    assert sum(1 for planted in PLANTED if not planted.is_slow) >= 10
