"""Requests and responses as frames. Sans-IO.

Frame REQUEST (6), dialler to listener: meta `Request` (id, kind, timeout), data the payload.
Frame RESPONSE (7), back on the same connection: meta `Response` (id, outcome, code, text), data the answer's payload.

Rules
- Small ones go in the urgent lane, larger ones in the bulk lane: as many small ones as may be unanswered take at most about half of the
  urgent lane, so requests never displace heartbeats.
- Everything is checked before it is believed: FrameError for an id or kind of 0, a time or a payload over its bound, an unknown outcome, a
  code or text over its bound, an error with a payload.

Bounds: a payload has at most `MAX_PAYLOAD_SIZE_BYTES`; per peer and direction at most `MAX_REQUESTS` of `MAX_REQUESTS_SIZE_BYTES` together
are unanswered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from kvserver.pb import peer_pb2
from kvserver.peer.errors import FrameError
from kvserver.peer.frames import Frame, FrameType, encode_frame
from kvserver.peer.outbox import OutFrame, out_frame

MAX_PAYLOAD_SIZE_BYTES: Final = 128 * 1024
MAX_REQUESTS: Final = 256
MAX_REQUESTS_SIZE_BYTES: Final = 512 * 1024
"""Payloads of unanswered requests together, per peer and direction."""

MAX_REQUEST_TIMEOUT_S: Final = 60.0
MAX_RESPONSE_FRAME_SIZE_BYTES: Final = MAX_PAYLOAD_SIZE_BYTES + 4 * 1024
"""Bound on what a listener may send back on a message stream."""

_URGENT_SIZE_BYTES: Final = 2 * 1024
_MAX_CODE_CHARS: Final = 64
_MAX_TEXT_BYTES: Final = 1024
_MAX_KIND: Final = (1 << 32) - 1


class Outcome(IntEnum):
    """How a request ended at the listener; the numbers are those of `Response.Outcome` on the wire."""

    ANSWERED = peer_pb2.Response.ANSWERED
    REFUSED = peer_pb2.Response.REFUSED
    BUSY = peer_pb2.Response.BUSY
    TIMED_OUT = peer_pb2.Response.TIMED_OUT
    INTERNAL = peer_pb2.Response.INTERNAL


_OUTCOMES: Final = {int(each): each for each in Outcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question as it arrived."""

    id: int
    kind: int
    timeout_s: float
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer as it arrived; `code` and `text` are empty and `payload` counts when the outcome is ANSWERED."""

    id: int
    outcome: Outcome
    code: str
    text: str
    payload: bytes


def encode_request(request_id: int, kind: int, timeout_s: float, payload: bytes) -> OutFrame:
    """The frame of a question. ValueError if kind, time or payload is out of range."""
    if not 1 <= kind <= _MAX_KIND:
        raise ValueError(f"a request's kind must be 1 to {_MAX_KIND}, it is {kind}")
    if not 0 < timeout_s <= MAX_REQUEST_TIMEOUT_S:
        raise ValueError(f"a request's time must be above 0 and at most {MAX_REQUEST_TIMEOUT_S:g} s, it is {timeout_s}")
    meta = peer_pb2.Request(id=request_id, kind=kind, timeout_ms=math.ceil(timeout_s * 1000))
    return _frame(FrameType.REQUEST, meta.SerializeToString(), payload)


def encode_answer(request_id: int, payload: bytes) -> OutFrame:
    """The frame of an answer. ValueError if it is too large."""
    meta = peer_pb2.Response(id=request_id, outcome=peer_pb2.Response.ANSWERED)
    return _frame(FrameType.RESPONSE, meta.SerializeToString(), payload)


def encode_failure(request_id: int, outcome: Outcome, text: str, code: str = "") -> OutFrame:
    """The frame of an error; the text is cut to its bound. ValueError for a code that is too long or not ASCII."""
    if len(code) > _MAX_CODE_CHARS or not code.isascii():
        raise ValueError(f"an error's code must be ASCII of at most {_MAX_CODE_CHARS} characters, it is {code!r}")
    short = text.encode("utf-8", "replace")[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")
    meta = peer_pb2.Response(id=request_id, outcome=peer_pb2.Response.Outcome.ValueType(outcome), code=code, text=short)
    return _frame(FrameType.RESPONSE, meta.SerializeToString(), b"")


def decode_request(frame: Frame) -> Request:
    """The question in a REQUEST frame; raises FrameError."""
    meta = peer_pb2.Request()
    try:
        meta.ParseFromString(frame.meta)
    except DecodeError as error:
        raise FrameError(f"request is not readable: {error}") from error
    if not meta.id or not meta.kind:
        raise FrameError(f"request {meta.id} of kind {meta.kind}")
    if not 0 < meta.timeout_ms <= MAX_REQUEST_TIMEOUT_S * 1000:
        raise FrameError(f"request with a time of {meta.timeout_ms} ms")
    return Request(id=meta.id, kind=meta.kind, timeout_s=meta.timeout_ms / 1000, payload=_take_payload(frame))


def decode_response(frame: Frame) -> Response:
    """The answer in a RESPONSE frame; raises FrameError."""
    meta = peer_pb2.Response()
    try:
        meta.ParseFromString(frame.meta)
    except DecodeError as error:
        raise FrameError(f"response is not readable: {error}") from error
    outcome = _OUTCOMES.get(meta.outcome)
    if outcome is None:
        raise FrameError(f"response with outcome {meta.outcome}")
    if len(meta.code) > _MAX_CODE_CHARS or len(meta.text) > _MAX_TEXT_BYTES:
        raise FrameError(f"response with a code of {len(meta.code)} and a text of {len(meta.text)} characters")
    if outcome is not Outcome.ANSWERED and frame.data_size_bytes:
        raise FrameError(f"response {outcome.name} with a payload")
    return Response(id=meta.id, outcome=outcome, code=meta.code, text=meta.text, payload=_take_payload(frame))


def _frame(frame_type: FrameType, meta: bytes, payload: bytes) -> OutFrame:
    if len(payload) > MAX_PAYLOAD_SIZE_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes is over the bound of {MAX_PAYLOAD_SIZE_BYTES}")
    return out_frame(encode_frame(frame_type, meta, (payload,)), is_urgent=len(payload) <= _URGENT_SIZE_BYTES)


def _take_payload(frame: Frame) -> bytes:
    if frame.data_size_bytes > MAX_PAYLOAD_SIZE_BYTES:
        raise FrameError(f"{frame.type.name} with a payload of {frame.data_size_bytes} bytes")
    return frame.take((frame.data_size_bytes,))[0]
