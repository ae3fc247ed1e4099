"""The pure parts of bench against brute force: the histogram beside the list of all samples, keys beside a varint reader."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.cli.bench.helpers import render
from kvserver.cli.bench.histogram import BUCKETS, MAX_SAMPLE_NS, LatencyHistogram, bucket_of, largest_of, smallest_of
from kvserver.cli.bench.loads import KeySpace, Kind, MixedLoad, PutLoad, RangeLoad, varint
from kvserver.cli.bench.report import PER_MILLES, Report, render_json, render_text
from kvserver.cli.bench.schedule import LATE_NS, Schedule
from kvserver.cli.bench.tally import MAX_ERROR_TEXT_CHARS, MAX_ERROR_TEXTS, OTHER_ERRORS, Lateness, Tally
from kvserver.pb import rpc_pb2 as pb

ANY_SAMPLE = st.integers(0, MAX_SAMPLE_NS) | st.integers(0, 1000) | st.integers(10**5, 10**9)
SAMPLES = st.lists(ANY_SAMPLE, min_size=1, max_size=300)


def histogram_of(samples: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for sample in samples:
        histogram.add(sample)
    return histogram


def widened(limit_ns: int) -> int:
    """The largest sample that may share a bucket with `limit_ns`."""
    return limit_ns + limit_ns // 128


# --- histogram ---


def test_buckets_follow_one_another_without_gap_or_overlap() -> None:
    for bucket in range(1, BUCKETS):
        assert smallest_of(bucket) == largest_of(bucket - 1) + 1
        assert bucket_of(smallest_of(bucket)) == bucket == bucket_of(largest_of(bucket))
    assert (smallest_of(0), largest_of(BUCKETS - 1)) == (0, MAX_SAMPLE_NS)


def test_a_bucket_is_narrower_than_a_128th_of_its_values() -> None:
    assert all((largest_of(bucket) - smallest_of(bucket)) * 128 < max(1, smallest_of(bucket)) for bucket in range(BUCKETS))


@given(SAMPLES)
def test_count_extremes_average_and_deviation_are_exact(samples: list[int]) -> None:
    histogram = histogram_of(samples)
    assert (histogram.count, histogram.min_ns, histogram.max_ns) == (len(samples), min(samples), max(samples))
    assert histogram.mean_ns == pytest.approx(statistics.fmean(samples), rel=1e-12)
    assert histogram.stddev_ns == pytest.approx(math.sqrt(statistics.pvariance(samples)), rel=1e-9, abs=1e-6)


@given(SAMPLES, st.sampled_from(PER_MILLES) | st.integers(0, 1000))
def test_a_quantile_is_that_of_the_sorted_list_or_up_to_a_128th_more(samples: list[int], per_mille: int) -> None:
    rank = min(max(math.ceil(per_mille * (len(samples) + 1) / 1000), 1), len(samples))
    exact = sorted(samples)[rank - 1]
    assert exact <= histogram_of(samples).quantile_ns(per_mille) <= min(widened(exact), max(samples))


@given(SAMPLES)
def test_buckets_hold_every_sample_once(samples: list[int]) -> None:
    seen = 0
    for bar in histogram_of(samples).buckets():
        seen += bar.count
        assert seen == sum(1 for sample in samples if sample <= bar.upper_ns)
    assert seen == len(samples)


@given(SAMPLES)
def test_bars_run_from_the_fastest_to_the_slowest_and_hold_every_sample_once(samples: list[int]) -> None:
    bars = histogram_of(samples).bars()
    assert (len(bars), bars[0].upper_ns, bars[-1].upper_ns) == (11, min(samples), max(samples))
    assert bars[0].count >= 1
    seen = 0
    for bar in bars:
        seen += bar.count
        assert sum(sample <= bar.upper_ns for sample in samples) <= seen <= sum(sample <= widened(bar.upper_ns) for sample in samples)
    assert seen == len(samples)


def test_without_samples_everything_is_zero() -> None:
    empty = LatencyHistogram()
    assert (empty.min_ns, empty.max_ns, empty.mean_ns, empty.stddev_ns, empty.quantile_ns(500)) == (0, 0, 0.0, 0.0, 0)
    assert (empty.bars(), list(empty.buckets())) == ([], [])


def test_impossible_samples_count_as_the_nearest_possible() -> None:
    histogram = histogram_of([-5, 2**70])
    assert (histogram.count, histogram.min_ns, histogram.max_ns) == (2, 0, MAX_SAMPLE_NS)


def test_a_histogram_does_not_grow_with_its_samples() -> None:
    histogram = LatencyHistogram()
    before = sys.getsizeof(histogram._counts)
    for exponent in range(63):
        histogram.add(1 << exponent)
    assert sys.getsizeof(histogram._counts) == before < 64 * 1024


# --- schedule ---


@given(st.integers(1, 10**7), st.integers(0, 10**12))
def test_requests_are_due_at_the_rate_however_long_it_goes_on(rate: int, number: int) -> None:
    schedule = Schedule(rate_per_s=rate)
    due_ns = schedule.due_ns(number)
    assert due_ns * rate <= number * 10**9 < (due_ns + 1) * rate
    assert schedule.due_ns(number + rate) - due_ns == 10**9
    assert schedule.due_ns(0) == 0


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_is_not_positive_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        Schedule(rate_per_s=rate)


@given(st.lists(st.integers(-10, 10**10), max_size=50))
def test_lateness_counts_what_is_more_than_a_millisecond_late(delays_ns: list[int]) -> None:
    lateness = Lateness()
    for delay_ns in delays_ns:
        lateness.add(delay_ns)
    assert lateness.late == sum(delay_ns > LATE_NS for delay_ns in delays_ns)
    assert lateness.max_ns == max([0, *delays_ns])


# --- loads ---


def read_varint(data: bytes) -> int:
    """Go's ReadVarint for what isn't negative, the padding behind it ignored."""
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    assert value % 2 == 0
    return value // 2


def keys(size: int, key_size_bytes: int = 8, *, is_sequential: bool = True) -> KeySpace:
    return KeySpace(size=size, key_size_bytes=key_size_bytes, is_sequential=is_sequential, randomness=random.Random(7))


@given(st.integers(0, 2**62))
def test_a_varint_can_be_read_back(number: int) -> None:
    assert read_varint(varint(number)) == number


@pytest.mark.parametrize(("number", "expected"), [(0, b"\x00"), (1, b"\x02"), (63, b"\x7e"), (64, b"\x80\x01"), (999, b"\xce\x0f")])
def test_keys_are_those_of_etcds_benchmark(number: int, expected: bytes) -> None:
    assert keys(1000).key(number) == expected.ljust(8, b"\x00")


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.booleans())
def test_keys_have_their_size_and_lie_in_their_space(size: int, number: int, is_sequential: bool) -> None:
    key = keys(size, is_sequential=is_sequential).key(number)
    assert len(key) == 8
    assert read_varint(key) < size
    if is_sequential:
        assert read_varint(key) == number % size


@pytest.mark.parametrize(("size", "key_size_bytes"), [(65, 1), (8193, 2), (0, 8), (-1, 8)])
def test_a_key_space_that_cannot_be_is_refused(size: int, key_size_bytes: int) -> None:
    with pytest.raises(ValueError, match="key-s"):
        keys(size, key_size_bytes)


@pytest.mark.parametrize(("size", "key_size_bytes"), [(64, 1), (8192, 2)])
def test_a_key_space_may_fill_its_keys(size: int, key_size_bytes: int) -> None:
    space = keys(size, key_size_bytes)
    assert len({space.key(number) for number in range(size)}) == size


@pytest.mark.parametrize("value_size_bytes", [0, 1, 127, 128, 1_000_000])
def test_a_put_is_one_that_protobuf_reads(value_size_bytes: int) -> None:
    load = PutLoad(keys(10), value_size_bytes)
    first, second = (pb.PutRequest.FromString(load.request(number)[1]) for number in (3, 4))
    assert (first.key, second.key) == (keys(10).key(3), keys(10).key(4))
    assert first.value == second.value
    assert len(first.value) == value_size_bytes
    assert value_size_bytes < 100 or len(set(first.value)) > 30


def test_a_range_load_repeats_its_request() -> None:
    request = pb.RangeRequest(key=b"a", range_end=b"b", limit=3, serializable=True)
    load = RangeLoad(request)
    assert load.request(0) == load.request(9) == (Kind.READ, request.SerializeToString())


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (1.0, 900, 1100), (3.0, 1400, 1600), (1e9, 2000, 2000)])
def test_a_mixed_load_reads_in_proportion(ratio: float, low: int, high: int) -> None:
    space = keys(10)
    load = MixedLoad(PutLoad(space, 8), space, reads_per_write=ratio, is_serializable=True)
    requests = [load.request(number) for number in range(2000)]
    reads = [pb.RangeRequest.FromString(body) for kind, body in requests if kind is Kind.READ]
    assert low <= len(reads) <= high
    assert all(read.serializable and read_varint(read.key) < 10 for read in reads)


# --- tally and report ---


@given(st.lists(st.integers(0, 200), max_size=400))
def test_error_texts_are_bounded_and_none_is_lost(numbers: list[int]) -> None:
    tally = Tally(Kind.WRITE)
    for number in numbers:
        tally.fail(f"error {number} " + "x" * 1000)
    assert tally.failed == len(numbers)
    assert len(tally.errors) <= MAX_ERROR_TEXTS + 1
    assert all(len(text) <= MAX_ERROR_TEXT_CHARS for text in tally.errors)
    assert (OTHER_ERRORS in tally.errors) == (len(set(numbers)) > MAX_ERROR_TEXTS)


def report_of(*tallies: Tally, total: int = 4, lateness: Lateness | None = None, is_interrupted: bool = False) -> Report:
    return Report(
        command="put",
        options={"total": total, "key": "k\udcff"},
        total=total,
        elapsed_ns=2_000_000_000,
        is_interrupted=is_interrupted,
        generator_cpu_ns=500_000_000,
        lateness=lateness,
        tallies=tallies,
    )


def tally_of(samples_ns: list[int], errors: list[str], kind: Kind = Kind.WRITE) -> Tally:
    tally = Tally(kind)
    for sample_ns in samples_ns:
        tally.latency.add(sample_ns)
    for error in errors:
        tally.fail(error)
    return tally


EXPECTED = """
Summary:
  Total:	2.0000 secs.
  Slowest:	0.0110 secs.
  Fastest:	0.0010 secs.
  Average:	0.0047 secs.
  Stddev:	0.0045 secs.
  Requests/sec:	1.5000

Response time histogram:
  0.0010 [1]	|∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
  0.0020 [1]	|∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
  0.0030 [0]	|
  0.0040 [0]	|
  0.0050 [0]	|
  0.0060 [0]	|
  0.0070 [0]	|
  0.0080 [0]	|
  0.0090 [0]	|
  0.0100 [0]	|
  0.0110 [1]	|∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎

Latency distribution:
  10% in 1.004 ms.
  25% in 1.004 ms.
  50% in 2.007 ms.
  75% in 11.000 ms.
  90% in 11.000 ms.
  95% in 11.000 ms.
  99% in 11.000 ms.
  99.9% in 11.000 ms.

Error distribution:
  [2]	etcdserver: no leader
  [1]	context deadline exceeded
"""


def test_the_text_is_etcds() -> None:
    errors = ["context deadline exceeded", "etcdserver: no leader", "etcdserver: no leader"]
    tally = tally_of([1_000_000, 2_000_000, 11_000_000], errors)
    assert render_text(report_of(tally)) == EXPECTED


def test_the_summary_says_what_was_late_unanswered_and_not_sent() -> None:
    tally, lateness = tally_of([5], []), Lateness()
    tally.unanswered = 2
    lateness.add(4_200_000)
    text = render_text(report_of(tally, total=10, lateness=lateness, is_interrupted=True))
    assert "  Late starts:\t1 (at most 0.0042 secs)\n  Unanswered:\t2\n  Unsent:\t7 of 10\n" in text


def test_a_run_without_an_answer_has_a_report_too() -> None:
    text = render_text(report_of(tally_of([], ["refused"]), total=1))
    assert text == "\nSummary:\n  Total:\t2.0000 secs.\n  Requests/sec:\t0.0000\n\nError distribution:\n  [1]\trefused\n"


def test_several_kinds_have_a_section_each() -> None:
    text = render_text(report_of(tally_of([1], [], Kind.READ), tally_of([1], ["x"], Kind.WRITE), total=3))
    assert [line for line in text.splitlines() if line.startswith("Total ")] == ["Total range requests: 1", "Total put requests: 2"]


@given(SAMPLES, st.lists(st.text(max_size=5), max_size=20))
def test_the_json_has_what_the_tally_has(samples_ns: list[int], errors: list[str]) -> None:
    document = json.loads(render_json(report_of(tally_of(samples_ns, errors), total=len(samples_ns) + len(errors))))
    part = document["requests"]["put"]
    assert (part["succeeded"], part["failed"], part["unanswered"]) == (len(samples_ns), len(errors), 0)
    assert (document["elapsed_s"], document["generator_cores"], document["unsent"], document["late_starts"]) == (2.0, 0.25, 0, None)
    assert part["per_s"] == len(samples_ns) / 2
    assert sum(count for _, count in part["latency"]["buckets"]) == len(samples_ns)
    assert list(part["latency"]["percentiles_s"]) == ["10", "25", "50", "75", "90", "95", "99", "99.9"]
    assert sum(part["errors"].values()) == len(errors)


def test_the_json_of_a_run_without_an_answer_has_no_latency() -> None:
    assert json.loads(render_json(report_of(tally_of([], ["x"]))))["requests"]["put"]["latency"] is None


@pytest.mark.parametrize(
    ("ended", "elapsed_s", "expected"),
    [
        (0, 0.0, "0 / 200 [..............................] 0% 0/s"),
        (50, 2.0, "50 / 200 [#######.......................] 25% 25/s, 6 s left"),
        (200, 4.0, "200 / 200 [##############################] 100% 50/s, 0 s left"),
    ],
)
def test_the_bar_says_how_far_how_fast_and_how_long_still(ended: int, elapsed_s: float, expected: str) -> None:
    assert render(ended, 200, elapsed_s) == expected
