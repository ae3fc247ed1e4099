"""A life on a recorded disk, with or without faults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from kvserver.errors import KvError
from kvserver.testing.faults import CrashStates, Fault, Faults, FaultyFiles, RecordingFiles
from tests.durability.io.judging import check_tree, judge
from tests.durability.io.member import EndedError, boot
from tests.durability.io.script import Life
from wal import WalError

ENDS = (EndedError, WalError, KvError, OSError)
"""What may end a process when the disk fails: `kvserver.__main__` and the server make one line of each."""


@dataclass(slots=True)
class Recorded:
    """The life, its disk, and the count of its operations."""

    root: Path
    life: Life
    recorder: RecordingFiles
    faults: Faults
    error: Exception | None


async def live(
    home: Path, name: str, *, faults: list[Fault] | None = None, recorder_class: type[RecordingFiles] = RecordingFiles
) -> Recorded:
    """Live the life in a new directory; a planned fault may end it early."""
    base = home / name
    root, donors = base / "disk", base / "donors"
    root.mkdir(parents=True)
    donors.mkdir()
    plan = Faults(faults or (), history=[])
    recorder = recorder_class(root, seed=1)
    life = Life(root, recorder, FaultyFiles(recorder, plan, on_failed_sync=recorder.forget_unsynced), donors)
    error = None
    try:
        await life.run()
    except ENDS as ended:
        if not plan.failed:
            raise
        error = ended
        if life.member is not None:
            await life.member.kill()
    finally:
        recorder.end_process()
    return Recorded(root, life, recorder, plan, error)


async def check_ends(recorded: Recorded, scratch: Path, *, seed: int) -> None:
    """After a failure: power is lost, or the process starts again on the same disk, and what it then found outlives a power loss, too."""
    rng = Random(seed)
    await _check_power_loss(recorded, scratch, rng)
    opened = await boot(recorded.root, recorded.recorder)
    history = recorded.life.history
    history.adopt(judge(opened, history, history.promise()).with_hard_state(opened.origin.hard_state))
    await opened.abandon()
    recorded.recorder.end_process()
    await _check_power_loss(recorded, scratch, rng)


async def _check_power_loss(recorded: Recorded, scratch: Path, rng: Random) -> None:
    states, history = CrashStates(recorded.recorder.disk), recorded.life.history
    for selection in list(states.selections(3, rng))[:3]:
        await check_tree(states.build(selection), scratch, history, history.promise())
