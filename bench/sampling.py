"""What processes hold in memory, over time: samples of /proc/<pid>/status, and the figures that are read from them.

Purpose: `Sampler` looks at every member each 100 ms on a thread of its own; the functions below are pure.

Rules: RSS = RssAnon + RssFile (+ RssShmem, which neither system uses). RssAnon is what can't be given back under pressure; RssFile are
mapped pages of the store (etcd's bbolt, kvserver's LMDB) and of the program, which the kernel reclaims. Bytes; monotonic seconds.

Caveats: what rises and falls within 100 ms is not seen.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one process."""

    at_s: float
    rss_bytes: int
    anonymous_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The largest of each figure over some samples (not necessarily at the same moment)."""

    rss_bytes: int = 0
    anonymous_bytes: int = 0
    file_bytes: int = 0


def parse_status(text: str, at_s: float) -> Sample | None:
    """The sample in a /proc/<pid>/status; None when it holds no memory figures (a process that is ending)."""
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        rss, anonymous, file = (int(rows[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile"))
    except KeyError:
        return None
    return Sample(at_s=at_s, rss_bytes=rss, anonymous_bytes=anonymous, file_bytes=file)


def peak(samples: Iterable[Sample], from_s: float = float("-inf"), to_s: float = float("inf")) -> Peak:
    """The peak of the samples in the closed [from_s, to_s]; all zero without any."""
    chosen = [each for each in samples if from_s <= each.at_s <= to_s]
    return Peak(
        rss_bytes=max((each.rss_bytes for each in chosen), default=0),
        anonymous_bytes=max((each.anonymous_bytes for each in chosen), default=0),
        file_bytes=max((each.file_bytes for each in chosen), default=0),
    )


def largest(peaks: Iterable[Peak]) -> Peak:
    """Each figure of the member in which it was the largest."""
    held = list(peaks)
    return Peak(
        rss_bytes=max((each.rss_bytes for each in held), default=0),
        anonymous_bytes=max((each.anonymous_bytes for each in held), default=0),
        file_bytes=max((each.file_bytes for each in held), default=0),
    )


def slope_per_s(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of (seconds, value); 0 for fewer than two different times."""
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of the values do not exceed; 0 without values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Sampler:
    """Samples processes until its block is left. `pids` gives a process id, or None while there is none (a member that was killed)."""

    def __init__(self, pids: Mapping[str, Callable[[], int | None]], interval_s: float = INTERVAL_S) -> None:
        self.series: dict[str, list[Sample]] = {name: [] for name in pids}
        self._pids = pids
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + self._interval_s, time.monotonic())
            for name, pid in self._pids.items():
                sample = self._look(pid())
                if sample is not None:
                    self.series[name].append(sample)

    @staticmethod
    def _look(pid: int | None) -> Sample | None:
        if pid is None:
            return None
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it ended between the question and the look
            return None
        return parse_status(text, time.monotonic())
