"""Runs of entries that were read back from disk, for the members that are being fed from there.

Rules: bounded in bytes and number; what was used least recently goes first. A block that is larger than the bound is kept alone: whoever
waits for it has to get it. Small by design: a block is used within moments, and several members at the same place share it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES
from raft.types import Entry, Index

MAX_BLOCKS: Final = 32
_ENCODED_OVERHEAD_BYTES: Final = 24


class BlockCache:
    """Blocks by their first index. One owner."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[Index, tuple[list[Entry], int]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, entries: list[Entry]) -> None:
        """Take over a run of entries (at least one)."""
        size_bytes = sum(len(entry.data) + ENTRY_OVERHEAD_BYTES for entry in entries)
        self._remove(entries[0].index)
        while self._blocks and (self.size_bytes + size_bytes > self._max_bytes or len(self._blocks) >= MAX_BLOCKS):
            self._remove(next(iter(self._blocks)))
        self._blocks[entries[0].index] = (entries, size_bytes)
        self.size_bytes += size_bytes

    def holds(self, index: Index) -> bool:
        """Whether the entry is here."""
        return self._find(index) is not None

    def take(self, lo: Index, hi: Index, max_size_bytes: int) -> list[Entry]:
        """Entries `[lo, ..)` below `hi` as far as one block has them, within raft's size limit (the first one always passes); none if `lo`
        is not here.
        """
        start = self._find(lo)
        if start is None:
            return []
        self._blocks.move_to_end(start)
        held = self._blocks[start][0]
        found: list[Entry] = []
        size_bytes = 0
        for entry in held[lo - start : hi - start]:
            size_bytes += len(entry.data) + _ENCODED_OVERHEAD_BYTES
            if found and size_bytes > max_size_bytes:
                break
            found.append(entry)
        return found

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.size_bytes = 0

    def _find(self, index: Index) -> Index | None:
        return next((start for start, (held, _) in self._blocks.items() if start <= index < start + len(held)), None)

    def _remove(self, start: Index) -> None:
        removed = self._blocks.pop(start, None)
        if removed is not None:
            self.size_bytes -= removed[1]
