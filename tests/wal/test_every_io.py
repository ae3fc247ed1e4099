"""Every operation on the disk fails once, and power is lost at every operation: what was saved with a sync is there, or the log says why
not.

The script is one life: create, saves that cut, an overwrite, commit-only saves, a snapshot marker, release, clean and unclean restarts.
For each N the Nth operation fails; then the process starts again (the page cache kept), and separately the power fails (each unsynced
sector and name kept or lost). After each the log opens as one of the states that the model allows, is used, and loses power once more.
"""

from __future__ import annotations

import errno

import pytest

from raft.types import Index, Term
from wal import Marker, WalFailedError, WalIOError


def script(kit, life):
    """A generator that yields after each operation of the life."""
    life.start()
    yield
    for index in range(1, 25, 2):
        life.save(kit.entries(index, index + 1, size=250), kit.state(commit=max(0, index - 3)), sync=True)
        yield
        life.save([], kit.state(commit=index - 1), sync=False)
        yield
    life.save(kit.entries(24, 26, term=2), kit.state(term=2, vote=3, commit=22), sync=True)
    yield
    life.apply(15)
    life.release()
    yield
    life.close()
    life.start()
    yield
    life.save([kit.entry(27, 2, b"x" * 9_000)], kit.state(term=2, vote=3, commit=24), sync=True)
    yield
    life.save_marker(Marker(Index(60), Term(2)), kit.state(term=2, vote=3, commit=60))
    yield
    for index in range(61, 75):
        life.save(kit.entries(index, index, term=2, size=300), kit.state(term=2, vote=3, commit=index - 1), sync=True)
        yield
    life.apply(70)
    life.start()  # killed and started again
    yield
    life.release()
    yield
    life.save(kit.entries(75, 77, term=2), kit.state(term=2, vote=3, commit=74), sync=True)
    yield
    life.close()
    yield


def count_operations(kit):
    life = kit.Life(kit.SimDisk(1))
    for _ in script(kit, life):
        pass
    return len(life.disk.operations)


def live_until_failure(kit, seed, fails):
    """Run the script on a disk that fails the operations whose number `fails` accepts; the life, at the failure."""
    life = kit.Life(kit.SimDisk(seed))
    life.disk.fail_when = lambda name, path: fails(len(life.disk.operations) - 1)
    with pytest.raises((WalFailedError, WalIOError)):
        for _ in script(kit, life):
            pass
    assert life.disk.failed == 1
    return life


def use_on(kit, life):
    """Save something on a freshly opened log, and lose power again: it is there."""
    last, old = life.state.last_index, life.state.hard_state
    term = max(old.term, 1)
    life.save(kit.entries(last + 1, last + 2, term=term), kit.state(term, old.vote, last), sync=True)
    life.power_loss(last)
    life.open()


def fail_each_operation(kit, numbers, seeds):
    """Fail each of these operations, then go on in both ways; how many cases that were."""
    cases = 0
    for number in numbers:
        for seed in seeds:
            life = live_until_failure(kit, seed, lambda count, number=number: count == number)
            if seed == 0:
                life.restart(number)
            else:
                life.power_loss(number * 10_007 + seed)
            life.start()
            use_on(kit, life)
            cases += 1
    return cases


@pytest.mark.parametrize("part", range(4))
def test_nothing_saved_is_lost_when_any_operation_fails(kit, part):
    total = count_operations(kit)
    assert total > 200
    assert fail_each_operation(kit, range(part, total, 4), range(3)) == 3 * len(range(part, total, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(8))
def test_nothing_saved_is_lost_in_many_crash_states(kit, part):
    total = count_operations(kit)
    fail_each_operation(kit, range(part, total, 8), range(3, 90))


@pytest.mark.parametrize("part", range(4))
def test_failure_during_recovery_is_recovered_by_the_next_one(kit, part):
    """A torn, unproven log; each operation of its recovery fails, then the process starts again or power is lost; then it is whole."""
    for number in range(part, 80, 4):
        for seed in range(4):
            life = torn_life(kit, seed)
            life.disk.fail_at = number
            try:
                life.open()
            except WalIOError:
                if seed % 2:
                    life.restart(number)
                else:
                    life.power_loss(number * 11 + seed)
                life.open()
            life.disk.fail_at = None
            use_on(kit, life)


def torn_life(kit, seed):
    life = kit.Life(kit.SimDisk(seed))
    life.start()
    life.save(kit.entries(1, 12, size=300), kit.state(commit=4), sync=True)
    life.save(kit.entries(13, 20, size=200), kit.state(commit=13), sync=False)
    life.power_loss(seed)
    return life


@pytest.mark.parametrize("unsynced", ["/", "/wal"])
def test_names_are_durable_before_open_returns(kit, unsynced):
    """A process that died between a rename and the sync of the directory leaves names that the next one must not trust yet."""
    life = kit.Life(kit.SimDisk(1))
    if unsynced == "/wal":
        life.start()
        life.save(kit.entries(1, 12, size=300), kit.state(commit=4), sync=True)
        life.restart(2)
    life.disk.fail_when = lambda name, path: name == "fsync_dir" and str(path) == unsynced and ("rename" in dict(life.disk.operations))
    with pytest.raises(WalIOError):
        life.start()
    life.restart(3)
    life.disk.fail_errno = errno.ENOSPC
    life.disk.fail_when = lambda name, path: name == "create"  # no new spare, whose directory sync would hide a missing one
    life.start()
    life.save(
        kit.entries(life.state.last_index + 1, life.state.last_index + 1), kit.state(commit=4 if unsynced == "/wal" else 0), sync=True
    )
    running = life.disk
    for seed in range(20):
        life.disk = running.after_power_loss(seed)
        life.open()
