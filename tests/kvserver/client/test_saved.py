"""A saved snapshot's bytes: content and checksum told apart however they are cut, and every damage noticed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.client.saved import DamagedSnapshotError, SnapshotChecksum

CONTENT = bytes(range(256)) * 4
SAVED = CONTENT + hashlib.sha256(CONTENT).digest()


def seen(data: bytes, cuts: list[int]) -> SnapshotChecksum:
    checksum = SnapshotChecksum()
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        checksum.update(data[at:cut])
        at = max(at, cut)
    return checksum


@given(st.lists(st.integers(0, len(SAVED)), max_size=40))
def test_however_the_stream_is_cut_content_and_checksum_are_told_apart(cuts: list[int]) -> None:
    checksum = seen(SAVED, cuts)
    assert checksum.content_bytes == len(CONTENT)
    assert checksum.check() == checksum.digest() == hashlib.sha256(CONTENT).digest()


@given(st.integers(0, len(SAVED) * 8 - 1))
def test_one_flipped_bit_anywhere_is_noticed(bit: int) -> None:
    damaged = bytearray(SAVED)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedSnapshotError, match="it is damaged"):
        seen(bytes(damaged), []).check()


@given(st.integers(0, len(SAVED) - 1))
def test_every_truncation_is_noticed(length: int) -> None:
    with pytest.raises(DamagedSnapshotError):
        seen(SAVED[:length], []).check()


def test_what_is_wrong_is_said() -> None:
    for data, text in (
        (b"", "it is empty"),
        (SAVED[:-1], "missing or were added"),
        (SAVED[:-512], "it is damaged"),
        (b"x" * 32, "missing or were added"),
    ):
        with pytest.raises(DamagedSnapshotError, match=text):
            seen(data, []).check()
