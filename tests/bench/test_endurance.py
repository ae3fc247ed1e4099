"""Whether memory grows: the line through samples, and one small real run of each measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.endurance import parse, trend
from bench.sampling import Sample

MB = 1_000_000


def samples(*values_mb: float) -> list[Sample]:
    return [Sample(at_s=float(at), rss_bytes=0, anonymous_bytes=round(value * MB), file_bytes=0) for at, value in enumerate(values_mb)]


def test_memory_that_grows_steadily_is_no_noise() -> None:
    found = trend(samples(*(40 + 0.5 * at for at in range(101))), 0.0, 100.0, puts=50_000)
    assert found.slope_bytes == pytest.approx(100 * MB)
    assert found.gain_bytes == pytest.approx(45 * MB)
    assert not found.is_noise


def test_memory_that_goes_up_and_down_is_noise() -> None:
    found = trend(samples(*(40 + 5 * (at % 2) for at in range(101))), 0.0, 100.0, puts=50_000)
    assert abs(found.gain_bytes) < MB
    assert found.spread_bytes == pytest.approx(2.5 * MB, rel=0.1)
    assert found.is_noise


def test_growth_within_the_warm_up_and_after_the_load_does_not_count() -> None:
    found = trend(samples(*range(10), *([40.0] * 91), 500.0), 0.0, 100.0, puts=1000)
    assert (found.slope_bytes, found.mean_bytes) == (pytest.approx(0.0, abs=1.0), pytest.approx(40 * MB))
    assert found.peak_bytes == 500 * MB


def test_a_trend_needs_samples() -> None:
    with pytest.raises(ValueError, match="too few samples"):
        trend(samples(1.0, 2.0), 0.0, 100.0, puts=1)


@pytest.mark.process
def test_many_keys_are_put_found_again_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse([f"--directory={tmp_path}", f"--out={tmp_path}", "keys", "--keys=1000"])
    figures, is_within = options.measure(options)
    assert figures["keys"] == 1000
    assert is_within
    assert "1000 keys of 256 B" in capsys.readouterr().out


@pytest.mark.process
def test_a_loop_of_puts_over_few_keys_gives_a_trend_for_each_member(tmp_path: Path) -> None:
    options = parse([f"--directory={tmp_path}", "puts", "--puts=300", "--nodes=1", "--clients=4", "--key-count=10"])
    figures, _ = options.measure(options)
    assert figures["puts"] == 300
    assert 10 * MB < figures["members"]["m1"]["mean_bytes"] < 100 * MB
    json.dumps(figures)
