"""Samples of /proc and the figures that are read from them."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from bench.sampling import Peak, Sample, Sampler, largest, parse_status, peak, quantile, slope_per_s

STATUS = (
    "Name:\tetcd\nVmPeak:\t 9 kB\nVmRSS:\t    3000 kB\nRssAnon:\t    2000 kB\nRssFile:\t    1000 kB\nRssShmem:\t       0 kB\nThreads:\t9\n"
)


def sample(at_s: float, anonymous: int, file: int = 0) -> Sample:
    return Sample(at_s=at_s, rss_bytes=anonymous + file, anonymous_bytes=anonymous, file_bytes=file)


def test_a_status_is_read_in_bytes() -> None:
    expected = Sample(at_s=5.0, rss_bytes=3_072_000, anonymous_bytes=2_048_000, file_bytes=1_024_000)
    assert parse_status(STATUS, 5.0) == expected


def test_a_process_without_memory_gives_no_sample() -> None:
    assert parse_status("Name:\tetcd\nState:\tZ (zombie)\n", 5.0) is None


def test_a_peak_takes_each_figure_at_its_own_moment_and_both_ends_count() -> None:
    samples = [sample(0, 900), sample(1, 10, 70), sample(2, 50, 20), sample(3, 800)]
    assert peak(samples, 1, 2) == Peak(rss_bytes=80, anonymous_bytes=50, file_bytes=70)
    assert peak(samples).anonymous_bytes == 900
    assert peak(samples, 1.1, 1.9) == Peak()


def test_the_largest_of_several_members_is_taken_figure_by_figure() -> None:
    held = [Peak(rss_bytes=5, anonymous_bytes=1, file_bytes=4), Peak(rss_bytes=4, anonymous_bytes=3, file_bytes=1)]
    assert largest(held) == Peak(rss_bytes=5, anonymous_bytes=3, file_bytes=4)
    assert largest([]) == Peak()


def test_the_slope_is_that_of_the_fitted_line() -> None:
    assert slope_per_s([(1, 10), (2, 13), (3, 16)]) == pytest.approx(3)
    assert slope_per_s([(0, 5), (1, 7), (2, 5), (3, 7)]) == pytest.approx(0.4)
    assert slope_per_s([(100, 5), (200, 5)]) == 0


def test_the_slope_of_less_than_two_moments_is_zero() -> None:
    assert slope_per_s([]) == slope_per_s([(1, 9)]) == slope_per_s([(1, 9), (1, 10)]) == 0


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.1, 1), (0.11, 2), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(share: float, expected: int) -> None:
    assert quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_a_quantile_of_nothing_is_zero() -> None:
    assert quantile([], 0.5) == 0


def test_the_sampler_looks_at_living_processes_and_goes_on_without_the_others() -> None:
    asked: list[str] = []

    def gone() -> int | None:
        asked.append("gone")
        return None

    with Sampler({"here": os.getpid, "gone": gone, "ended": lambda: 2**22 + 1}, interval_s=0.001) as sampler:
        end_s = time.monotonic() + 20
        while (len(sampler.series["here"]) < 3 or not asked) and time.monotonic() < end_s:
            time.sleep(0.002)
    looks = sampler.series["here"]
    assert len(looks) >= 3
    assert all(before.at_s < after.at_s for before, after in itertools.pairwise(looks))
    assert all(each.rss_bytes >= each.anonymous_bytes > 1_000_000 for each in looks)
    assert asked
    assert sampler.series["gone"] == sampler.series["ended"] == []
