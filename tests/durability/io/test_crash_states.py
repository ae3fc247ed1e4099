"""Power is lost at every operation of a member's life: whatever the disk may then hold, the member starts with all it has promised, and
with nothing that never was.

No refusal is legal here: the simulated disk keeps every sync that it reported (where a disk lies, `test_lying_disk` says what happens).
"""

from __future__ import annotations

from random import Random

import pytest

from kvserver.testing.faults import RecordingFiles, disk_of, write_tree
from tests.durability.io.judging import check_tree, count_sound_states, crash_points, judge
from tests.durability.io.member import boot
from tests.durability.io.recorded import live

PARTS = 8
PER_POINT = 256
LEAST_STATES = 20_000


async def test_sampled_crash_states_are_sound(home, capsys):
    recorded = await live(home, "life")
    journal = recorded.recorder.journal
    count = await count_sound_states(journal, home, recorded.life.history, per_point=6, seed=7, every=9, offset=Random().randrange(9))
    assert count > 150
    with capsys.disabled():
        print(f"\nevery IO: {len(journal)} operations, {count} crash states sampled")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
async def test_every_crash_state_is_sound(home, capsys, part):
    recorded = await live(home, "life")
    journal = recorded.recorder.journal
    count = await count_sound_states(journal, home, recorded.life.history, per_point=PER_POINT, seed=part, every=PARTS, offset=part)
    with capsys.disabled():
        print(f"\nevery IO: part {part + 1} of {PARTS}: {count} crash states checked")


async def test_there_are_enough_states(home, capsys):
    """What the slow test checks, counted."""
    recorded = await live(home, "life")
    total = sum(min(point.states.total, PER_POINT) for point in crash_points(recorded.recorder.journal))
    with capsys.disabled():
        print(f"\nevery IO: {total} crash states in all (at most {PER_POINT} of each moment)")
    assert total >= LEAST_STATES


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
async def test_power_lost_again_while_a_crash_is_recovered_from(home, seed):
    """Start on a state of the life with the disk recorded, and lose power at the operations of that start."""
    recorded = await live(home, "life")
    history, rng, count = recorded.life.history, Random(seed), 0
    for number, point in enumerate(crash_points(recorded.recorder.journal)):
        if number % 100 != 5 * seed:
            continue
        states = point.states
        tree = states.build(states.draw(rng))
        root = home / f"again-{number}"
        write_tree(tree, root)
        recorder = RecordingFiles(root, disk=disk_of(tree))
        opened = await boot(root, recorder)
        found = judge(opened, history, point.promise)
        await opened.abandon()
        recorder.end_process()
        for step in crash_points(recorder.journal, disk=disk_of(tree), promise=point.promise):
            steps = step.states
            for selection in steps.selections(3, rng):
                await check_tree(steps.build(selection), home / "step", history, point.promise)
                count += 1
        # Once the start is over, what it found is what there is: the member may have told others.
        assert await check_tree(steps.build(selection), home / "step", history, point.promise) == found
    assert count > 5
