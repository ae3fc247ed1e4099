"""Requests and responses as frames, and the book of the unanswered ones, without a network."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.pb import peer_pb2
from kvserver.peer import (
    MAX_PAYLOAD_SIZE_BYTES,
    MAX_REQUEST_TIMEOUT_S,
    FrameError,
    PeerRequestError,
    PeerRequestLostError,
    PeerRequestOverflowError,
    PeerRequestRefusedError,
    PeerRequestTimeoutError,
)
from kvserver.peer.frames import FrameDecoder, FrameType, encode_frame
from kvserver.peer.request_frames import (
    MAX_REQUESTS,
    MAX_REQUESTS_SIZE_BYTES,
    MAX_RESPONSE_FRAME_SIZE_BYTES,
    Outcome,
    Response,
    decode_request,
    decode_response,
    encode_answer,
    encode_failure,
    encode_request,
)
from kvserver.peer.requests import OutstandingRequests
from kvserver.types import NodeId


def decoded(segments, decode):
    """What `decode` makes of the one frame in the segments."""
    decoder, stream, at = FrameDecoder(MAX_RESPONSE_FRAME_SIZE_BYTES), b"".join(segments), 0
    while at < len(stream):
        buffer = decoder.get_buffer()
        count = min(len(buffer), len(stream) - at)
        buffer[:count] = stream[at : at + count]
        at += count
        for frame in decoder.received(count):
            return decode(frame)
    raise AssertionError("no frame came out")


def response(request_id, outcome=Outcome.ANSWERED, payload=b"", code="", text=""):
    return Response(id=request_id, outcome=outcome, code=code, text=text, payload=payload)


@settings(max_examples=100, deadline=None)
@given(
    request_id=st.integers(1, 2**64 - 1),
    kind=st.integers(1, 2**32 - 1),
    timeout_ms=st.integers(1, 60_000),
    payload=st.one_of(st.binary(max_size=5000), st.just(b"x" * MAX_PAYLOAD_SIZE_BYTES)),
)
def test_requests_and_answers_survive_the_wire(request_id, kind, timeout_ms, payload):
    request = decoded(encode_request(request_id, kind, timeout_ms / 1000, payload).segments, decode_request)
    assert (request.id, request.kind, request.payload) == (request_id, kind, payload)
    assert timeout_ms / 1000 <= request.timeout_s <= (timeout_ms + 1) / 1000
    answer = decoded(encode_answer(request_id, payload).segments, decode_response)
    assert answer == response(request_id, payload=payload)


@settings(max_examples=100, deadline=None)
@given(outcome=st.sampled_from([each for each in Outcome if each is not Outcome.ANSWERED]), text=st.text(max_size=2000))
def test_errors_survive_the_wire_with_their_text_cut_to_its_bound(outcome, text):
    failure = decoded(encode_failure(5, outcome, text, "code").segments, decode_response)
    assert (failure.id, failure.outcome, failure.code, failure.payload) == (5, outcome, "code", b"")
    assert text.startswith(failure.text)
    assert len(failure.text.encode()) > 1020 or failure.text == text


def test_a_text_that_is_no_unicode_is_made_readable():
    assert decoded(encode_failure(5, Outcome.REFUSED, "\udc80 bad").segments, decode_response).text == "? bad"


@pytest.mark.parametrize(
    ("kind", "timeout_s", "payload", "text"),
    [
        (0, 1, b"", "kind"),
        (-1, 1, b"", "kind"),
        (2**32, 1, b"", "kind"),
        (1, 0, b"", "time"),
        (1, MAX_REQUEST_TIMEOUT_S + 0.001, b"", "time"),
        (1, float("nan"), b"", "time"),
        (1, 1, b"x" * (MAX_PAYLOAD_SIZE_BYTES + 1), "over the bound"),
    ],
)
def test_a_request_out_of_range_is_not_encoded(kind, timeout_s, payload, text):
    with pytest.raises(ValueError, match=text):
        encode_request(1, kind, timeout_s, payload)


@pytest.mark.parametrize("code", ["x" * 65, "ärger"])
def test_an_error_code_out_of_range_is_not_encoded(code):
    with pytest.raises(ValueError, match="code"):
        encode_failure(1, Outcome.REFUSED, "text", code)


@pytest.mark.parametrize(
    ("meta", "data", "text"),
    [
        (b"\xff", b"", "not readable"),
        (peer_pb2.Request(id=0, kind=1, timeout_ms=1).SerializeToString(), b"", "request 0"),
        (peer_pb2.Request(id=1, kind=0, timeout_ms=1).SerializeToString(), b"", "kind 0"),
        (peer_pb2.Request(id=1, kind=1, timeout_ms=0).SerializeToString(), b"", "time"),
        (peer_pb2.Request(id=1, kind=1, timeout_ms=60_001).SerializeToString(), b"", "time"),
        (peer_pb2.Request(id=1, kind=1, timeout_ms=1).SerializeToString(), b"x" * (MAX_PAYLOAD_SIZE_BYTES + 1), "payload of"),
    ],
)
def test_a_malformed_request_is_a_frame_error(meta, data, text):
    with pytest.raises(FrameError, match=text):
        decoded(encode_frame(FrameType.REQUEST, meta, (data,)), decode_request)


@pytest.mark.parametrize(
    ("meta", "data", "text"),
    [
        (b"\xff", b"", "not readable"),
        (b"\x08\x01\x10\x63", b"", "outcome 99"),
        (peer_pb2.Response(id=1, outcome=peer_pb2.Response.BUSY).SerializeToString(), b"x", "BUSY with a payload"),
        (peer_pb2.Response(id=1, code="x" * 65).SerializeToString(), b"", "code of 65"),
        (peer_pb2.Response(id=1, text="x" * 1025).SerializeToString(), b"", "text of 1025"),
        (peer_pb2.Response(id=1).SerializeToString(), b"x" * (MAX_PAYLOAD_SIZE_BYTES + 1), "payload of"),
    ],
)
def test_a_malformed_response_is_a_frame_error(meta, data, text):
    with pytest.raises(FrameError, match=text):
        decoded(encode_frame(FrameType.RESPONSE, meta, (data,)), decode_response)


def test_all_small_requests_together_leave_room_in_the_urgent_lane():
    small = encode_request(2**63, 2**32 - 1, 60, b"x" * 2048)
    assert small.is_urgent
    assert MAX_REQUESTS * small.size_bytes < 0.6 * 1024 * 1024
    assert not encode_request(1, 1, 1, b"x" * 2049).is_urgent


# --- the book of the unanswered --------------------------------------------------------------------------------------------------------


async def test_unanswered_requests_are_bounded_in_number():
    book = OutstandingRequests(NodeId(2))
    ids = [book.open(0)[0] for _ in range(MAX_REQUESTS)]
    with pytest.raises(PeerRequestOverflowError, match="256 requests") as caught:
        book.open(0)
    assert caught.value.retryable
    book.settle(response(ids[7]))
    book.open(0)
    assert len(book) == MAX_REQUESTS


async def test_unanswered_requests_are_bounded_in_bytes():
    book = OutstandingRequests(NodeId(2))
    first, _ = book.open(MAX_REQUESTS_SIZE_BYTES - 1)
    book.open(1)
    with pytest.raises(PeerRequestOverflowError, match="bytes of requests"):
        book.open(1)
    book.settle(response(first))
    book.open(MAX_REQUESTS_SIZE_BYTES - 1)
    book.fail_all("cut")
    book.open(MAX_REQUESTS_SIZE_BYTES)


async def test_an_abandoned_request_keeps_its_place_until_the_late_answer():
    book = OutstandingRequests(NodeId(2))
    request_id, answer = book.open(10)
    answer.cancel()
    assert len(book) == 1
    book.settle(response(request_id, payload=b"late"))
    assert len(book) == 0
    book.settle(response(request_id, payload=b"again"))


@pytest.mark.parametrize("request_id", [0, 2, 2**64 - 1])
async def test_an_answer_to_nothing_is_a_frame_error(request_id):
    book = OutstandingRequests(NodeId(2))
    book.open(0)
    with pytest.raises(FrameError, match="was not sent"):
        book.settle(response(request_id))
    assert len(book) == 1


@pytest.mark.parametrize(
    ("outcome", "expected", "retryable"),
    [
        (Outcome.REFUSED, PeerRequestRefusedError, False),
        (Outcome.BUSY, PeerRequestOverflowError, True),
        (Outcome.TIMED_OUT, PeerRequestTimeoutError, False),
        (Outcome.INTERNAL, PeerRequestRefusedError, False),
    ],
)
async def test_every_outcome_has_its_error(outcome, expected, retryable):
    book = OutstandingRequests(NodeId(2))
    request_id, answer = book.open(0)
    book.settle(response(request_id, outcome, code="c" if outcome is Outcome.REFUSED else "", text="why"))
    error = answer.result()
    assert type(error) is expected
    assert isinstance(error, PeerRequestError)
    assert error.retryable is retryable
    assert "why" in str(error)
    if isinstance(error, PeerRequestRefusedError):
        assert error.code == ("c" if outcome is Outcome.REFUSED else PeerRequestRefusedError.INTERNAL)


_steps = st.lists(
    st.tuples(st.sampled_from(["open", "answer", "cancel", "cut", "withdraw"]), st.integers(0, 400), st.integers(0, 1 << 20)),
    max_size=80,
)


@settings(max_examples=80, deadline=None)
@given(steps=_steps)
def test_every_request_ends_exactly_once_in_any_order_of_events(steps):
    asyncio.run(_follow(steps))


async def _follow(steps):
    book, waiting, ended = OutstandingRequests(NodeId(2)), {}, {}
    futures, sizes = {}, {}
    for step, at, size in steps:
        which = (at % max(futures)) + 1 if futures else 0
        if step == "open":
            fits = len(sizes) < MAX_REQUESTS and sum(sizes.values()) + size <= MAX_REQUESTS_SIZE_BYTES
            if not fits:
                with pytest.raises(PeerRequestOverflowError):
                    book.open(size)
                continue
            request_id, future = book.open(size)
            futures[request_id], sizes[request_id] = future, size
            waiting[request_id] = True
        elif step == "cut":
            book.fail_all("cut")
            ended |= dict.fromkeys(waiting, "lost")
            waiting, sizes = {}, {}
        elif which:
            if step == "answer":
                book.settle(response(which, payload=b"%d" % which))
                if which in waiting:
                    ended[which] = "answered"
            elif step == "cancel":
                if futures[which].cancel():
                    ended[which] = "cancelled"
            else:
                if which in waiting and not futures[which].done():
                    futures[which].cancel()
                    ended[which] = "cancelled"
                book.withdraw(which)
            waiting.pop(which, None)
            if step != "cancel":
                sizes.pop(which, None)
        assert len(book) == len(sizes)
    for request_id, future in futures.items():
        how = ended.get(request_id)
        assert future.done() is (how is not None)
        assert future.cancelled() is (how == "cancelled")
        if how == "answered":
            assert future.result() == b"%d" % request_id
        if how == "lost":
            assert isinstance(future.result(), PeerRequestLostError)
