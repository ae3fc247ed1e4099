"""Tables, JSON and plots of the memory comparison.

Rules: pure but for `write`; MB are 1,000,000 bytes; a run that did not end by itself has a note that says why; the
JSON holds every figure of the tables (and the slope of anonymous memory over the second half of the load), the samples go into the plots.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.plot import Series, chart
from bench.sampling import Sample, peak, slope_per_s
from bench.scenarios import Fault, Phase, RunResult

MB: Final = 1_000_000
_LOADS: Final = ("load", "away")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What has to be known to judge or repeat the figures."""

    began: str
    versions: dict[str, str]
    scale: float
    cores: int
    kernel: str
    load_average: float

    @classmethod
    def here(cls, *, began: str, versions: dict[str, str], scale: float) -> Settings:
        """Those of this machine, now."""
        return cls(
            began=began,
            versions=versions,
            scale=scale,
            cores=os.cpu_count() or 1,
            kernel=platform.release(),
            load_average=os.getloadavg()[0],
        )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    lines = [list(header), ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def megabytes(count_bytes: float) -> str:
    """Whole MB."""
    return f"{count_bytes / MB:,.0f}"


def memory_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """Rows of `MEMORY_HEADER`: the largest member of each run."""
    rows = []
    for result in results:
        whole, settled = result.peak(), result.phase("settled")
        load = next((phase for name in _LOADS if (phase := result.phase(name))), None)
        refused = sum(sum(phase.failures.values()) for phase in result.phases)
        rows.append(
            [
                result.job.scenario.name,
                str(result.job.clients),
                result.job.system.name,
                f"{load.puts}" if load else "-",
                f"{load.writes_per_s:,.0f}" if load else "-",
                f"{load.p99_ms:,.0f}" if load else "-",
                megabytes(whole.rss_bytes),
                megabytes(whole.anonymous_bytes),
                megabytes(whole.file_bytes),
                megabytes(max(each.anonymous_bytes for each in settled.peaks.values())) if settled else "-",
                str(refused),
                result.note,
            ]
        )
    return rows


MEMORY_HEADER: Final = (
    *("scenario", "clients", "system", "puts", "puts/s", "p99 ms", "peak RSS MB", "peak anon MB", "peak file MB", "anon after, MB"),
    *("failed puts", "note"),
)


def fault_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """Rows of `FAULT_HEADER`: only the runs in which something befell a member."""
    rows = []
    for result in results:
        if result.job.scenario.fault is Fault.NONE:
            continue
        before = result.phase("before") or (result.phase("load") if result.job.scenario.fault is Fault.SNAPSHOT else None)
        during = result.phase("catch-up") or result.phase("snapshot")
        rows.append(
            [
                result.job.scenario.name,
                result.job.system.name,
                _rate(before),
                _rate(result.phase("away")),
                _rate(during),
                f"{during.p99_ms:,.0f}" if during else "-",
                "-" if result.event_s is None else f"{result.event_s:.1f}",
                str(result.snapshots_received) if result.affected else "-",
                megabytes(result.peak(result.leader).anonymous_bytes),
                megabytes(result.peak(result.affected).anonymous_bytes) if result.affected else "-",
            ]
        )
    return rows


FAULT_HEADER: Final = (
    *("scenario", "system", "puts/s before", "puts/s away", "puts/s during", "p99 ms during", "catch-up or snapshot, s"),
    *("snapshots received", "leader's peak anon MB", "follower's peak anon MB"),
)


def _rate(phase: Phase | None) -> str:
    return f"{phase.writes_per_s:,.0f}" if phase else "-"


def markdown(settings: Settings, results: Sequence[RunResult]) -> str:
    """The whole report."""
    versions = "; ".join(settings.versions.values())
    machine = f"{settings.cores} cores, Linux {settings.kernel}, load average at the start {settings.load_average:.1f}"
    head = f"{settings.began}, {machine}. {versions}."
    parts = [head + (f" Scale {settings.scale:g}: **a quick look, not a measurement.**" if settings.scale != 1 else "") + "\n"]
    parts.append(table(MEMORY_HEADER, memory_rows(results)))
    if faults := fault_rows(results):
        parts.append(table(FAULT_HEADER, faults))
    return "\n".join(parts)


def as_json(settings: Settings, results: Sequence[RunResult]) -> dict[str, Any]:
    """The report as JSON values: bytes, seconds, milliseconds, as the names say."""
    return {"settings": dataclasses.asdict(settings), "runs": [_run_json(result) for result in results]}


def _run_json(result: RunResult) -> dict[str, Any]:
    workload = result.job.workload
    return {
        "scenario": result.job.scenario.name,
        "system": result.job.system.name,
        "nodes": result.job.scenario.nodes,
        "fault": result.job.scenario.fault.value,
        "workload": dataclasses.asdict(workload),
        "leader": result.leader,
        "affected": result.affected,
        "event_s": result.event_s,
        "snapshots_received": result.snapshots_received,
        "note": result.note,
        "is_complete": result.is_complete,
        "peaks": {name: dataclasses.asdict(peak(samples)) for name, samples in result.series.items()},
        "anonymous_slope_bytes_per_s": {name: slope_of_second_half(samples) for name, samples in result.series.items()},
        "phases": [dataclasses.asdict(phase) for phase in result.phases],
    }


def slope_of_second_half(samples: Sequence[Sample]) -> float:
    """By how much anonymous memory grew per second in the second half of the samples: near 0 for memory that has a bound."""
    return slope_per_s([(each.at_s, float(each.anonymous_bytes)) for each in samples[len(samples) // 2 :]])


def plot(results: Sequence[RunResult]) -> str:
    """The runs of one scenario and number of clients as a chart of anonymous memory: per system the largest member; the follower dashed."""
    series: list[Series] = []
    for colour, result in enumerate(results):
        name = result.job.system.name
        held = {member: samples for member, samples in result.series.items() if samples}
        if not held:
            continue
        unaffected = {member: samples for member, samples in held.items() if member != result.affected} or held
        top = max(unaffected, key=lambda member: peak(unaffected[member]).anonymous_bytes)
        label = name if len(held) == 1 else f"{name}, largest of the others" if result.affected else f"{name}, largest member"
        series.append(Series(label=label, points=_points(result, held[top]), colour=colour))
        if result.affected in held:
            label = f"{name}, the {result.job.scenario.fault.value} follower"
            series.append(Series(label=label, points=_points(result, held[result.affected]), colour=colour, is_dashed=True))
    job = results[0].job
    title = f"{job.scenario.name}: {job.workload.puts:,} x {job.workload.value_bytes:,} B, {job.clients} client{'s' * (job.clients > 1)}"
    return chart(title, "seconds", "anonymous memory, MB", series)


def _points(result: RunResult, samples: Sequence[Sample]) -> list[tuple[float, float]]:
    return [(max(0.0, each.at_s - result.began_s), each.anonymous_bytes / MB) for each in samples]


def write(directory: Path, settings: Settings, results: Sequence[RunResult]) -> None:
    """Write memory.md, memory.json and one SVG per scenario and number of clients."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.md").write_text(markdown(settings, results))
    (directory / "memory.json").write_text(json.dumps(as_json(settings, results), indent=2) + "\n")
    cells: dict[tuple[str, int], list[RunResult]] = {}
    for result in results:
        cells.setdefault((result.job.scenario.name, result.job.clients), []).append(result)
    for (name, clients), of_cell in cells.items():
        stem = re.sub(r"[^a-z0-9-]", "-", f"{name}-{clients}")
        (directory / f"memory-{stem}.svg").write_text(plot(of_cell))
