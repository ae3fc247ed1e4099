"""Go's notations: the values were taken from Go's documentation and from etcdctl's output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.cli.golang import (
    GoSyntaxError,
    format_duration,
    humanize_bytes,
    parse_bool,
    parse_duration_s,
    parse_int,
    parse_uint,
    quote,
    to_bytes,
    to_text,
    unquote,
)


@pytest.mark.parametrize(
    ("data", "quoted"),
    [
        (b"", '""'),
        (b"a b", '"a b"'),
        (b'\x01\xff\t"\xc3\xa9\\', '"\\x01\\xff\\t\\"é\\\\"'),
        (b"\x7f\x00\a\b\f\n\r\v", '"\\x7f\\x00\\a\\b\\f\\n\\r\\v"'),
        ("\u00a0\u200b\U000e0001".encode(), '"\\u00a0\\u200b\\U000e0001"'),
        ("\u4e16\U0001f600".encode(), '"世😀"'),
        (b"\xed\xa0\x80", '"\\xed\\xa0\\x80"'),  # a surrogate is not UTF-8
    ],
)
def test_quote(data: bytes, quoted: str) -> None:
    assert quote(data) == quoted


@given(st.binary(max_size=40))
def test_unquote_undoes_quote(data: bytes) -> None:
    assert unquote(quote(data)) == data


@given(st.binary(max_size=40))
def test_text_carries_any_bytes(data: bytes) -> None:
    assert to_bytes(to_text(data)) == data


@pytest.mark.parametrize(
    ("literal", "data"),
    [('"\\101\\x41\\u0041\\U00000041"', b"AAAA"), ("`a\\n\r`", b"a\\n"), ('"\\377"', b"\xff"), ('"é"', b"\xc3\xa9")],
)
def test_unquote(literal: str, data: bytes) -> None:
    assert unquote(literal) == data


@pytest.mark.parametrize(
    "literal", ["", '"', "a", '"a', '"\\q"', '"\\\'"', '"\\400"', '"\\ud800"', '"\\U00110000"', '"a"b"', '"a\nb"', "'a'"]
)
def test_unquote_refuses_what_go_refuses(literal: str) -> None:
    with pytest.raises(GoSyntaxError):
        unquote(literal)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (999, "999ns"),
        (1_500, "1.5µs"),
        (2_179_755, "2.179755ms"),
        (60_639_015, "60.639015ms"),
        (5_000_386_326, "5.000386326s"),
        (5 * 10**9, "5s"),
        (90 * 10**9, "1m30s"),
        (3_600 * 10**9 + 1_000_000, "1h0m0.001s"),
        (-1_500_000, "-1.5ms"),
    ],
)
def test_format_duration(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_duration_parses_back(nanoseconds: int) -> None:
    assert parse_duration_s(format_duration(nanoseconds)) == pytest.approx(nanoseconds / 1e9, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("1ns", 1e-9), ("1h30m", 5400.0), ("1.5s", 1.5), (".5s", 0.5), ("2us", 2e-6), ("0", 0.0), ("-1s", -1.0), ("+1s", 1.0)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("", 'time: invalid duration ""'),
        ("s", 'time: invalid duration "s"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("abc", 'time: invalid duration "abc"'),
    ],
)
def test_parse_duration_says_what_go_says(text: str, message: str) -> None:
    with pytest.raises(GoSyntaxError) as caught:
        parse_duration_s(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "base", "value"), [("0", 10, 0), ("-12", 10, -12), ("+7", 10, 7), ("ff", 16, 255), ("0x10", 0, 16), ("10", 0, 10)]
)
def test_parse_int(text: str, base: int, value: int) -> None:
    assert parse_int(text, base) == value


@pytest.mark.parametrize("text", ["", "-", " 1", "1 ", "1_000", "0x10", "1e3", "abc", "\u0661"])
def test_parse_int_refuses_what_go_refuses(text: str) -> None:
    with pytest.raises(GoSyntaxError, match="invalid syntax"):
        parse_int(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809"])
def test_parse_int_knows_its_bounds(text: str) -> None:
    with pytest.raises(GoSyntaxError, match="value out of range"):
        parse_int(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1f", 31), ("FFFFFFFFFFFFFFFF", 2**64 - 1), ("00000000000000000001", 1)])
def test_parse_uint(text: str, value: int) -> None:
    assert parse_uint(text, 16) == value


@pytest.mark.parametrize("text", ["", "-1", "+1", "0x1f", "1_0", " 1", "g", "\u0661"])
def test_parse_uint_refuses_what_go_refuses(text: str) -> None:
    with pytest.raises(GoSyntaxError) as caught:
        parse_uint(text, 16)
    assert str(caught.value) == f'strconv.ParseUint: parsing "{text}": invalid syntax'


def test_parse_uint_knows_its_bound() -> None:
    with pytest.raises(GoSyntaxError, match=r'^strconv\.ParseUint: parsing "18446744073709551616": value out of range$'):
        parse_uint(str(2**64))


def test_parse_bool() -> None:
    assert [parse_bool(text) for text in ("1", "t", "TRUE", "0", "f", "False")] == [True, True, True, False, False, False]
    with pytest.raises(GoSyntaxError, match=r'^strconv\.ParseBool: parsing "yes": invalid syntax$'):
        parse_bool("yes")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (10, "10 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (20_480, "20 kB"),
        (24_576, "25 kB"),
        (1_048_576, "1.0 MB"),
        (82_854_982, "83 MB"),
        (2**62, "4.6 EB"),
    ],
)
def test_humanize_bytes(size: int, text: str) -> None:
    assert humanize_bytes(size) == text
