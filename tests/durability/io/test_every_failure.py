"""Every operation on the disk fails once, with each error that fits it: what was promised is there after a restart, and after a power loss.

A failure of the log ends the process (a full disk only makes it wait); one of a snapshot file ends that transfer; one of a start ends the
start. Nothing else may come of it, and the next start needs no help.
"""

from __future__ import annotations

import errno
from random import Random

import pytest

from kvserver.testing.faults import WRITES, Fault
from tests.durability.io.recorded import Recorded, check_ends, live

PARTS = 8
TRANSFER_FAILURES = [("fsync", "incoming-*"), ("rename", "incoming-*"), ("pwritev", "incoming-*"), ("fsync", "outgoing-*")]
EIO = ("any", errno.EIO, None)
TORN = ("pwritev", errno.EIO, 0.6)
FULL = ("space", errno.ENOSPC, None)


async def operations_of_a_life(home) -> list[str]:
    recorded = await live(home, "count")
    assert recorded.error is None
    return [name for name, _ in recorded.faults.history]


def fault_at(number: int, kind: tuple[str, int, float | None]) -> Fault:
    _, code, partial = kind
    return Fault(errno=code, after=number, count=1, partial=partial)


def numbers_for(operations: list[str], kind: tuple[str, int, float | None]) -> list[int]:
    """Which operations can fail like this. Reserved space does not run out (`pwritev` into a segment), but a snapshot's may."""
    what = kind[0]
    return [number for number, name in enumerate(operations) if what == "any" or name == what or (what == "space" and name in WRITES)]


async def fail_at(home, number: int, kind: tuple[str, int, float | None]) -> Recorded:
    """Live until the failure ends the process (or to the end), then judge every end of it."""
    recorded = await live(home, f"fault-{number}", faults=[fault_at(number, kind)])
    assert recorded.faults.failed == 1
    await check_ends(recorded, home / "state", seed=number)
    return recorded


async def fail_all(home, kind, *, stride: int, offset: int) -> int:
    operations = await operations_of_a_life(home)
    numbers = numbers_for(operations, kind)[offset::stride]
    for number in numbers:
        try:
            await fail_at(home, number, kind)
        except AssertionError as error:
            raise AssertionError(f"operation {number} ({operations[number]}) failed with {errno.errorcode[kind[1]]}: {error}") from error
    return len(numbers)


@pytest.mark.parametrize("kind", [EIO, TORN, FULL], ids=["eio", "torn", "full"])
async def test_nothing_promised_is_lost_when_a_sampled_operation_fails(home, kind):
    assert await fail_all(home, kind, stride=67 if kind is EIO else 41, offset=Random().randrange(30)) > 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", [EIO, TORN, FULL], ids=["eio", "torn", "full"])
async def test_nothing_promised_is_lost_when_any_operation_fails(home, capsys, kind, part):
    count = await fail_all(home, kind, stride=PARTS, offset=part)
    assert count > 0
    with capsys.disabled():
        print(f"\nevery IO: {kind[0]} {errno.errorcode[kind[1]]}, part {part + 1} of {PARTS}: {count} failures")


async def test_a_full_disk_makes_the_log_wait_and_nothing_else(home):
    """No spare segment, then no next one: saves wait, and the life goes on to its end."""
    fault = Fault(operations=frozenset({"create", "preallocate"}), errno=errno.ENOSPC, after=8, count=6)
    recorded = await live(home, "full", faults=[fault])
    assert recorded.error is None
    assert recorded.faults.failed == 6


@pytest.mark.parametrize(("operation", "path"), TRANSFER_FAILURES)
async def test_a_snapshot_transfer_that_fails_is_begun_anew(home, operation, path):
    recorded = await live(home, "life", faults=[Fault(operations=frozenset({operation}), path=path, count=1)])
    assert recorded.faults.failed == 1
    assert recorded.error is None
