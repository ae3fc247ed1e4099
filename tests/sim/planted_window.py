"""Known mistakes in what the log window keeps for others, as `planted.py`: snapshots, pins, floors, and who has a claim."""

from __future__ import annotations

from typing import Any

import pytest

import kvserver.testing.sim.member as shell
import raft.replication
from kvserver.node import compaction
from kvserver.node.log_window import LogWindow
from kvserver.testing.sim.network import Network
from raft.messages import Message, MessageType
from raft.progress import PROBE
from raft.raw_node import RawNode
from raft.state import RaftState
from raft.types import Index, NodeId, Snapshot, SnapshotMetadata
from tests.sim.planted import Planted

Patch = pytest.MonkeyPatch


def _snapshot_for_nothing(patch: Patch) -> None:
    """A peer that is probed gets a snapshot, whatever it has."""
    original = raft.replication.maybe_send_append

    def lavish(r: RaftState, to: NodeId, *, send_if_empty: bool) -> bool:
        progress = r.tracker.progress[to]
        if progress.state is PROBE and progress.match_index and not progress.is_paused and r.log.snapshot().metadata.index:
            return raft.replication._maybe_send_snapshot(r, to, progress)
        return original(r, to, send_if_empty=send_if_empty)

    patch.setattr(raft.replication, "maybe_send_append", lavish)


def _snapshot_below_the_window(patch: Patch) -> None:
    def stale(self: LogWindow) -> Snapshot:
        _, conf_state = self._durable()
        before = Index(self.first_index() - 1)
        return Snapshot(metadata=SnapshotMetadata(index=Index(max(1, before - 1)), term=self.term(before), conf_state=conf_state))

    patch.setattr(LogWindow, "snapshot", stale)


def _pin_holds_nothing(patch: Patch) -> None:
    original = compaction._claim

    def blind(window: Any, peer: Any, situation: Any, limits: Any) -> Any:
        claim = original(window, peer, situation, limits)
        return claim if peer.pin is None else compaction.Claim(compaction.ClaimKind.BEYOND, None)

    patch.setattr(compaction, "_claim", blind)


def _pin_does_not_double_the_caps(patch: Patch) -> None:
    original = compaction._leader_want
    patch.setattr(compaction, "_leader_want", lambda *arguments: (*original(*arguments)[:2], False))


def _snapshot_never_taken(patch: Patch) -> None:
    """A received snapshot is not installed, and reported as delivered."""
    original = shell.Member.accept

    def deaf(self: shell.Member, message: Message, floor: Index) -> None:
        if message.type is not MessageType.SNAP:
            original(self, message, floor)

    patch.setattr(shell.Member, "accept", deaf)


def _learners_ignored(patch: Patch) -> None:
    original = shell.PeerBook.claims
    patch.setattr(shell.PeerBook, "claims", lambda self, progress, own: original(self, [each for each in progress if not each[2]], own))


def _outgoing_voters_ignored(patch: Patch) -> None:
    original = shell.PeerBook.claims
    keeper = shell.WindowKeeper.decide

    def half(self: Any, raw: RawNode, **given: Any) -> Any:
        present = raw.tracker_config.voters.incoming | raw.tracker_config.learners
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(
                shell.PeerBook, "claims", lambda book, progress, own: original(book, [each for each in progress if each[0] in present], own)
            )
            return keeper(self, raw, **given)

    patch.setattr(shell.WindowKeeper, "decide", half)


def _floor_does_not_ride(patch: Patch) -> None:
    original = Network.send
    patch.setattr(Network, "send", lambda self, messages, floor: original(self, messages, Index(0)))


def _compaction_only_after_an_apply(patch: Patch) -> None:
    """A window that nobody needs any more stays until something is written."""
    original = shell.Member._compact
    seen: dict[shell.Member, Index] = {}

    def lazy(self: shell.Member) -> None:
        if seen.get(self) != self.store.applied_index:
            seen[self] = self.store.applied_index
            original(self)

    patch.setattr(shell.Member, "_compact", lazy)


def _nothing_is_enough(patch: Patch) -> None:
    patch.setattr(compaction, "SLACK_ENTRIES", 1 << 40)
    patch.setattr(compaction, "SLACK_BYTES", 1 << 40)


PLANTED_WINDOW = (
    Planted("a snapshot goes to a peer that entries can help", _snapshot_for_nothing, ("snapshot",), 100),
    Planted("a snapshot lies below the window", _snapshot_below_the_window, ("snapshot",), 60),
    Planted("a pin holds nothing", _pin_holds_nothing, ("pins hold",), 200),
    Planted("a pin doesn't double the caps", _pin_does_not_double_the_caps, ("pins hold",), 200),
    Planted("a snapshot is never taken", _snapshot_never_taken, ("no loop of snapshots",), 60),
    Planted("learners have no claim", _learners_ignored, ("peers are served",), 200),
    Planted("voters that leave have no claim", _outgoing_voters_ignored, ("peers are served",), 400, is_slow=True),
    Planted("the floor does not ride", _floor_does_not_ride, ("progress after healing",), 60),
    Planted("the window is compacted only after an apply", _compaction_only_after_an_apply, ("progress", "window bound"), 60),
    Planted("a single node keeps everything within the caps", _nothing_is_enough, ("single node",), 10, nodes=1),
)
