"""What the in-memory log promises (log-memory.md, "Invariants"), checked on every compaction and after every turn.

    promise              what is compared
    window bound         bytes <= cap + what is not applied durably yet; the same for entries; twice the cap while a snapshot is pinned
    compaction safety    the floor stays at or below what is applied, durable and committed, and never moves back
    window account       what is held is what is accounted for
    previous term        the term of first - 1 is known and right
    peers are served     what an active peer within the caps still needs is not dropped
    pins hold            what comes after the position of a snapshot in flight is not dropped, within twice the caps
    snapshot             it covers everything up to the window, and goes only to a peer that entries can't help
    single node          a leader without peers keeps the slack, and what is not applied durably yet
    log floor            what can be had at all begins at or below the window, knows the term before it, and never moves back

The rule of the window is not repeated here: each promise is stated on its own, with slack where the rule has some.
"""

from __future__ import annotations

from typing import Final

from kvserver.node.compaction import SLACK_BYTES, SLACK_ENTRIES, WindowLimits
from kvserver.node.log_window import LogWindow, entry_footprint_bytes
from kvserver.node.peers import PeerBook
from kvserver.testing.sim.checks import SafetyChecks
from kvserver.testing.sim.kernel import ViolationError
from raft.raw_node import RawNode
from raft.storage import Storage
from raft.types import Index, NodeId

_COUNTED_ENTRIES: Final = 300


class WindowChecks:
    """The promises of one member's window, for one life of the member."""

    def __init__(self, member: NodeId, window: LogWindow, limits: WindowLimits, safety: SafetyChecks, storage: Storage) -> None:
        self._member = member
        self._window = window
        self._limits = limits
        self._safety = safety
        self._first = int(window.first_index())
        self._storage = storage
        self._log_first = int(storage.first_index())
        self.check_previous_term()

    def check_previous_term(self) -> None:
        """The window starts behind a position whose term it knows."""
        before = Index(self._window.first_index() - 1)
        term = self._window.term(before)
        if before > self._safety.commit_index or term != self._safety.committed_term(before):
            raise ViolationError("previous term", f"{self._member} says that {before} has term {term}")

    def check_content(self) -> None:
        """After a compaction: the window starts where it says, and its byte account is exact."""
        self.check_previous_term()
        window = self._window
        if window.entry_count <= _COUNTED_ENTRIES:
            held = window.entries(window.first_index(), Index(window.last_index() + 1), 1 << 62)
            size_bytes = sum(map(entry_footprint_bytes, held))
            if (len(held), size_bytes) != (window.entry_count, window.size_bytes):
                raise ViolationError("window account", f"{self._member} accounts for {window.size_bytes} bytes, and holds {size_bytes}")

    def check_bounds(self, safe: Index, *, pinned: bool) -> None:
        """After a turn: nothing is held beyond the caps but what is not durably applied."""
        window, limits = self._window, self._limits
        if window.first_index() < self._first:
            raise ViolationError("compaction safety", f"{self._member}: the floor moved back from {self._first} to {window.first_index()}")
        self._first = window.first_index()
        self._check_log_floor()
        factor = 2 if pinned else 1
        if window.size_bytes > factor * limits.max_bytes and window.size_bytes > window.bytes_after(safe):
            text = f"{self._member} holds {window.size_bytes} bytes, the cap is {factor} x {limits.max_bytes}, durably applied is {safe}"
            raise ViolationError("window bound", text)
        if window.entry_count > max(factor * limits.max_entries, window.last_index() - safe):
            text = (
                f"{self._member} holds {window.entry_count} entries, the cap is {factor} x {limits.max_entries}, durably applied is {safe}"
            )
            raise ViolationError("window bound", text)

    def _check_log_floor(self) -> None:
        first = self._storage.first_index()
        if not self._log_first <= first <= self._first:
            raise ViolationError("log floor", f"{self._member}: it moved from {self._log_first} to {first}, memory begins at {self._first}")
        if first != self._log_first:
            self._log_first = first
            before = Index(first - 1)
            if self._storage.term(before) != self._safety.committed_term(before):
                raise ViolationError("log floor", f"{self._member} says that {before} has term {self._storage.term(before)}")

    def check_compaction(self, index: Index, raw: RawNode, durable_index: Index) -> None:
        """Before everything through `index` is dropped."""
        if index > min(raw.applied_index, raw.commit_index, durable_index):
            text = f"{self._member} compacts to {index}; applied {raw.applied_index}, durable {durable_index}, commit {raw.commit_index}"
            raise ViolationError("compaction safety", text)

    def check_served(self, index: Index, raw: RawNode, book: PeerBook, now_s: float) -> None:
        """As leader, before everything through `index` is dropped: active peers within the caps keep what they need."""
        window, limits = self._window, self._limits
        floor = window.first_index() - 1
        for peer, progress, _ in raw.progress():
            match = progress.match_index
            if peer in book.pins:
                self._check_pin(index, peer, book.pins[peer])
                continue
            if peer == raw.id or not floor <= match < index or match == 0:
                continue
            within = window.last_index() - match <= limits.max_entries and window.bytes_after(match) <= limits.max_bytes
            if within and now_s - book.last_contact_s(peer) <= limits.grace_s:
                text = f"{self._member} compacts to {index}, the active peer {peer} is at {match}, within the caps"
                raise ViolationError("peers are served", text)

    def _check_pin(self, index: Index, peer: NodeId, pin: Index) -> None:
        window, limits = self._window, self._limits
        within = window.last_index() - pin <= 2 * limits.max_entries and window.bytes_after(pin) <= 2 * limits.max_bytes
        if within and index > max(pin, window.first_index() - 1):
            raise ViolationError("pins hold", f"{self._member} compacts to {index}, the snapshot for {peer} is pinned at {pin}")

    def check_snapshot(self, peer: NodeId, index: Index, match: Index | None) -> None:
        """As leader, before a snapshot through `index` goes to `peer`; `match` is None where that may be newer than the wish."""
        window = self._window
        if index < window.first_index() - 1:
            text = f"{self._member} sends a snapshot at {index} to {peer}, its window begins at {window.first_index()}"
            raise ViolationError("snapshot", text)
        if match is not None and match >= self._storage.first_index() - 1:
            text = f"{self._member} sends a snapshot to {peer}, which is at {match}: it has entries from {self._storage.first_index()} on"
            raise ViolationError("snapshot", text)

    def check_single(self, safe: Index) -> None:
        """After a turn of a leader without peers."""
        window = self._window
        entries, size_bytes = safe - window.first_index() + 1, window.size_bytes - window.bytes_after(safe)
        if entries >= SLACK_ENTRIES or (entries > 0 and size_bytes >= SLACK_BYTES):
            raise ViolationError("single node", f"{self._member} still holds {entries} entries, {size_bytes} bytes for nobody")
