"""The frame decoder: every split of the stream gives the same frames, and nothing malformed gets through."""

from __future__ import annotations

import struct
from itertools import pairwise

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.peer.errors import FrameError
from kvserver.peer.frames import HEADER_SIZE_BYTES, RECEIVE_BUFFER_BYTES, FrameDecoder, FrameType, encode_frame

BOUND = 1 << 20

types = st.sampled_from(FrameType)
small_frames = st.tuples(types, st.binary(max_size=300), st.lists(st.binary(max_size=400), max_size=4))
big_frames = st.tuples(types, st.binary(max_size=30), st.lists(st.integers(0, 200_000).map(lambda n: b"%d" % n * (n // 6)), max_size=2))
frames = st.lists(st.one_of(small_frames, small_frames, big_frames), max_size=12)


def decode(stream: bytes, cuts: list[int], *, bound: int = BOUND) -> list[tuple[FrameType, bytes, bytes]]:
    """Feed the stream in the given pieces, as the transport would; data taken as one piece."""
    decoder = FrameDecoder(bound)
    got = []
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in pairwise(edges):
        at = begin
        while at < end:
            buffer = decoder.get_buffer()
            assert len(buffer) > 0
            count = min(len(buffer), end - at)
            buffer[:count] = stream[at : at + count]
            at += count
            got += [(frame.type, frame.meta, frame.take((frame.data_size_bytes,))[0]) for frame in decoder.received(count)]
    return got


def wire(items) -> bytes:
    return b"".join(b"".join(encode_frame(*item)) for item in items)


@settings(max_examples=60, deadline=None)
@given(items=frames, cuts=st.lists(st.integers(1, 600_000), max_size=20))
def test_any_split_of_the_stream_gives_the_same_frames(items, cuts):
    expected = [(kind, meta, b"".join(data)) for kind, meta, data in items]
    assert decode(wire(items), cuts) == expected


@settings(max_examples=50, deadline=None)
@given(items=st.lists(small_frames, min_size=1, max_size=3))
def test_byte_by_byte_gives_the_same_frames(items):
    stream = wire(items)
    assert decode(stream, list(range(len(stream)))) == [(kind, meta, b"".join(data)) for kind, meta, data in items]


@pytest.mark.parametrize("size", [RECEIVE_BUFFER_BYTES + delta for delta in (-41, -21, -20, -19, -1, 0, 1, 20)])
def test_frames_round_the_size_of_the_buffer(size):
    items = [(FrameType.PING, b"12345678", []), (FrameType.RAFT_MESSAGE, b"m", [b"d" * size]), (FrameType.PONG, b"x", [])]
    assert decode(wire(items), []) == [(kind, meta, b"".join(data)) for kind, meta, data in items]


def test_data_is_not_copied_on_the_way_out():
    data = b"v" * 100_000
    assert encode_frame(FrameType.RAFT_MESSAGE, b"meta", [data, b""])[1] is data


@settings(max_examples=200, deadline=None)
@given(item=small_frames, position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(item, position, bit):
    stream = bytearray(wire([item]))
    stream[position % len(stream)] ^= 1 << bit
    try:
        got = decode(bytes(stream), [])
    except FrameError:
        return
    assert got == []  # a longer length: still waiting for the rest


@settings(max_examples=200, deadline=None)
@given(item=small_frames, cut=st.integers(0, 10_000))
def test_a_truncated_frame_is_never_given_out(item, cut):
    stream = wire([item])
    assert decode(stream[: cut % len(stream)], []) == []


def test_oversized_length_is_refused_from_the_header_alone():
    decoder = FrameDecoder(1000)
    header = struct.pack(">IIIBBHI", 1001, 0, 0, FrameType.RAFT_MESSAGE, 0, 0, 5)
    decoder.get_buffer()[:HEADER_SIZE_BYTES] = header
    with pytest.raises(FrameError, match="over the bound of 1000"):
        list(decoder.received(HEADER_SIZE_BYTES))
    assert len(decoder.get_buffer()) <= RECEIVE_BUFFER_BYTES


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((10, 99, 0, 0, 5), "unknown type 99"),
        ((10, FrameType.PING, 1, 0, 5), "unknown flags"),
        ((10, FrameType.PING, 0, 1, 5), "unknown flags"),
        ((10, FrameType.PING, 0, 0, 11), "claims 11 bytes of meta"),
    ],
)
def test_contradictory_headers_are_refused(fields, text):
    length, *rest = fields
    checked = struct.pack(">IBBHI", 0, *rest)
    stream = struct.pack(">II", length, google_crc32c.extend(length, checked)) + checked + b"0123456789"
    with pytest.raises(FrameError, match=text):
        decode(stream, [])


@pytest.mark.parametrize(
    ("sizes", "text"), [((4, 4), "more data"), ((3,), "nothing describes"), ((), "nothing describes"), ((2**60,), "more data")]
)
def test_pieces_must_add_up_to_the_data(sizes, text):
    decoder = FrameDecoder(BOUND)
    stream = wire([(FrameType.RAFT_MESSAGE, b"m", [b"1234567"])])
    decoder.get_buffer()[: len(stream)] = stream
    (frame,) = decoder.received(len(stream))
    with pytest.raises(FrameError, match=text):
        frame.take(sizes)


def test_a_large_frame_gives_its_memory_back():
    items = [(FrameType.SNAPSHOT_CHUNK, b"", [b"x" * 500_000]), (FrameType.PING, b"12345678", [])]
    decoder = FrameDecoder(BOUND)
    stream, at, kinds = wire(items), 0, []
    while at < len(stream):
        buffer = decoder.get_buffer()
        count = min(len(buffer), len(stream) - at)
        buffer[:count] = stream[at : at + count]
        at += count
        kinds += [frame.type for frame in decoder.received(count)]
    assert kinds == [FrameType.SNAPSHOT_CHUNK, FrameType.PING]
    assert len(decoder.get_buffer()) == RECEIVE_BUFFER_BYTES
