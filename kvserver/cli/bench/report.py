"""The report: etcd's benchmark's text, and the same as JSON.

Rules: pure. The text has the sections, names and units of etcd's tool; what it doesn't know (late starts, unfinished requests) is added as
lines of the summary. The JSON has all that the text has, in seconds, and the latencies' buckets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvserver.cli.bench.histogram import LatencyHistogram
from kvserver.cli.bench.tally import Lateness, Tally

PER_MILLES: Final = (100, 250, 500, 750, 900, 950, 990, 999)
BAR_CHAR: Final = "∎"
MAX_BAR_CHARS: Final = 40
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to. `options` are those of the command line that shaped it; `lateness` is None in a closed loop."""

    command: str
    options: Mapping[str, Any]
    total: int
    elapsed_ns: int
    is_interrupted: bool
    generator_cpu_ns: int
    lateness: Lateness | None
    tallies: Sequence[Tally]

    @property
    def failed(self) -> int:
        """Requests that ended with an error."""
        return sum(tally.failed for tally in self.tallies)

    @property
    def ended(self) -> int:
        """Requests that were answered or failed."""
        return sum(tally.succeeded for tally in self.tallies) + self.failed

    @property
    def unsent(self) -> int:
        """Requests that the run didn't come to: it was interrupted, or gave up."""
        return max(0, self.total - self.ended - sum(tally.unanswered for tally in self.tallies))

    @property
    def generator_cores(self) -> float:
        """How many cores this process kept busy, on average."""
        return self.generator_cpu_ns / max(1, self.elapsed_ns)


def per_second(tally: Tally, elapsed_ns: int) -> float:
    """Successful requests a second."""
    return tally.succeeded / (max(1, elapsed_ns) / 1e9)


def percent(per_mille: int) -> str:
    """`10`, `99.9`."""
    return f"{per_mille / 10:g}"


def render_text(report: Report) -> str:
    """For people; a section for each kind of request where there are several."""
    parts = []
    for tally in report.tallies:
        title = f"\nTotal {tally.kind} requests: {tally.succeeded + tally.failed}\n" if len(report.tallies) > 1 else ""
        parts.append(title + _summary(report, tally) + _histogram(tally.latency) + _distribution(tally.latency) + _errors(tally))
    return "".join(parts)


def _seconds(duration_ns: float) -> str:
    return f"{duration_ns / 1e9:.4f} secs"


def _summary(report: Report, tally: Tally) -> str:
    latency = tally.latency
    lines = ["", "Summary:", f"  Total:\t{_seconds(report.elapsed_ns)}."]
    if latency.count:
        lines += [
            f"  Slowest:\t{_seconds(latency.max_ns)}.",
            f"  Fastest:\t{_seconds(latency.min_ns)}.",
            f"  Average:\t{_seconds(latency.mean_ns)}.",
            f"  Stddev:\t{_seconds(latency.stddev_ns)}.",
        ]
    lines.append(f"  Requests/sec:\t{per_second(tally, report.elapsed_ns):.4f}")
    if report.lateness is not None:
        lines.append(f"  Late starts:\t{report.lateness.late} (at most {_seconds(report.lateness.max_ns)})")
    if tally.unanswered:
        lines.append(f"  Unanswered:\t{tally.unanswered}")
    if report.unsent:
        lines.append(f"  Unsent:\t{report.unsent} of {report.total}")
    return "\n".join(lines) + "\n"


def _histogram(latency: LatencyHistogram) -> str:
    bars = latency.bars()
    if not bars:
        return ""
    most = max(bar.count for bar in bars)
    lines = ["", "Response time histogram:"]
    lines += [f"  {bar.upper_ns / 1e9:.4f} [{bar.count}]\t|{BAR_CHAR * (bar.count * MAX_BAR_CHARS // most)}" for bar in bars]
    return "\n".join(lines) + "\n"


def _distribution(latency: LatencyHistogram) -> str:
    if not latency.count:
        return ""
    lines = ["", "Latency distribution:"]
    lines += [f"  {percent(per_mille)}% in {latency.quantile_ns(per_mille) / 1e6:.3f} ms." for per_mille in PER_MILLES]
    return "\n".join(lines) + "\n"


def _errors(tally: Tally) -> str:
    if not tally.errors:
        return ""
    by_number = sorted(tally.errors.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(["", "Error distribution:", *(f"  [{number}]\t{text}" for text, number in by_number)]) + "\n"


def render_json(report: Report) -> str:
    """For programs: one object on one line, described in docs/bench.md."""
    lateness = report.lateness
    document = {
        "format": FORMAT_VERSION,
        "benchmark": report.command,
        "options": dict(report.options),
        "elapsed_s": report.elapsed_ns / 1e9,
        "interrupted": report.is_interrupted,
        "unsent": report.unsent,
        "generator_cores": round(report.generator_cores, 3),
        "late_starts": None if lateness is None else {"count": lateness.late, "max_s": lateness.max_ns / 1e9},
        "requests": {str(tally.kind): _json_part(tally, report.elapsed_ns) for tally in report.tallies},
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"


def _json_part(tally: Tally, elapsed_ns: int) -> dict[str, Any]:
    return {
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "unanswered": tally.unanswered,
        "per_s": per_second(tally, elapsed_ns),
        "latency": _json_latency(tally.latency) if tally.succeeded else None,
        "errors": tally.errors,
    }


def _json_latency(latency: LatencyHistogram) -> dict[str, Any]:
    return {
        "fastest_s": latency.min_ns / 1e9,
        "slowest_s": latency.max_ns / 1e9,
        "average_s": latency.mean_ns / 1e9,
        "stddev_s": latency.stddev_ns / 1e9,
        "percentiles_s": {percent(per_mille): latency.quantile_ns(per_mille) / 1e9 for per_mille in PER_MILLES},
        "buckets": [[bar.upper_ns / 1e9, bar.count] for bar in latency.buckets()],
    }
