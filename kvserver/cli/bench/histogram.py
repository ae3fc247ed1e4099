"""Latencies counted in buckets of a logarithmic scale: any number of samples in a fixed 57 KiB, quantiles within 1%.

A sample v (nanoseconds) below 256 has a bucket of its own. Above, each power of two is cut into 128 buckets of equal width, so that a
bucket's largest value exceeds its smallest by less than 1/128:

    bits of v    bucket                       width
    0..8         v                            1
    n > 8        (n - 8) * 128 + v >> (n-8)   2 ** (n - 8)

Rules: count, sum, sum of squares, smallest and largest are exact (Python integers); only quantiles and bars go through the buckets. A
bucket stands for its largest value (never more than the largest sample), so a quantile is never reported better than it was.

Source: the idea of HdrHistogram (Gil Tene); the rank of a quantile as in etcd's report.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PRECISION_BITS: Final = 7
MAX_SAMPLE_NS: Final = 2**63 - 1
"""Samples above are counted as this; 292 years."""

_EXACT: Final = 2 << PRECISION_BITS


def bucket_of(sample_ns: int) -> int:
    """The bucket of a sample in [0, MAX_SAMPLE_NS]."""
    if sample_ns < _EXACT:
        return sample_ns
    shift = sample_ns.bit_length() - PRECISION_BITS - 1
    return (shift << PRECISION_BITS) + (sample_ns >> shift)


def largest_of(bucket: int) -> int:
    """The largest sample that a bucket holds."""
    if bucket < _EXACT:
        return bucket
    shift = (bucket >> PRECISION_BITS) - 1
    return ((bucket - (shift << PRECISION_BITS) + 1) << shift) - 1


def smallest_of(bucket: int) -> int:
    """The smallest sample that a bucket holds."""
    return largest_of(bucket - 1) + 1 if bucket else 0


BUCKETS: Final = bucket_of(MAX_SAMPLE_NS) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """So many samples at most this long, and longer than those of the bar before."""

    upper_ns: int
    count: int


class LatencyHistogram:
    """Counts samples in nanoseconds; negative ones count as 0."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * BUCKETS))
        self.count = 0
        self._sum_ns = 0
        self._sum_of_squares = 0
        self._min_ns = MAX_SAMPLE_NS
        self._max_ns = 0

    def add(self, sample_ns: int) -> None:
        """Count one sample."""
        sample_ns = min(max(sample_ns, 0), MAX_SAMPLE_NS)
        self._counts[bucket_of(sample_ns)] += 1
        self.count += 1
        self._sum_ns += sample_ns
        self._sum_of_squares += sample_ns * sample_ns
        self._min_ns = min(self._min_ns, sample_ns)
        self._max_ns = max(self._max_ns, sample_ns)

    @property
    def min_ns(self) -> int:
        """The smallest sample, 0 without any."""
        return self._min_ns if self.count else 0

    @property
    def max_ns(self) -> int:
        """The largest sample, 0 without any."""
        return self._max_ns

    @property
    def mean_ns(self) -> float:
        """The average, 0 without samples."""
        return self._sum_ns / self.count if self.count else 0.0

    @property
    def stddev_ns(self) -> float:
        """The standard deviation of the samples (divided by n, not n - 1), 0 without any."""
        if not self.count:
            return 0.0
        return math.sqrt(self.count * self._sum_of_squares - self._sum_ns * self._sum_ns) / self.count

    def quantile_ns(self, per_mille: int) -> int:
        """The sample at rank ceil(p * (n + 1)) of n, kept within 1..n; at most 1/128 too large, never too small. 0 without samples."""
        rank = min(max(-(-per_mille * (self.count + 1) // 1000), 1), self.count)
        seen = 0
        for bar in self.buckets():
            seen += bar.count
            if seen >= rank:
                return bar.upper_ns
        return 0

    def buckets(self) -> Iterator[Bar]:
        """The buckets that hold samples, shortest first."""
        for bucket, count in enumerate(self._counts):
            if count:
                yield Bar(upper_ns=min(largest_of(bucket), self._max_ns), count=count)

    def bars(self, number: int = 10) -> list[Bar]:
        """`number` + 1 bars: the smallest sample, then equal steps up to the largest. None without samples.

        A bucket that lies across the end of a bar is counted in it: a bar reaches at most 1/128 further than it says.
        """
        if not self.count:
            return []
        span_ns = self._max_ns - self._min_ns
        uppers_ns = [self._min_ns + span_ns * step // number for step in range(number + 1)]
        counts = [0] * len(uppers_ns)
        at = 0
        for bucket, count in enumerate(self._counts):
            if count:
                while max(smallest_of(bucket), self._min_ns) > uppers_ns[at]:
                    at += 1
                counts[at] += count
        return [Bar(upper_ns=upper_ns, count=count) for upper_ns, count in zip(uppers_ns, counts, strict=True)]
