"""The simulator finds known mistakes with forwarded writes."""

from __future__ import annotations

import pytest

from kvserver.testing.sim import simulate
from tests.sim.planted import Planted
from tests.sim.planted_forwarded import PLANTED_FORWARDED

STEPS = 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED_FORWARDED, ids=lambda planted: planted.name.replace(" ", "-"))
def test_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    for seed in range(planted.within_seeds):
        violation = simulate(seed, steps=STEPS).violation
        if violation:
            assert violation.startswith(planted.promises), f"seed {seed}: {violation}"
            return
    pytest.fail(f"not found within {planted.within_seeds} seeds of {STEPS} steps")
