"""The log window keeps its promises (log-memory.md, "Invariants"), whatever happens in whatever order; window_model.py states them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.compaction import WindowLimits
from tests.kvserver.node.window_model import LIMITS, SELF, STEPS, Model, Step, random_steps

numbers = st.integers(0, (1 << 16) - 1)


@given(st.sampled_from(LIMITS), st.lists(st.tuples(st.sampled_from(STEPS), numbers, numbers), max_size=60))
def test_every_decision_is_the_one_that_the_rule_grants(limits: WindowLimits, steps: list[Step]) -> None:
    Model(limits).run(steps)


@pytest.mark.parametrize("seed", range(10))
def test_long_histories_keep_every_promise(seed: int) -> None:
    Model(LIMITS[seed % len(LIMITS)]).run(random_steps(seed, 400))


def test_the_histories_exercise_the_rule() -> None:
    """Pins that expire at twice the cap, followers, joint configurations, a single node: the model meets them all."""
    expired = single = joint = following = compacted = 0
    for seed in range(10):
        model = Model(LIMITS[seed % len(LIMITS)])
        for step in random_steps(seed, 400):
            first = model.window.first_index()
            model.run([step])
            compacted += model.window.first_index() > first
            single += model.configuration.voters == (SELF,)
            joint += bool(model.configuration.voters_outgoing)
            following += not model.is_leader
        expired += model.expired
    assert min(expired, single, joint, following, compacted) > 20
