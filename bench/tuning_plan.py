"""What the tuning study varies: one factor at a time, around the defaults.

Purpose: `FACTORS` names the factors, `plan` the runs in their order, `Point` is one run's settings, `estimate_s` how long it takes.

Rules: a point differs from the default point only in what its label says. The grace period is `GRACE_S` in all runs: within it the whole
cap counts for a member that is away, after it half the cap, and the time that it takes to make the lag must not decide which (1 KB entries
take ten times as long as 100 KB ones). Lags are chosen between the caps: 40 MB lies between 8 and 64 MiB and between 500 and 5,000 entries
of 10 KB, 120 MB between 64 and 256 MiB and between 5,000 and 50,000. `way` is how the laggard has to be helped then; the report says
when it was helped otherwise. A scale shrinks store, lag, caps and rates alike, so that the ways stay what they are.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

MB: Final = 1_000_000
MIB: Final = 1 << 20
ENTRY_OVERHEAD_BYTES: Final = 240  # as kvserver counts an entry in its window
LEAST_WINDOW_ENTRIES: Final = 1  # as kvserver's flags take it
LEAST_WINDOW_BYTES: Final = 64 << 10
LEAST_RATE_PER_S: Final = 1.0
GRACE_S: Final = 120
BEFORE_S: Final = 3.0
SHORT_LAG_BYTES: Final = 40 * MB
LONG_LAG_BYTES: Final = 120 * MB
DEFAULT_REPEATS: Final = 3

RATES_PER_S: Final = {1_000: 200.0, 10_000: 100.0, 100_000: 20.0, MB: 4.0}
"""Puts per second before and during the catch-up, by entry size: well below what a closed loop gets on two cores."""

AWAY_PER_S: Final = {1_000: 600.0, 10_000: 500.0, 100_000: 200.0, MB: 40.0}
"""Puts per second of a closed loop without the laggard, roughly: this and what follows is for the estimate only."""

DELAYED_AWAY_PER_S: Final = 250.0
PRELOAD_BYTES_PER_S: Final = 40 * MB
CATCH_UP_BYTES_PER_S: Final = 20 * MB
COPY_BYTES_PER_S: Final = 100 * MB
FIXED_S: Final = 12.0
"""Starting four times, being quiet, ending, removing the files."""


class Way(enum.Enum):
    """From where the laggard got what it had missed."""

    MEMORY = "memory"
    WAL = "WAL"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run. `delay_s` is added in each direction between members; `is_relayed` sends their traffic through the relay even without."""

    factor: str
    label: str
    way: Way
    repeat: int = 1
    entry_bytes: int = 10_000
    lag_bytes: int = SHORT_LAG_BYTES
    store_bytes: int = 500 * MB
    window_entries: int = 100_000
    window_bytes: int = 64 * MIB
    retain_bytes: int = 256 * MIB
    delay_s: float = 0.0
    is_relayed: bool = False
    scale: float = 1.0

    @property
    def name(self) -> str:
        """As the plan and the notes call it."""
        return f"{self.factor}: {self.label}" + (f" ({self.repeat})" if self.repeat > 1 else "")

    @property
    def away_puts(self) -> int:
        """Puts while the laggard is away."""
        return max(1, self.lag_bytes // self.entry_bytes)

    @property
    def rate_per_s(self) -> float:
        """Puts per second before and during the catch-up."""
        return max(LEAST_RATE_PER_S, RATES_PER_S[self.entry_bytes] * self.scale)

    @property
    def flags(self) -> list[str]:
        """kvserver's flags for it."""
        return [
            f"--log-window-entries={self.window_entries}",
            f"--log-window-bytes={self.window_bytes}",
            f"--wal-retain-bytes={self.retain_bytes}",
            f"--log-peer-grace={GRACE_S}s",
        ]

    @property
    def needed_bytes(self) -> int:
        """Disk space that the run takes, roughly and rather too much: store and log of three members, and two copies under way."""
        return 5 * self.store_bytes + 12 * self.lag_bytes + 3 * (self.retain_bytes + 64 * MIB)

    def scaled(self, scale: float) -> Point:
        """The same with a smaller store, lag, caps and rate."""
        return dataclasses.replace(
            self,
            scale=self.scale * scale,
            lag_bytes=round(self.lag_bytes * scale),
            store_bytes=round(self.store_bytes * scale),
            window_entries=max(LEAST_WINDOW_ENTRIES, round(self.window_entries * scale)),
            window_bytes=max(LEAST_WINDOW_BYTES, round(self.window_bytes * scale)),
        )


def _size(count_bytes: int) -> str:
    for unit, name in ((1000 * MB, "GB"), (MB, "MB"), (1000, "KB")):
        if count_bytes >= unit:
            return f"{count_bytes / unit:g} {name}"
    return f"{count_bytes} B"


def _default() -> list[Point]:
    return [Point(factor="default", label="defaults", way=Way.MEMORY, repeat=number + 1) for number in range(DEFAULT_REPEATS)]


def _window_entries() -> list[Point]:
    """With a byte cap that does not bind. The server takes 1 at least: that is the window of 0."""
    return [
        Point(
            factor="window-entries",
            label=f"{entries:,} {'entries' if entries > 1 else 'entry'}, lag {_size(lag)}",
            way=Way.MEMORY if entries * 10_000 > lag else Way.WAL,
            window_entries=entries,
            window_bytes=256 * MIB,
            lag_bytes=lag,
        )
        for lag in (SHORT_LAG_BYTES, LONG_LAG_BYTES)
        for entries in (LEAST_WINDOW_ENTRIES, 500, 5_000, 50_000)
    ]


def _window_bytes() -> list[Point]:
    return [
        Point(
            factor="window-bytes",
            label=f"{mib} MiB, lag {_size(lag)}",
            way=Way.MEMORY if mib * MIB > lag * (1 + ENTRY_OVERHEAD_BYTES / 10_000) else Way.WAL,
            window_bytes=mib * MIB,
            lag_bytes=lag,
        )
        for lag in (SHORT_LAG_BYTES, LONG_LAG_BYTES)
        for mib in (1, 8, 64, 256)
    ]


def _by_way(factor: str, label: str, way: Way, **settings: int | float | bool) -> Point:
    """A point whose way is forced: by a window that is smaller than the lag, and by keeping no WAL.

    By the WAL: 5 MB, out of which no healthy member falls. By a snapshot: a little below the lag: twice as much is
    held while a snapshot travels, and if more than that is written meanwhile, the laggard needs the next snapshot when it has the first
    (1 MB/s of puts leave it one minute at the short lag, three at the long one).
    """
    forced: dict[str, int] = {}
    if way is Way.WAL:
        forced["window_bytes"] = 5 * MB
    if way is Way.SNAPSHOT:
        forced["window_bytes"] = (96 if settings.get("lag_bytes") == LONG_LAG_BYTES else 32) * MIB
        forced["retain_bytes"] = 0
    return Point(factor=factor, label=f"{label}, by {way.value}", way=way, **{**forced, **settings})  # type: ignore[arg-type]


def _entries() -> list[Point]:
    sizes = (1_000, 10_000, 100_000, MB)
    return [_by_way("entry", f"{_size(size)}", way, entry_bytes=size) for way in (Way.MEMORY, Way.WAL) for size in sizes]


def _stores() -> list[Point]:
    """At the long lag, so that the copy of the largest store has the time that it takes."""
    sizes = (50 * MB, 500 * MB, 2_000 * MB)
    return [
        _by_way("store", _size(size), way, store_bytes=size, lag_bytes=LONG_LAG_BYTES, **_room_for_both_lags(way))
        for way in (Way.MEMORY, Way.SNAPSHOT)
        for size in sizes
    ]


def _room_for_both_lags(way: Way) -> dict[str, int]:
    return {"window_bytes": 256 * MIB} if way is Way.MEMORY else {}


def _latencies() -> list[Point]:
    """All through the relay, so that its own cost is in the run without a delay, too."""
    return [
        _by_way("latency", f"{ms} ms", way, delay_s=ms / 1000, is_relayed=True)
        for way in (Way.MEMORY, Way.WAL, Way.SNAPSHOT)
        for ms in (0, 20)
    ]


def _ways() -> list[Point]:
    """With a byte cap that lets memory serve the long lag, too."""
    return [
        _by_way("way", f"lag {_size(lag)}", way, lag_bytes=lag, **_room_for_both_lags(way))
        for lag in (SHORT_LAG_BYTES, LONG_LAG_BYTES)
        for way in (Way.MEMORY, Way.WAL, Way.SNAPSHOT)
    ]


FACTORS: Final[dict[str, Callable[[], list[Point]]]] = {
    "default": _default,
    "way": _ways,
    "window-bytes": _window_bytes,
    "window-entries": _window_entries,
    "entry": _entries,
    "store": _stores,
    "latency": _latencies,
}


def plan(only: Sequence[str] = (), scale: float = 1.0) -> list[Point]:
    """The runs, in order: the most telling factors first, so that a study that is cut has them."""
    return [point.scaled(scale) for factor, points in FACTORS.items() if not only or factor in only for point in points()]


def estimate_s(point: Point) -> float:
    """About how long the run takes on a quiet machine with two cores."""
    preload_s = point.store_bytes / PRELOAD_BYTES_PER_S
    per_s = min(AWAY_PER_S[point.entry_bytes], DELAYED_AWAY_PER_S) if point.delay_s else AWAY_PER_S[point.entry_bytes]
    copy_s = 2 * point.store_bytes / COPY_BYTES_PER_S if point.way is Way.SNAPSHOT else 0.0
    return FIXED_S + preload_s + BEFORE_S + point.away_puts / per_s + point.lag_bytes / CATCH_UP_BYTES_PER_S + copy_s
