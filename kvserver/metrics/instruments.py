"""Counters and histograms that cost next to nothing where they are fed.

Purpose: the hot path adds to a plain number; labels, families and text exist only while somebody scrapes.

Rules: every instrument has one writer (a thread, or the loop); a scrape may read in between and see a sum that is one observation ahead of
its count, which Prometheus tolerates. prometheus-client's own instruments take a lock per observation and are three to five times slower.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["DISK_BUCKETS_S", "REQUEST_BUCKETS_S", "ROUND_TRIP_BUCKETS_S", "CheckProgress", "Counter", "LatencyHistogram"]

DISK_BUCKETS_S: Final = tuple(0.001 * 2**power for power in range(14))
"""1 ms to 8 s, doubling: etcd's buckets for fsync and commit, so that its dashboards fit."""

REQUEST_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The default buckets of Prometheus, which grpc's histograms use."""

ROUND_TRIP_BUCKETS_S: Final = tuple(0.0001 * 2**power for power in range(16))
"""0.1 ms to 3.3 s, doubling: etcd's buckets for round trips to peers."""


@dataclass(slots=True, kw_only=True)
class CheckProgress:
    """How far the periodic check of the store is: rows looked at, runs finished, damaged places reported, and when the last run ended.

    `last_finished_s` is Unix time, 0 before the first run has ended.
    """

    rows: int = 0
    runs: int = 0
    damaged: int = 0
    last_finished_s: float = 0.0


class Counter:
    """A number that only grows; one writer."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Count `amount` (not negative) more."""
        self.value += amount


class LatencyHistogram:
    """Observed durations in seconds, by upper bound; one writer."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return sum(self.counts)

    def observe(self, duration_s: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds_s, duration_s)] += 1
        self.sum_s += duration_s

    def cumulative_buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations at most that long), the last bound is `+Inf`: Prometheus's form."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*(repr(bound) for bound in self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets
