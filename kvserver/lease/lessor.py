"""When leases end: the leader's deadlines. Pure: it is told the time, and decides nothing but who is due.

Theory of operation
- Only a leader has a lessor, a new one for each term. It takes up every lease with its whole TTL, as it can't know what its predecessor
  has promised; `extend_s` (an election timeout) more are for clients that have to find the new leader first.
- A deadline moves with every renewal, the heap's entry doesn't: an entry whose lease has more time by then is put back under the
  lease's deadline when its turn comes. So renewing costs no memory, and a lease has one living entry in the heap.
- While nobody could renew (no quorum answered), time went on for the leases and not for their clients. `note_silence` gives what is overdue
  at its end as much more as the silence took, its TTL at most, and once until it is renewed: or leases would never end where every round
  of the quorum is slow.
- What `take_due` hands out is *taken*: the revoke may be on its way. Such a lease can't be renewed any more; it ends with `forget` (the
  revoke was applied) or comes back with `put_back` (it certainly was not, or nobody knows).

Invariants: a lease that isn't taken has exactly one living entry in the heap, not later than its deadline. Dead entries (of leases that
ended) are at most as many as there are leases, and `SLACK` more: beyond that the heap is built anew.

Time is in seconds on whatever clock the caller uses; it must not move back. About 300 bytes a lease.

Source: etcd's lessor and its lease queue.
"""

from __future__ import annotations

import heapq
from typing import Final

from kvserver.types import LeaseId

SLACK: Final = 64


class _Lease:
    __slots__ = ("deadline_s", "entry_s", "is_spared", "ttl_s")

    def __init__(self, ttl_s: int, deadline_s: float) -> None:
        self.ttl_s = ttl_s
        self.deadline_s = deadline_s
        self.entry_s: float | None = deadline_s
        """Where its entry stands in the heap; None while it is taken."""
        self.is_spared = False
        """Whether it had more time for a silence, since it was renewed."""


class Lessor:
    """The deadlines of one leader's term."""

    def __init__(self, *, extend_s: float = 0.0) -> None:
        self._extend_s = extend_s
        self._leases: dict[LeaseId, _Lease] = {}
        self._heap: list[tuple[float, LeaseId]] = []
        self._silence_end_s = float("-inf")
        self._silence_s = 0.0

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease: LeaseId) -> bool:
        return lease in self._leases

    @property
    def heap_length(self) -> int:
        """Entries, living and dead."""
        return len(self._heap)

    def take_up(self, lease: LeaseId, ttl_s: int, now_s: float) -> None:
        """A lease that was there before this term: its whole TTL, and the time to find this leader. No effect on one that is known."""
        if lease not in self._leases:
            self._add(lease, ttl_s, now_s + ttl_s + self._extend_s)

    def grant(self, lease: LeaseId, ttl_s: int, now_s: float) -> None:
        """A new lease."""
        self._add(lease, ttl_s, now_s + ttl_s)

    def forget(self, lease: LeaseId) -> None:
        """It has ended."""
        if self._leases.pop(lease, None) is not None:
            self._trim()

    def renew(self, lease: LeaseId, now_s: float) -> int | None:
        """Give it its whole TTL from now on; returns that. None if it is not known, or taken. Never shortens what it has."""
        found = self._leases.get(lease)
        if found is None or found.entry_s is None:
            return None
        found.deadline_s = max(found.deadline_s, now_s + found.ttl_s)
        found.is_spared = False
        return found.ttl_s

    def note_silence(self, took_s: float, now_s: float) -> None:
        """For `took_s` until now nobody could renew: what is overdue gets so much more from now on."""
        self._silence_end_s, self._silence_s = now_s, took_s

    def is_taken(self, lease: LeaseId) -> bool:
        """Whether its revoke may be on its way."""
        found = self._leases.get(lease)
        return found is not None and found.entry_s is None

    def remaining_s(self, lease: LeaseId, now_s: float) -> float | None:
        """What it has left: 0 to its TTL. None if it is not known."""
        found = self._leases.get(lease)
        if found is None:
            return None
        return min(float(found.ttl_s), max(0.0, found.deadline_s - now_s))

    def has_due(self, now_s: float) -> bool:
        """Whether any lease's time is over (that isn't taken)."""
        while self._heap and self._heap[0][0] <= now_s:
            entry_s, lease = self._heap[0]
            found = self._leases.get(lease)
            if found is not None and found.entry_s == entry_s:
                self._spare(found)
                if found.deadline_s <= now_s:
                    return True
                found.entry_s = found.deadline_s
                heapq.heapreplace(self._heap, (found.deadline_s, lease))
            else:
                heapq.heappop(self._heap)  # a dead entry
        return False

    def take_due(self, now_s: float, limit: int) -> list[LeaseId]:
        """Take up to `limit` leases whose time is over, the longest overdue first."""
        taken: list[LeaseId] = []
        while len(taken) < limit and self.has_due(now_s):
            _, lease = heapq.heappop(self._heap)
            self._leases[lease].entry_s = None
            taken.append(lease)
        return taken

    def put_back(self, lease: LeaseId, due_s: float) -> None:
        """A taken lease goes on, and is due (again) at `due_s`; no effect if it has ended, or isn't taken."""
        found = self._leases.get(lease)
        if found is not None and found.entry_s is None:
            found.deadline_s = due_s
            self._enter(lease, found)

    def _spare(self, found: _Lease) -> None:
        if found.deadline_s <= self._silence_end_s and not found.is_spared:
            found.deadline_s = self._silence_end_s + min(self._silence_s, float(found.ttl_s))
            found.is_spared = True

    def _add(self, lease: LeaseId, ttl_s: int, deadline_s: float) -> None:
        found = self._leases[lease] = _Lease(ttl_s, deadline_s)
        self._enter(lease, found)
        self._trim()

    def _enter(self, lease: LeaseId, found: _Lease) -> None:
        found.entry_s = found.deadline_s
        heapq.heappush(self._heap, (found.deadline_s, lease))

    def _trim(self) -> None:
        """Build the heap anew when most of it is dead."""
        if len(self._heap) > 2 * len(self._leases) + SLACK:
            self._heap = [(found.entry_s, lease) for lease, found in self._leases.items() if found.entry_s is not None]
            heapq.heapify(self._heap)
