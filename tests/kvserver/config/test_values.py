"""Texts of flags become values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.config.errors import ValueSyntaxError
from kvserver.config.urls import Url, format_urls, parse_urls
from kvserver.config.values import ValueKind, read_value


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1024", 1024),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        ("1 GiB", 1 << 30),
        ("2KB", 2000),
        ("3MB", 3_000_000),
        ("1b", 1),
        ("-1", -1),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert read_value(ValueKind.SIZE, text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("0", 0), ("10s", 10), ("1h30m", 5400), ("1.5s", 1.5), ("100ms", 0.1), ("2m0.5s", 120.5), (".5s", 0.5), ("1us", 1e-6)],
)
def test_durations(text: str, duration_s: float) -> None:
    assert read_value(ValueKind.DURATION, text) == pytest.approx(duration_s)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ValueKind.SIZE, ""),
        (ValueKind.SIZE, "1.5MiB"),
        (ValueKind.SIZE, "MiB"),
        (ValueKind.SIZE, "9" * 40),
        (ValueKind.DURATION, ""),
        (ValueKind.DURATION, "10"),
        (ValueKind.DURATION, "-1s"),
        (ValueKind.DURATION, "1s2"),
        (ValueKind.INT, "1e3"),
        (ValueKind.INT, "٣"),
        (ValueKind.INT, "9" * 40),
        (ValueKind.BOOL, "yes"),
        (ValueKind.TEXT, "a\0b"),
        (ValueKind.TEXT, "a\nb"),
    ],
)
def test_malformed_values(kind: ValueKind, text: str) -> None:
    with pytest.raises(ValueSyntaxError):
        read_value(kind, text)


@given(
    st.lists(
        st.builds(Url, host=st.sampled_from(["10.0.0.1", "::1", "kv1", "localhost"]), port=st.integers(0, 65535)), unique=True, min_size=1
    )
)
def test_urls_survive_being_written_and_read(urls: list[Url]) -> None:
    assert parse_urls(format_urls(tuple(urls))) == tuple(urls)
