"""Ends of ranges: the half-open [key, range_end) that means "all keys with this prefix" or "this key and everything behind it"."""

from __future__ import annotations

from typing import Final

EVERYTHING_FROM_KEY: Final = b"\x00"
"""As a range end: no upper bound."""


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key behind all keys that start with `prefix`; no bound if there is none (empty, or 0xff only)."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return EVERYTHING_FROM_KEY
    return stripped[:-1] + bytes([stripped[-1] + 1])
