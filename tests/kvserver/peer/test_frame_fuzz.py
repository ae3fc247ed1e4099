"""Streams of genuine frames, changed at will and cut into pieces at will: a frame that was sent, or a FrameError, and nothing else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.peer.errors import FrameError
from kvserver.peer.frames import FrameDecoder, FrameType, encode_frame

BOUND = 1 << 16

FRAMES = st.lists(
    st.tuples(st.sampled_from(FrameType), st.binary(max_size=60), st.lists(st.binary(max_size=80), max_size=2)), min_size=1, max_size=5
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "insert", "write", "repeat"]), st.integers(0, 2_000), st.integers(0, 255), st.binary(max_size=24)
    ),
    min_size=1,
    max_size=4,
)


def edited(stream: bytes, edits) -> bytes:
    data = bytearray(stream)
    for kind, place, number, piece in edits:
        place %= max(1, len(data))
        if kind == "flip" and data:
            data[place] ^= 1 << number % 8
        elif kind == "drop":
            del data[place : place + number]
        elif kind == "insert":
            data[place:place] = piece
        elif kind == "write":
            data[place : place + len(piece)] = piece
        else:
            data[place:place] = data[place : place + number]
    return bytes(data)


def decode(stream: bytes, cuts: list[int]) -> list[tuple[FrameType, bytes, bytes]]:
    """What a connection that receives the stream in these pieces gives out before it is closed."""
    decoder = FrameDecoder(BOUND)
    given_out = []
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    try:
        for begin, end in pairwise(edges):
            at = begin
            while at < end:
                buffer = decoder.get_buffer()
                assert 0 < len(buffer) <= 4 * BOUND
                count = min(len(buffer), end - at)
                buffer[:count] = stream[at : at + count]
                at += count
                frames = decoder.received(count)
                given_out.extend((each.type, each.meta, b"".join(each.take((each.data_size_bytes,)))) for each in frames)
    except FrameError:
        pass
    return given_out


@settings(max_examples=250, deadline=None)
@given(frames=FRAMES, edits=EDITS, cuts=st.lists(st.integers(1, 2_000), max_size=6))
def test_changed_stream_gives_only_frames_that_were_sent(frames, edits, cuts):
    sent = [(kind, meta, b"".join(data)) for kind, meta, data in frames]
    stream = b"".join(b"".join(encode_frame(*frame)) for frame in frames)
    for frame in decode(edited(stream, edits), cuts):
        assert frame in sent


@settings(max_examples=150, deadline=None)
@given(stream=st.binary(max_size=400), cuts=st.lists(st.integers(1, 400), max_size=6))
def test_any_bytes_give_no_frame(stream, cuts):
    assert decode(stream, cuts) == []
