"""Random lives of a log beside a model of it: saves, overwrites, markers, releases, clean and unclean ends, power losses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.types import Index, Term
from wal import Marker

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "append", "commit", "overwrite", "marker", "apply", "release", "close", "kill", "power", "elect", "big"]
        ),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=40,
)


def step(kit, life, name, number):
    """One operation, its details drawn from `number`; illegal ones are skipped."""
    rng = random.Random(number)
    state = life.state
    term = max(state.hard_state.term, 1)
    last, commit = state.last_index, state.hard_state.commit
    sync = rng.random() < 0.7
    vote = state.hard_state.vote
    if name in ("append", "big"):
        size = rng.choice([0, 1, 20, 300, 600]) if name == "append" else rng.choice([5_000, 20_000])
        new = [
            kit.entry(last + 1 + i, term, rng.randbytes(size) if rng.random() < 0.8 else bytes(size)) for i in range(rng.randrange(1, 9))
        ]
        life.save(new, kit.state(term, vote, rng.randint(commit, last + len(new))), sync=sync)
    elif name == "commit":
        life.save([], kit.state(term, vote, rng.randint(commit, last)), sync=sync)
    elif name == "elect":
        life.save([], kit.state(term + 1, rng.randrange(5), commit), sync=True)
    elif name == "overwrite":
        floor = max(commit, life.applied)
        if last > floor:
            first = rng.randint(floor + 1, last)
            new = [kit.entry(first + i, term + 1, rng.randbytes(rng.randrange(300))) for i in range(rng.randrange(1, 5))]
            life.save(new, kit.state(term + 1, 0, commit), sync=sync)
    elif name == "marker":
        marker = Marker(Index(max(commit, life.applied) + rng.randrange(1, 60)), Term(term))
        life.save_marker(marker, kit.state(term, vote, marker.index + rng.randrange(3)))
    elif name == "apply":
        life.apply(rng.randint(0, last))
    elif name == "release":
        life.release()
    else:
        if name == "close":
            life.close()
        elif name == "kill":
            life.restart(number)
        else:
            life.power_loss(number)
        life.open()


def run(kit, seed, steps):
    life = kit.Life(kit.SimDisk(seed))
    life.start()
    for name, number in steps:
        step(kit, life, name, number)
    life.restart(seed)
    life.open()
    life.power_loss(seed + 1)
    life.open()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), steps=STEPS)
def test_log_holds_what_the_model_holds(kit, seed, steps):
    run(kit, seed, steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=5_000, deadline=None)
@given(seed=st.integers(0, 2**32), steps=STEPS)
def test_log_holds_what_the_model_holds_for_long(kit, seed, steps):
    run(kit, seed, steps)
