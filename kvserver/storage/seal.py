"""The seal of a row: four bytes behind every value on disk that show that key and value are what was written.

    stored value    0  n  the value
                    n  4  CRC-32C of: table's number (1), length of the key (2, big-endian), key, value; little-endian

Rules
- Every row of every table has one. It is put on by the commit thread and taken off by whoever reads the file, in this package only: the
  rest of kvserver never sees it, so no way of reading can forget to check.
- The table's number and the key's length are part of it: a row can't be taken for another table's, and a boundary between key and value
  that has moved is noticed.
- The checksum stands at the end and in little-endian order, because then the checksum of everything is one constant (`RESIDUE`), and
  checking copies nothing.

Caveat: CRC-32C misses a random change with a probability of 2^-32 (never one of up to three flipped bits in a row below 256 MiB). It
guards against accidents, not against someone who can write to the file. A seal tells nothing of rows that are not there: see reader.py
and pages.py.
"""

from __future__ import annotations

import struct
from typing import Final

import google_crc32c

SEAL_BYTES: Final = 4
MAX_TABLES: Final = 16
MAX_KEY_BYTES: Final = 511
RESIDUE: Final = 0x48674BC7

SEEDS: Final = tuple(
    tuple(google_crc32c.value(bytes((table,)) + length.to_bytes(2, "big")) for length in range(MAX_KEY_BYTES + 1))
    for table in range(MAX_TABLES)
)
"""For a table's number and a key's length: the checksum to go on from."""

_CRC: Final = struct.Struct("<I")
_extend = google_crc32c.extend


def seal(table: int, key: bytes, value: bytes) -> bytes:
    """What is stored for `value` under `key`; copies the value once."""
    return value + _CRC.pack(_extend(_extend(SEEDS[table][len(key)], key), value))


def is_sound(table: int, key: bytes, stored: bytes) -> bool:
    """Whether `stored` is what `seal` made for this key in this table."""
    return len(key) <= MAX_KEY_BYTES and _extend(_extend(SEEDS[table][len(key)], key), stored) == RESIDUE
