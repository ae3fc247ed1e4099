"""Figures of a run: what was killed, what was acknowledged, how long writes paused."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from kvserver.testing.chaos.model import Fault, History, Outcome

_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFigures:
    """Of all faults of one kind; pauses in seconds."""

    kind: str
    faults: int
    kills: int
    pause_p50_s: float
    pause_p99_s: float
    pause_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a whole run. A write is a request that may change something; `pause`: longest time without an acknowledged write from the
    beginning of a fault to the beginning of the next."""

    duration_s: float
    kills: int
    writes_acknowledged: int
    writes_unknown: int
    writes_failed: int
    linearizable_reads: int
    serializable_reads: int
    acknowledged_per_s: float
    by_kind: tuple[KindFigures, ...]
    total: KindFigures

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table for people."""
        head = f"{'fault':<44}{'faults':>7}{'kills':>7}{'pause p50':>11}{'p99':>8}{'max':>8}"
        rows = [
            f"{row.kind:<44}{row.faults:>7}{row.kills:>7}{row.pause_p50_s:>9.2f} s{row.pause_p99_s:>6.2f} s{row.pause_max_s:>6.2f} s"
            for row in (*self.by_kind, self.total)
        ]
        return [
            head,
            *rows,
            "",
            f"writes: {self.writes_acknowledged} acknowledged, {self.writes_unknown} unknown, {self.writes_failed} certainly failed",
            f"reads answered: {self.linearizable_reads} linearizable, {self.serializable_reads} serializable",
            f"{self.acknowledged_per_s:.0f} acknowledged writes/s over {self.duration_s:.0f} s, all pauses included",
        ]


def summarize(history: History) -> Summary:
    """The figures of a history."""
    outcomes: Counter[Outcome] = Counter()
    reads: Counter[bool] = Counter()
    acknowledged_ns = []
    times_ns = []
    for operation in history.operations:
        times_ns.append(operation.invoked_ns)
        if operation.request.is_mutation:
            outcomes[operation.outcome] += 1
            if operation.outcome is Outcome.OK and operation.completed_ns is not None:
                acknowledged_ns.append(operation.completed_ns)
        elif operation.outcome is Outcome.OK:
            reads[operation.request.serializable] += 1
    acknowledged_ns.sort()
    duration_s = (max(times_ns) - min(times_ns)) / _NS_PER_S if times_ns else 0.0
    pauses = _pauses_s(history.faults, acknowledged_ns, max(times_ns, default=0))
    kinds = sorted({fault.kind for fault in history.faults})
    return Summary(
        duration_s=duration_s,
        kills=sum(fault.kills for fault in history.faults),
        writes_acknowledged=outcomes[Outcome.OK],
        writes_unknown=outcomes[Outcome.UNKNOWN],
        writes_failed=outcomes[Outcome.FAILED],
        linearizable_reads=reads[False],
        serializable_reads=reads[True],
        acknowledged_per_s=outcomes[Outcome.OK] / duration_s if duration_s else 0.0,
        by_kind=tuple(_figures(kind, [(fault, pause) for fault, pause in pauses if fault.kind == kind]) for kind in kinds),
        total=_figures("all", pauses),
    )


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` (0 < share <= 1) of them do not exceed; 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _pauses_s(faults: Sequence[Fault], acknowledged_ns: Sequence[int], end_ns: int) -> list[tuple[Fault, float]]:
    ordered = sorted(faults, key=lambda fault: fault.began_ns)
    ends = [fault.began_ns for fault in ordered[1:]] + [max(end_ns, ordered[-1].ended_ns)] if ordered else []
    found = []
    for fault, until_ns in zip(ordered, ends, strict=True):
        inside = acknowledged_ns[bisect_left(acknowledged_ns, fault.began_ns) : bisect_right(acknowledged_ns, until_ns)]
        marks = [fault.began_ns, *inside]
        found.append((fault, max((after - before for before, after in pairwise(marks)), default=0) / _NS_PER_S))
    return found


def _figures(kind: str, pauses: Sequence[tuple[Fault, float]]) -> KindFigures:
    seconds = [pause for _, pause in pauses]
    return KindFigures(
        kind=kind,
        faults=len(pauses),
        kills=sum(fault.kills for fault, _ in pauses),
        pause_p50_s=quantile(seconds, 0.5),
        pause_p99_s=quantile(seconds, 0.99),
        pause_max_s=max(seconds, default=0.0),
    )
