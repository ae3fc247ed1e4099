"""Which members are being fed from the WAL, or will be, and from where on: what the releaser leaves them for a while.

Rules
- A member that needs what memory has dropped and the WAL still has, and whose position has moved meanwhile, is being fed: it pins the log
  from there on. `PIN_S` after its position last moved the pin ends. So one that is down holds nothing, and one that is stuck not for long.
- A member to whom a snapshot is on its way will need what follows it: it pins that as long as the snapshot travels, then as any other.
- A member whose position isn't known (`match_index` 0, right after an election) and that gets no snapshot pins nothing.
- The bound in bytes is the releaser's: twice what is retained anyway; for a member that has got a snapshot, until it is fed from memory, as
  much as a snapshot has on top. So it catches up if the writes are slower than the transfer, instead of needing the next snapshot.

No clock: the caller passes monotonic seconds. One owner.

Source: log-memory.md, "Second step", and its invariant that snapshots don't follow each other without end.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple

from raft.progress import SNAPSHOT, Progress
from raft.types import Index, NodeId

PIN_S: Final = 30.0
"""As long as a delivered snapshot's pin in the log window."""


class WalPin(NamedTuple):
    """The lowest entry that somebody needs from disk; `after_snapshot`: to catch up behind a snapshot."""

    first_index: Index
    after_snapshot: bool


class _Place(NamedTuple):
    """What a member has (or will have with its snapshot), and since when."""

    match_index: Index
    since_s: float
    after_snapshot: bool


class WalPins:
    """Remembers since when each member has been where it is."""

    def __init__(self) -> None:
        self._places: dict[NodeId, _Place] = {}

    def lowest(
        self, progress: Iterable[tuple[NodeId, Progress, bool]], *, self_id: NodeId, log_first: Index, mem_first: Index, now_s: float
    ) -> WalPin | None:
        """What is pinned on disk now, None if nothing is. `progress` is the leader's; empty on others."""
        places: dict[NodeId, _Place] = {}
        pinned: list[_Place] = []
        for peer, state, _ in progress:
            place = None if peer == self_id else _place(state, self._places.get(peer), now_s)
            if place is None or not log_first - 1 <= place.match_index < mem_first - 1:
                continue
            places[peer] = place
            if now_s < place.since_s + PIN_S:
                pinned.append(place)
        self._places = places
        if not pinned:
            return None
        return WalPin(Index(min(place.match_index for place in pinned) + 1), any(place.after_snapshot for place in pinned))


def _place(state: Progress, known: _Place | None, now_s: float) -> _Place | None:
    if state.state is SNAPSHOT:
        return _Place(state.pending_snapshot, now_s, True)
    match = state.match_index
    if known is not None and known.after_snapshot and match < known.match_index:
        return known  # the snapshot has arrived, or not, and the member has not said so yet
    if match == 0:
        return None
    if known is None:
        return _Place(match, -inf, False)
    return known if known.match_index == match else _Place(match, now_s, known.after_snapshot)
