"""The checker is real: every planted mistake is found, by the right name, in generated histories (recorded ones: test_run.py)."""

from __future__ import annotations

from random import Random

import pytest

from kvserver.testing.chaos import History, check
from tests.chaos.correct import make_history
from tests.chaos.planted import PLANTED, Planted, spoiled

SEEDS = range(3)


@pytest.fixture(scope="module")
def histories() -> dict[int, History]:
    """Good ones."""
    made = {seed: make_history(seed, operations=450) for seed in SEEDS}
    assert all(check(history).total == 0 for history in made.values())
    return made


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name.replace(" ", "-"))
def test_finds(planted: Planted, histories: dict[int, History]) -> None:
    for seed, history in histories.items():
        findings = check(spoiled(planted, history, Random(seed)))
        texts = [violation.text for violation in findings.kept if violation.kind is planted.kind]
        assert any(planted.says in text for text in texts), f"seed {seed}: {findings.lines()}"


def test_spoiling_leaves_the_original_good(histories: dict[int, History]) -> None:
    for planted in PLANTED:
        spoiled(planted, histories[0], Random(1))
    assert check(histories[0]).total == 0


def test_there_are_enough_of_them() -> None:
    """The issue asks for ten."""
    assert len({planted.name for planted in PLANTED}) == len(PLANTED) >= 30
    assert len({planted.kind for planted in PLANTED}) >= 18
