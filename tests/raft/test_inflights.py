"""The inflights window against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.inflights import Inflights
from raft.types import Index

operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.integers(0, 40)),
        st.tuples(st.just("free"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    )
)


@given(st.integers(1, 6), st.integers(1, 100), operations)
def test_window_behaves_like_a_list(capacity: int, max_size_bytes: int, steps: list[tuple[str, int, int]]) -> None:
    window = Inflights(capacity, max_size_bytes)
    model: list[tuple[int, int]] = []
    last = 0
    for action, number, size in steps:
        if action == "add":
            last += number
            if not window.is_full:
                window.add(Index(last), size)
                model.append((last, size))
        elif action == "free":
            window.free_through(Index(number))
            model = [each for each in model if each[0] > number]
        else:
            window.reset()
            model = []
        total = sum(each[1] for each in model)
        assert len(window) == len(model)
        assert window.size_bytes == total
        assert window.is_full == (len(model) >= capacity or total >= max_size_bytes)


def test_window_refuses_more_when_full() -> None:
    window = Inflights(1, 100)
    window.add(Index(1), 1)
    with pytest.raises(AssertionError):
        window.add(Index(2), 1)


def test_one_message_larger_than_the_byte_bound_passes_and_fills_the_window() -> None:
    window = Inflights(10, 100)
    window.add(Index(1), 1_000)
    assert window.is_full
    window.free_through(Index(1))
    assert not window.is_full


def test_copy_is_independent() -> None:
    window = Inflights(3, 100)
    window.add(Index(1), 5)
    copied = window.copy()
    window.reset()
    assert (len(copied), copied.size_bytes) == (1, 5)
