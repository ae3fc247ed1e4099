"""A signal between the start of a process and its owner's knowledge of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from bench.signals import deferred


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """SIGTERM raises SystemExit, as in the programs."""
    seen: list[int] = []

    def end(number: int, frame: object) -> None:
        seen.append(number)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    yield seen
    signal.signal(signal.SIGTERM, previous)


def start_something(steps: list[str], ended: list[int]) -> None:
    with deferred():
        signal.raise_signal(signal.SIGTERM)
        steps.append("known" if not ended else "interrupted")


def test_a_signal_within_the_block_takes_effect_behind_it(ended: list[int]) -> None:
    steps: list[str] = []
    with pytest.raises(SystemExit):
        start_something(steps, ended)
    assert steps == ["known"]
    assert ended == [signal.SIGTERM]


def test_a_signal_behind_the_block_takes_effect_at_once(ended: list[int]) -> None:
    with deferred():
        pass
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]


def test_other_threads_may_use_it(ended: list[int]) -> None:
    done: list[bool] = []

    def use() -> None:
        with deferred():
            done.append(True)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(20)
    assert done == [True]
    assert not ended
