"""Frames: how peers cut a TCP stream into checked pieces. Sans-IO.

One frame (all numbers unsigned, big-endian):

    offset size field
    0      4    length        bytes behind this header: meta + data; at most the connection's bound
    4      4    meta_crc      CRC32C over bytes 8..19 and meta, seeded with length
    8      4    data_crc      CRC32C over data; 0 if there is none
    12     1    type          FrameType
    13     1    flags         0 in protocol version 1
    14     2    reserved      0 in protocol version 1
    16     4    meta_length   bytes of meta, at most length
    20     m    meta          a protobuf envelope, or 8 raw bytes (ping, pong)
    20+m   d    data          raw bytes: the entries' data of a raft message, the payload of a request or response, or a snapshot chunk

Rules
- The length is compared with the bound before anything is allocated; meta is given out only after its checksum held.
- Data is not copied as a whole: `Frame.take` slices it into the pieces that the meta names and checks them on the way. On the way out
  data is handed to the socket as it is (`encode_frame` returns a list for writelines).
- A frame's data is a view of the receive buffer: valid until the decoder is asked for the next frame.
- Nothing is skipped or resynchronised: the first malformed byte raises FrameError, and the connection is over.

Invariants: an undecoded rest stands at the front of the buffer; the buffer never grows: a larger frame gets memory of its own, of which at
most `MAX_SPARE_BUFFER_BYTES` are kept for the next one.

Source: durability.md's lesson that a length must be bounded before use; google-crc32c takes read-only bytes only, hence checking in slices.
Caveat: HTTP's `GET ` read as a length is above a gigabyte, so no frame within the bound can look like HTTP (`MAX_FRAME_BOUND_BYTES`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final

import google_crc32c

from kvserver.peer.errors import FrameError

HEADER_SIZE_BYTES: Final = 20
MAX_FRAME_BOUND_BYTES: Final = 1 << 30
"""No connection may be configured with a bound above this."""

RECEIVE_BUFFER_BYTES: Final = 64 * 1024

MAX_SPARE_BUFFER_BYTES: Final = 2 * 1024 * 1024
"""Memory for frames up to this size is kept from one to the next; for larger ones it comes and goes with the frame."""

_HEADER: Final = struct.Struct(">IIIBBHI")
_LENGTH_AND_CRC: Final = struct.Struct(">II")
_CHECKED: Final = struct.Struct(">IBBHI")
"""The part of the header that meta_crc covers."""


class FrameType(IntEnum):
    """What a frame carries; the numbers are part of protocol version 1."""

    HELLO = 1
    HELLO_REPLY = 2
    PING = 3
    PONG = 4
    RAFT_MESSAGE = 5
    REQUEST = 6
    RESPONSE = 7
    SNAPSHOT_HEADER = 16
    SNAPSHOT_RESUME = 17
    SNAPSHOT_CHUNK = 18
    SNAPSHOT_PROGRESS = 19
    SNAPSHOT_RESULT = 20


_FRAME_TYPES: Final = {int(each): each for each in FrameType}


def encode_frame(frame_type: FrameType, meta: bytes, data: Sequence[bytes] = ()) -> list[bytes]:
    """The frame as segments for writelines: header, meta, then each of `data` as it is (none is copied)."""
    data_crc = 0
    data_length = 0
    for piece in data:
        data_crc = google_crc32c.extend(data_crc, piece)
        data_length += len(piece)
    length = len(meta) + data_length
    checked = _CHECKED.pack(data_crc, frame_type, 0, 0, len(meta)) + meta
    head = _LENGTH_AND_CRC.pack(length, google_crc32c.extend(length, checked)) + checked
    return [head, *data] if data_length else [head]


class Frame:
    """One received frame whose meta is verified; the data is verified by `take`."""

    __slots__ = ("_data", "_data_crc", "meta", "type")

    def __init__(self, frame_type: FrameType, meta: bytes, data: memoryview, data_crc: int) -> None:
        self.type = frame_type
        self.meta = meta
        self._data = data
        self._data_crc = data_crc

    @property
    def data_size_bytes(self) -> int:
        """How many raw bytes follow the meta."""
        return len(self._data)

    def take(self, sizes_bytes: Iterable[int]) -> list[bytes]:
        """Cut the data into pieces of these sizes, one copy each, and verify it. Call before the next frame is decoded.

        Raises FrameError if the sizes don't add up to the data exactly or the checksum is wrong.
        """
        data, position, crc = self._data, 0, 0
        pieces: list[bytes] = []
        for size in sizes_bytes:
            piece = bytes(data[position : position + size])
            if len(piece) != size:
                raise FrameError(f"frame {self.type.name} promises more data than its {len(data)} bytes")
            crc = google_crc32c.extend(crc, piece)
            position += size
            pieces.append(piece)
        if position != len(data):
            raise FrameError(f"frame {self.type.name} carries {len(data) - position} bytes of data that nothing describes")
        if crc != self._data_crc:
            raise FrameError(f"frame {self.type.name}: data checksum is {crc:#010x}, {self._data_crc:#010x} was promised")
        return pieces


class FrameDecoder:
    """Collects received bytes and gives out frames.

    The caller fills `get_buffer()` and says how much with `received(count)`; `max_frame_size_bytes` may be raised between two frames
    (after the hello).
    """

    __slots__ = ("_buffer", "_end", "_large", "_large_filled", "_spare", "_start", "max_frame_size_bytes")

    def __init__(self, max_frame_size_bytes: int) -> None:
        assert 0 < max_frame_size_bytes <= MAX_FRAME_BOUND_BYTES
        self.max_frame_size_bytes = max_frame_size_bytes
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._large: memoryview | None = None
        self._spare = memoryview(b"")
        self._large_filled = 0

    def get_buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty."""
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._buffer[self._end :]

    def buffered(self) -> bytes:
        """What is received and not given out, as far as it stands in the small buffer: for telling HTTP from frames."""
        return bytes(self._buffer[self._start : self._end])

    def received(self, count: int) -> Iterator[Frame]:
        """Account for `count` bytes written into the buffer, and yield the frames that are now complete. Raises FrameError."""
        if self._large is not None:
            self._large_filled += count
            if self._large_filled == len(self._large):
                whole, self._large, self._large_filled = self._large, None, 0
                yield self._frame(whole, *_HEADER.unpack_from(whole))
            return
        self._end += count
        buffer = self._buffer
        while self._end - self._start >= HEADER_SIZE_BYTES:
            start = self._start
            header = _HEADER.unpack_from(buffer, start)
            self._check_header(*header)
            size_bytes = HEADER_SIZE_BYTES + header[0]
            if self._end - start < size_bytes:
                self._make_room(size_bytes)
                return
            self._start = start + size_bytes
            yield self._frame(buffer[start : start + size_bytes], *header)
        self._make_room(HEADER_SIZE_BYTES)

    def _check_header(self, length: int, _: int, __: int, frame_type: int, flags: int, reserved: int, meta_length: int) -> None:
        """Raise FrameError for a header that can't be ours, before anything of the size that it names is allocated."""
        if length > self.max_frame_size_bytes:
            raise FrameError(f"frame of {length} bytes is over the bound of {self.max_frame_size_bytes}")
        if frame_type not in _FRAME_TYPES:
            raise FrameError(f"frame of unknown type {frame_type}")
        if flags or reserved:
            raise FrameError(f"frame with unknown flags {flags:#x}/{reserved:#x}")
        if meta_length > length:
            raise FrameError(f"frame of {length} bytes claims {meta_length} bytes of meta")

    @staticmethod
    def _frame(whole: memoryview, length: int, meta_crc: int, data_crc: int, frame_type: int, _: int, __: int, meta_length: int) -> Frame:
        """A complete frame with its meta verified; raises FrameError."""
        end = HEADER_SIZE_BYTES + meta_length
        checked = bytes(whole[_LENGTH_AND_CRC.size : end])
        crc = google_crc32c.extend(length, checked)
        if crc != meta_crc:
            raise FrameError(f"frame {_FRAME_TYPES[frame_type].name}: meta checksum is {crc:#010x}, {meta_crc:#010x} was promised")
        return Frame(_FRAME_TYPES[frame_type], checked[_CHECKED.size :], whole[end:], data_crc)

    def _make_room(self, needed_bytes: int) -> None:
        """Put the undecoded rest where `needed_bytes` have room: at the front of the buffer, or in memory of its own."""
        start, end = self._start, self._end
        rest = end - start
        if needed_bytes > len(self._buffer):
            self._large = self._large_buffer(needed_bytes)
            self._large[:rest] = self._buffer[start:end]
            self._large_filled = rest
            self._start = self._end = 0
            return
        if start:
            self._buffer[:rest] = bytes(self._buffer[start:end])
            self._start, self._end = 0, rest

    def _large_buffer(self, size_bytes: int) -> memoryview:
        """Memory for a frame larger than the buffer; that of moderate size is kept, as touching fresh pages costs more than copying."""
        if size_bytes > len(self._spare):
            fresh = memoryview(bytearray(1 << (size_bytes - 1).bit_length() if size_bytes <= MAX_SPARE_BUFFER_BYTES else size_bytes))
            if len(fresh) > MAX_SPARE_BUFFER_BYTES:
                return fresh
            self._spare = fresh
        return self._spare[:size_bytes]
