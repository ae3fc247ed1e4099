"""Every planted mistake fits the core as it is now; whether it is caught is for `python -m tests.raft.mutants` (minutes) to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.mutants.catalogue import MUTANTS
from tests.raft.mutants.mutant import Mutant, PlantError

PACKAGE = Path(__file__).resolve().parents[3] / "raft"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mistake_can_be_planted(mutant: Mutant) -> None:
    source = (PACKAGE / f"{mutant.module}.py").read_text(encoding="utf-8")
    assert mutant.changed(source) != source


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


@pytest.mark.parametrize(
    ("source", "after", "reason"),
    [
        ("b = 1\n", "a = 2", "occurs 0 times"),
        ("a = 1\na = 1\n", "a = 2", "occurs 2 times"),
        ("a = 1\n", "a = 1", "changes nothing"),
        ("a = 1\n", "a = (", "not Python"),
    ],
)
def test_planting_refuses_what_does_not_fit(source: str, after: str, reason: str) -> None:
    mutant = Mutant(name="example", module="log", mistake="none", before="a = 1", after=after)
    with pytest.raises(PlantError, match=reason):
        mutant.changed(source)
