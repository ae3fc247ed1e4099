"""Tables, JSON and plots of the tuning study.

Purpose: `markdown` is a section that can be pasted whole (a table per factor, the noise of the default point); `write` puts it beside the
JSON and, per factor, bars and the leader's memory over time; `read` gives back what an earlier study wrote, so that it can be resumed.

Rules: pure but for `write` and `read`; MB are 1,000,000 bytes; the JSON holds every figure of the tables.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.bars import Panel, bars, shown
from bench.plot import Series, chart
from bench.report import MB, Settings, megabytes, table
from bench.tuning_plan import FACTORS
from bench.tuning_run import Outcome

LOADS: Final = ("before", "away", "catch-up")  # a load each; the other phases are parts of the last
JSON_NAME: Final = "tuning.json"
HEADER: Final = (
    *("point", "caught up by", "catch-up s", "of it starting", "applying", "WAL read MB", "p50 / p99 before, ms", "p50 / p99 away"),
    *("p50 / p99 catching up", "p99 of it starting / applying", "puts/s away", "leader: MB before", "peak MB"),
    *("follower: peak MB", "window: peak MB", "entries", "note"),
)
INTRODUCTIONS: Final[dict[str, str]] = {
    "default": "The same point several times: what differs here is noise.",
    "way": "The same lag, served from the window, from the WAL, or by a snapshot.",
    "window-bytes": "Caps of the window in bytes, at two lags.",
    "window-entries": "Caps of the window in entries (the byte cap is 256 MiB and does not bind), at two lags.",
    "entry": "The same lag in bytes, in entries of other sizes.",
    "store": "Stores of other sizes, at a lag of 120 MB.",
    "latency": "A delay in each direction between members; all runs go through the relay.",
}


def _ms(outcome: Outcome, phase: str) -> str:
    found = outcome.phases.get(phase)
    return f"{shown(found.p50_ms)} / {shown(found.p99_ms)}" if found and found.puts else "-"


def _p99(outcome: Outcome, phase: str) -> str:
    found = outcome.phases.get(phase)
    return shown(found.p99_ms if found and found.puts else None)


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Rows of `HEADER`."""
    return [_row(outcome) for outcome in outcomes]


def _row(outcome: Outcome) -> list[str]:
    point, away = outcome.point, outcome.phases.get("away")
    refused = sum(outcome.phases[name].failures for name in LOADS if name in outcome.phases)
    notes = [outcome.note] if outcome.note else []
    if outcome.way and outcome.way != point.way.value:
        notes.append(f"meant to be by {point.way.value}")
    if refused:
        notes.append(f"{refused} failed puts")
    return [
        point.label + (f" ({point.repeat})" if point.repeat > 1 else ""),
        outcome.way or "-",
        shown(outcome.caught_up_s),
        shown(outcome.up_s),
        shown(outcome.applying_s),
        megabytes(outcome.wal_read_bytes),
        _ms(outcome, "before"),
        _ms(outcome, "away"),
        _ms(outcome, "catch-up"),
        f"{_p99(outcome, 'starting')} / {_p99(outcome, 'applying')}",
        f"{away.writes_per_s:,.0f}" if away else "-",
        megabytes(outcome.leader_base_bytes),
        megabytes(outcome.leader_peak_bytes),
        megabytes(outcome.follower_peak_bytes),
        megabytes(outcome.window_peak_bytes),
        f"{outcome.window_peak_entries:,}",
        "; ".join(notes),
    ]


def noise(outcomes: Sequence[Outcome]) -> str:
    """By how much the repeats of one point differ; empty for fewer than two that are complete."""
    complete = [each for each in outcomes if each.is_complete]
    if len(complete) < 2:
        return ""
    figures: dict[str, Callable[[Outcome], float]] = {
        "catch-up {} s": lambda each: each.caught_up_s or 0.0,
        "p99 while catching up {} ms": lambda each: each.phases["catch-up"].p99_ms,
        "puts/s away {}": lambda each: each.phases["away"].writes_per_s,
        "the leader's peak {} MB": lambda each: each.leader_peak_bytes / MB,
    }
    spans = [text.format(f"{shown(min(map(of, complete)))}-{shown(max(map(of, complete)))}") for text, of in figures.items()]
    return f"Over {len(complete)} runs: {', '.join(spans)}.\n"


def by_factor(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each factor that has any, in the order of the plan."""
    found = {factor: [each for each in outcomes if each.point.factor == factor] for factor in FACTORS}
    return {factor: of_factor for factor, of_factor in found.items() if of_factor}


def markdown(settings: Settings, outcomes: Sequence[Outcome]) -> str:
    """The section, to be pasted whole."""
    versions = "; ".join(settings.versions.values())
    machine = f"{settings.cores} cores, Linux {settings.kernel}, load average at the start {settings.load_average:.1f}"
    head = f"{settings.began}, {machine}. {versions}. {len(outcomes)} runs, {sum(each.took_s for each in outcomes) / 60:.0f} minutes."
    parts = [head + (f" Scale {settings.scale:g}: **a quick look, not a measurement.**" if settings.scale != 1 else "") + "\n"]
    for factor, of_factor in by_factor(outcomes).items():
        parts += [f"### {factor}\n", INTRODUCTIONS[factor] + "\n", table(HEADER, rows(of_factor))]
        if factor == "default" and (spans := noise(of_factor)):
            parts.append(spans)
    return "\n".join(parts)


def _bars(factor: str, outcomes: Sequence[Outcome]) -> str:
    def of_phase(name: str) -> list[float | None]:
        return [found.p99_ms if (found := each.phases.get(name)) and found.puts else None for each in outcomes]

    panels = [
        Panel(title="catch-up without the start, s", values=[each.applying_s for each in outcomes]),
        Panel(title="p99 while catching up, ms", values=of_phase("catch-up")),
        Panel(title="leader's peak anonymous MB", values=[each.leader_peak_bytes / MB or None for each in outcomes]),
        Panel(title="follower's peak anonymous MB", values=[each.follower_peak_bytes / MB or None for each in outcomes]),
    ]
    return bars(f"tuning: {factor}", [_row(each)[0] for each in outcomes], panels)


def _memory(factor: str, outcomes: Sequence[Outcome]) -> str:
    half = (len(outcomes) + 1) // 2
    series = [
        Series(
            label=_row(each)[0],
            points=[(at_s, size_bytes / MB) for at_s, size_bytes in each.leader_series],
            colour=number % half,
            is_dashed=number >= half,
        )
        for number, each in enumerate(outcomes)
    ]
    return chart(f"tuning: {factor}, the leader since the follower was killed", "seconds", "anonymous memory, MB", series)


def as_json(settings: Settings, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The study as JSON values: bytes, seconds, milliseconds, as the names say."""
    return {"settings": dataclasses.asdict(settings), "runs": [dataclasses.asdict(each) for each in outcomes]}


def _plain(value: object) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{value!r} has no JSON")


def write(directory: Path, settings: Settings, outcomes: Sequence[Outcome]) -> None:
    """Write tuning.md, tuning.json and two SVGs per factor; the JSON is replaced at once, so that a cut study can be resumed."""
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / f"{JSON_NAME}.new"
    scratch.write_text(json.dumps(as_json(settings, outcomes), indent=1, default=_plain) + "\n")
    os.replace(scratch, directory / JSON_NAME)
    (directory / "tuning.md").write_text(markdown(settings, outcomes))
    for factor, of_factor in by_factor(outcomes).items():
        (directory / f"tuning-{factor}.svg").write_text(_bars(factor, of_factor))
        (directory / f"tuning-{factor}-memory.svg").write_text(_memory(factor, of_factor))


def read(directory: Path) -> tuple[Settings, list[Outcome]] | None:
    """What `write` left there; None when there is nothing.

    Raises:
        ValueError: the file is not one of this program's (or of another version of it).
    """
    path = directory / JSON_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return Settings(**values["settings"]), [Outcome.from_json(each) for each in values["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be resumed: {error}") from error
