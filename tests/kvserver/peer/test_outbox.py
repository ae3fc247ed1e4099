"""The two lanes: bounds, order, and urgent frames first, against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.peer.outbox import Outbox, OutboxLimits, out_frame

LIMITS = OutboxLimits(bulk_size_bytes=100, bulk_frames=6, urgent_size_bytes=40, urgent_frames=4)

operations = st.lists(st.one_of(st.none(), st.tuples(st.booleans(), st.integers(1, 120))), max_size=60)


@settings(max_examples=120, deadline=None)
@given(operations=operations)
def test_lanes_behave_as_two_bounded_queues(operations):
    outbox, model = Outbox(LIMITS), {True: [], False: []}
    bounds = {True: (4, 40), False: (6, 100)}
    for number, operation in enumerate(operations):
        if operation is None:
            lane = model[True] or model[False]
            expected = lane.pop(0) if lane else None
            got = outbox.pop()
            assert (None if got is None else got.segments[0]) == expected
        else:
            is_urgent, size = operation
            payload = (b"%06d" % number).ljust(size, b".")[:size]
            lane, (max_frames, max_bytes) = model[is_urgent], bounds[is_urgent]
            fits = len(lane) < max_frames and (not lane or sum(map(len, lane)) + size <= max_bytes)
            assert outbox.push(out_frame([payload], is_urgent=is_urgent)) is fits
            if fits:
                lane.append(payload)
        assert outbox.queued_bytes == sum(map(len, model[True] + model[False]))
        assert len(outbox) == len(model[True]) + len(model[False])
    assert outbox.clear() == len(model[True]) + len(model[False])
    assert outbox.queued_bytes == 0
    assert outbox.pop() is None


@pytest.mark.parametrize("field", ["bulk_size_bytes", "bulk_frames", "urgent_size_bytes", "urgent_frames"])
def test_limits_must_be_positive(field):
    with pytest.raises(ValueError, match=field):
        OutboxLimits(**{field: 0})
