"""Keys, values and changes in a violation's words: short, however long they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvserver.testing.chaos.model import Change, Kv

_LONGEST_BYTES: Final = 60


def show_bytes(data: bytes) -> str:
    """Without the padding of values, and cut."""
    stripped = data.rstrip(b".")
    return repr(stripped) if len(stripped) <= _LONGEST_BYTES else f"{stripped[:_LONGEST_BYTES]!r}... ({len(data)} bytes)"


def show_changes(changes: Sequence[Change]) -> str:
    """What a revision does."""
    shown = [f"{show_bytes(each.key)} {'deleted' if each.value is None else '= ' + show_bytes(each.value)}" for each in changes]
    return "{" + ", ".join(shown) + "}" if shown else "nothing"


def show_kv(kv: Kv | None) -> str:
    """A key-value with its numbers."""
    if kv is None:
        return "none"
    numbers = f"(created {kv.create_revision}, modified {kv.mod_revision}, version {kv.version})"
    return f"{show_bytes(kv.key)} = {show_bytes(kv.value)} {numbers}"


def show_kvs(kvs: Sequence[Kv]) -> str:
    """Several of them."""
    return ", ".join(map(show_kv, kvs)) or "none"
