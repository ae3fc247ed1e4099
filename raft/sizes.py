"""How large entries are: as protobuf on the wire, and as payload.

Purpose: the core's limits are stated in these two measures (`max_size_per_msg_bytes` and what is being applied: encoded size; the
uncommitted tail and inflight windows: payload), so they must be exact, and fast enough to run per entry.

An encoded entry is raftpb's: type, term and index as varints with a one-byte tag each (always present), data with tag and length (if any).
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.types import Entry


def varint_size_bytes(number: int) -> int:
    """The length of a non-negative number as a protobuf varint."""
    return ((number | 1).bit_length() + 6) // 7


def entry_size_bytes(entry: Entry) -> int:
    """The encoded size of one entry."""
    length = len(entry.data)
    size = 4 + ((entry.term | 1).bit_length() + 6) // 7 + ((entry.index | 1).bit_length() + 6) // 7
    if length:
        size += 1 + (length.bit_length() + 6) // 7 + length
    return size


def entries_size_bytes(entries: Sequence[Entry]) -> int:
    """The encoded size of several entries."""
    return sum(map(entry_size_bytes, entries))


def payload_size_bytes(entries: Sequence[Entry]) -> int:
    """The bytes that users put into the entries."""
    return sum([len(entry.data) for entry in entries])


def count_within(entries: Sequence[Entry], max_size_bytes: int) -> int:
    """How many leading entries fit into `max_size_bytes` encoded; the first one always does."""
    if not entries:
        return 0
    size = 0
    for count, entry in enumerate(entries):
        size += entry_size_bytes(entry)
        if size > max_size_bytes:
            return max(count, 1)
    return len(entries)


def limit_size(entries: list[Entry], max_size_bytes: int) -> list[Entry]:
    """The longest prefix that fits into `max_size_bytes` encoded, at least one entry; the list itself if all fit."""
    count = count_within(entries, max_size_bytes)
    return entries if count == len(entries) else entries[:count]
