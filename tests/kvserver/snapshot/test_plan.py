"""The chunk plan: covers the file exactly, resumes only where a chunk starts, and refuses offers that contradict themselves."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.snapshot import SnapshotOffer, SnapshotOfferError, plan
from raft.types import ConfState, Index, NodeId, SnapshotMetadata, Term

SHA = hashlib.sha256(b"x").digest()
METADATA = SnapshotMetadata(index=Index(5), term=Term(1), conf_state=ConfState(voters=(NodeId(1),)))
OFFER = SnapshotOffer(id=SHA[:16], size_bytes=100_000, sha256=SHA, chunk_size_bytes=4096, metadata=METADATA)

offers = st.builds(
    replace, st.just(OFFER), size_bytes=st.integers(1, 1 << 20), chunk_size_bytes=st.sampled_from([4096, 5000, 65536, 4 << 20])
)


@given(offer=offers)
def test_the_plan_covers_the_file_exactly_once(offer):
    plan.check_offer(offer)
    offset = 0
    while length := plan.chunk_length_bytes(offset, offer):
        assert 0 < length <= offer.chunk_size_bytes
        plan.check_chunk(offset, length, offset, offer)
        offset += length
    assert offset == offer.size_bytes


@given(offer=offers, kept=st.integers(0, 2 << 20))
def test_resuming_starts_at_a_chunk_and_keeps_nothing_beyond(offer, kept):
    offset = plan.resume_offset(kept, offer)
    plan.check_offset(offset, offer)
    assert offset <= kept
    assert offset == 0 or kept - offset < offer.chunk_size_bytes


@given(offer=offers, offset=st.integers(-10, 2 << 20))
def test_offsets_between_chunks_are_refused(offer, offset):
    starts = {*range(0, offer.size_bytes, offer.chunk_size_bytes), offer.size_bytes}
    if offset in starts:
        plan.check_offset(offset, offer)
        return
    with pytest.raises(SnapshotOfferError, match="no chunk starts"):
        plan.check_offset(offset, offer)


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(4096, 4096, 0), (0, 4095, 0), (0, 4097, 0), (98304, 4096, 98304), (100_000, 0, 100_000), (0, 0, 0)]
)
def test_only_the_next_chunk_is_taken(offset, length, expected):
    with pytest.raises(SnapshotOfferError):
        plan.check_chunk(offset, length, expected, OFFER)


@pytest.mark.parametrize(
    "change",
    [
        {"id": b"0" * 16},
        {"sha256": b"short"},
        {"size_bytes": 0},
        {"size_bytes": 2**50},
        {"chunk_size_bytes": 0},
        {"chunk_size_bytes": 4095},
        {"chunk_size_bytes": 1 << 30},
        {"metadata": replace(METADATA, index=Index(0))},
        {"metadata": replace(METADATA, term=Term(0))},
        {"metadata": replace(METADATA, conf_state=ConfState())},
    ],
)
def test_contradictory_offers_are_refused(change):
    with pytest.raises(SnapshotOfferError):
        plan.check_offer(replace(OFFER, **change))
