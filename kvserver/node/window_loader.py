"""Filling the log window from the WAL at a start, without ever holding the whole log.

Rules: every entry above the applied index is kept (it is still to be applied); below it only the newest within the window's limits, so
that peers with a trivial lag need no snapshot. The WAL hands entries over in file order: an index that was seen before overwrites, a gap
stands behind a snapshot marker, or behind segments that were not read because nobody needs them. If the last entries are among those (the
newest segments hold hard states only: elections), all of the log is applied, and the window begins empty behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvserver.node.compaction import WindowLimits
from kvserver.node.log_window import LogWindow, entry_footprint_bytes
from raft.types import ConfState, Entry, HardState, Index, Term
from wal import Recovered

_TRIM_ENTRIES: Final = 256
_TRIM_BYTES: Final = 4 * 1024 * 1024
"""How much is taken before what is below the applied index is trimmed again: by then it is beyond the caps by that much at most."""


class WindowLoader:
    """The sink of `Wal.open`."""

    def __init__(self, applied_index: Index, limits: WindowLimits) -> None:
        self._applied_index = applied_index
        self._limits = limits
        self._entries: LogWindow | None = None
        self._untrimmed_entries = 0
        self._untrimmed_bytes = 0

    def __call__(self, entry: Entry) -> None:
        """Take one entry."""
        window = self._entries
        if window is None or entry.index > window.last_index() + 1 or entry.index < window.first_index():
            # The first entry, one behind a marker, or one that overwrites everything held: begin anew in front of it.
            window = self._entries = _empty(Index(entry.index - 1), Term(0))
        window.append([entry])
        self._untrimmed_entries += 1
        self._untrimmed_bytes += entry_footprint_bytes(entry)
        if self._untrimmed_entries >= _TRIM_ENTRIES or self._untrimmed_bytes >= _TRIM_BYTES:
            self._trim(window)

    @property
    def held_bytes(self) -> int:
        """Memory accounted for what is held now."""
        return 0 if self._entries is None else self._entries.size_bytes

    def finish(
        self,
        recovered: Recovered,
        hard_state: HardState,
        conf_state: ConfState,
        durable: Callable[[], tuple[Index, ConfState]],
        *,
        term_at: Callable[[Index], Term],
    ) -> LogWindow:
        """The window, holding what was kept of the readable entries. `term_at` knows the readable positions, and the one before them."""
        held = self._entries
        window = LogWindow(
            first_index=recovered.first_index,
            prev_term=recovered.prev_term,
            hard_state=hard_state,
            conf_state=conf_state,
            durable=durable,
        )
        if recovered.last_index < recovered.first_index:
            return window
        if held is None or held.last_index() < recovered.last_index:
            # The last entries stand in segments that were not read: those hold nothing above the applied index, and no later one an entry.
            window.reset(recovered.last_index, recovered.last_term)
            return window
        self._trim(held)
        first = max(held.first_index(), recovered.first_index)
        if first > recovered.first_index:
            window.reset(Index(first - 1), term_at(Index(first - 1)))
        window.append(held.entries(Index(first), Index(held.last_index() + 1), 1 << 62))
        return window

    def _trim(self, window: LogWindow) -> None:
        cap = window.cap_index(self._limits.max_entries, self._limits.max_bytes)
        window.compact(min(cap, self._applied_index))
        self._untrimmed_entries = self._untrimmed_bytes = 0


def _empty(index: Index, term: Term) -> LogWindow:
    return LogWindow(
        first_index=Index(index + 1),
        prev_term=term,
        hard_state=HardState(),
        conf_state=ConfState(),
        durable=lambda: (index, ConfState()),
    )
