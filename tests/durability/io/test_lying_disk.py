"""A disk that reports syncs it did not do: nothing can be promised then, but a refusal has words, and nothing is made up."""

from __future__ import annotations

from random import Random

import pytest

from kvserver.errors import KvError
from kvserver.testing.faults import CrashStates, RecordingFiles
from kvserver.testing.faults.operations import Operation, SyncFile
from tests.durability.io.history import Promise
from tests.durability.io.judging import check_tree
from tests.durability.io.recorded import live
from wal import WalError

LIES_FROM = 700


class LyingFiles(RecordingFiles):
    """From some operation on no sync of a file does anything."""

    def record(self, operation: Operation) -> None:
        if not isinstance(operation, SyncFile) or len(self.journal) < LIES_FROM:
            super().record(operation)


@pytest.mark.parametrize("seed", range(2))
async def test_what_a_lying_disk_lost_is_refused_or_an_older_state(home, seed):
    """Never an exception without words, and never a state that was not written: the log is whole up to some point, or refused."""
    recorded = await live(home, "life", recorder_class=LyingFiles)
    history = recorded.life.history
    states, rng = CrashStates(recorded.recorder.disk), Random(seed)
    anything = Promise(0, len(history.states))
    refusals = []
    for _ in range(8):
        try:
            await check_tree(states.build(states.draw(rng)), home / f"state-{rng.random()}", history, anything)
        except (KvError, WalError) as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all(str(home) in text for text in refusals), "each names the file"
