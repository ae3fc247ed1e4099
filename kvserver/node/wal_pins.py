"""Which members are being fed from the WAL, and from where on: what the releaser leaves them for a while.

Rules
- A member that needs what memory has dropped and the WAL still has, and whose position has moved meanwhile, is being fed: it pins the log
  from there on. `PIN_S` after its position last moved the pin ends. So one that is down holds nothing, and one that is stuck not for long.
- The bound in bytes is the releaser's: twice what is retained anyway. A member that is slower than the writes gets a snapshot in the end.
- A member whose position isn't known yet (`match_index` 0, right after an election), or to whom a snapshot is on its way, pins nothing.

No clock: the caller passes monotonic seconds. One owner.

Source: log-memory.md, "Second step".
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from raft.progress import SNAPSHOT, Progress
from raft.types import Index, NodeId

PIN_S: Final = 30.0
"""As long as a delivered snapshot's pin in the log window."""


class WalPins:
    """Remembers since when each member has been where it is."""

    def __init__(self) -> None:
        self._positions: dict[NodeId, tuple[Index, float]] = {}

    def lowest(
        self, progress: Iterable[tuple[NodeId, Progress, bool]], *, self_id: NodeId, log_first: Index, mem_first: Index, now_s: float
    ) -> Index | None:
        """The lowest entry that a member is being fed from disk, None if none is. `progress` is the leader's; empty on others."""
        positions: dict[NodeId, tuple[Index, float]] = {}
        pinned: Index | None = None
        for peer, state, _ in progress:
            match = state.match_index
            if peer == self_id or match == 0 or state.state is SNAPSHOT or not log_first - 1 <= match < mem_first - 1:
                continue
            known = self._positions.get(peer)
            position = (match, -inf if known is None else now_s) if known is None or known[0] != match else known
            positions[peer] = position
            if now_s < position[1] + PIN_S and (pinned is None or match < pinned):
                pinned = match
        self._positions = positions
        return None if pinned is None else Index(pinned + 1)
