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


def take_within(entries: list[Entry], lo: int, hi: int, max_size_bytes: int) -> list[Entry]:
    """A copy of the longest prefix of entries[lo:hi] that fits into `max_size_bytes` encoded, at least one entry if there are any.

    Only what is returned is copied: a long tail costs nothing.
    """
    size, at = 0, lo
    while at < hi:
        size += entry_size_bytes(entries[at])
        if size > max_size_bytes and at > lo:
            break
        at += 1
    return entries[lo:at]


def limit_size(entries: list[Entry], max_size_bytes: int) -> list[Entry]:
    """The longest prefix that fits into `max_size_bytes` encoded, at least one entry, as a new list."""
    return take_within(entries, 0, len(entries), max_size_bytes)
