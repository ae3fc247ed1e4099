"""What this member knows of its peers beside raft's own progress: when each was last heard from, and what its snapshot pins.

Purpose: the shell's contact clocks and snapshot pins, joined with raft's progress into the claims that `compaction.decide` weighs.

Rules: monotonic seconds come from the caller; one owner (the driver); a pin always ends: by success after `PIN_AFTER_SUCCESS_S`, at once
by failure, removal or loss of leadership, or when twice the window's cap is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from kvserver.node.compaction import PeerClaim
from raft.progress import Progress
from raft.types import Index, NodeId

PIN_AFTER_SUCCESS_S: Final = 30.0
"""How long after a delivered snapshot its position stays held, so that the receiver can install it and be fed entries."""
FIRST_SNAPSHOT_PAUSE_S: Final = 0.25
MAX_SNAPSHOT_PAUSE_S: Final = 8.0
"""How long a peer waits for the next snapshot after failed ones: each one costs a copy of the whole store, and a full disk stays full."""


class PeerBook:
    """Contact clocks and pins, by member id."""

    def __init__(self) -> None:
        self._last_contact_s: dict[NodeId, float] = {}
        self._pins: dict[NodeId, Index] = {}
        self._pin_ends_s: dict[NodeId, float] = {}
        self._snapshot_failures: dict[NodeId, int] = {}
        self.pins_expired = 0

    def note_contact(self, peer: NodeId, now_s: float) -> None:
        """Something arrived from `peer`."""
        self._last_contact_s[peer] = now_s

    def last_contact_s(self, peer: NodeId) -> float:
        """When `peer` was last heard from; minus infinity if never."""
        return self._last_contact_s.get(peer, -math.inf)

    def contacts_since(self, since_s: float) -> list[NodeId]:
        """The peers heard from at or after `since_s`."""
        return [peer for peer, at_s in self._last_contact_s.items() if at_s >= since_s]

    def pin(self, peer: NodeId, index: Index) -> None:
        """A snapshot of position `index` is on its way to `peer`: hold the entries behind it."""
        self._pins[peer] = index
        self._pin_ends_s[peer] = math.inf

    def unpin_later(self, peer: NodeId, now_s: float) -> None:
        """The snapshot was delivered: the pin ends `PIN_AFTER_SUCCESS_S` from now."""
        if peer in self._pins:
            self._pin_ends_s[peer] = now_s + PIN_AFTER_SUCCESS_S

    def unpin(self, peer: NodeId) -> None:
        """The snapshot failed, or the peer is gone: nothing is held for it any more."""
        self._pins.pop(peer, None)
        self._pin_ends_s.pop(peer, None)

    def pause_after_failure_s(self, peer: NodeId) -> float:
        """A snapshot to `peer` failed: how long to wait with the next one. Doubles with every failure in a row."""
        failures = self._snapshot_failures.get(peer, 0)
        self._snapshot_failures[peer] = failures + 1
        return float(min(MAX_SNAPSHOT_PAUSE_S, FIRST_SNAPSHOT_PAUSE_S * 2 ** min(failures, 10)))

    def note_delivered(self, peer: NodeId) -> None:
        """A snapshot to `peer` arrived: the next failure is the first again."""
        self._snapshot_failures.pop(peer, None)

    def unpin_all(self) -> None:
        """Leadership was lost."""
        self._pins.clear()
        self._pin_ends_s.clear()

    def forget(self, peer: NodeId) -> None:
        """`peer` was removed from the cluster."""
        self.unpin(peer)
        self.note_delivered(peer)
        self._last_contact_s.pop(peer, None)

    @property
    def pins(self) -> dict[NodeId, Index]:
        """The pins in force."""
        return self._pins

    def pin_end_s(self, peer: NodeId) -> float:
        """When the pin of `peer` ends at the latest: infinity while its snapshot is on its way (KeyError without a pin)."""
        return self._pin_ends_s[peer]

    def expire(self, now_s: float, *, doubled_cap: Index, progress: Iterable[tuple[NodeId, Progress, bool]]) -> None:
        """End the pins that have run out, are no longer needed, belong to nobody any more, or lie below `doubled_cap` (the index down to
        which twice the cap reaches: such a pin alone would hold more than that).
        """
        if not self._pins:
            return
        tracked = {peer: state.match_index for peer, state, _ in progress}
        for peer, pinned in list(self._pins.items()):
            match_index = tracked.get(peer)
            if match_index is None:
                self.unpin(peer)
                continue
            caught_up = match_index >= pinned and not math.isinf(self._pin_ends_s[peer])
            if caught_up or now_s >= self._pin_ends_s[peer]:
                self.unpin(peer)
            elif pinned < doubled_cap:
                self.unpin(peer)
                self.pins_expired += 1

    def claims(self, progress: Iterable[tuple[NodeId, Progress, bool]], self_id: NodeId) -> list[PeerClaim]:
        """One claim for every peer that raft tracks, this member excepted."""
        return [
            PeerClaim(
                match_index=state.match_index,
                is_voter=not is_learner,
                last_contact_s=self._last_contact_s.get(peer, -math.inf),
                pin=self._pins.get(peer),
            )
            for peer, state, is_learner in progress
            if peer != self_id
        ]
