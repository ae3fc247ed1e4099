"""What came of the requests so far, in bounded memory: latencies of those that succeeded, texts of those that failed.

Rules: a failed request has no place among the latencies, as in etcd's report: failing fast is not being fast. At most `MAX_ERROR_TEXTS`
different texts are kept, the rest is counted together.
"""

from __future__ import annotations

from typing import Final

from kvserver.cli.bench.histogram import LatencyHistogram
from kvserver.cli.bench.loads import Kind
from kvserver.cli.bench.schedule import LATE_NS

MAX_ERROR_TEXTS: Final = 50
MAX_ERROR_TEXT_CHARS: Final = 300
OTHER_ERRORS: Final = "(other errors)"


class Tally:
    """The requests of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.latency = LatencyHistogram()
        self.errors: dict[str, int] = {}
        self.unanswered = 0
        """Sent, and neither answered nor failed yet."""

    @property
    def succeeded(self) -> int:
        """Requests that were answered."""
        return self.latency.count

    @property
    def failed(self) -> int:
        """Requests that ended with an error."""
        return sum(self.errors.values())

    def fail(self, text: str) -> None:
        """Count one error."""
        text = text[:MAX_ERROR_TEXT_CHARS]
        if text not in self.errors and len(self.errors) >= MAX_ERROR_TEXTS:
            text = OTHER_ERRORS
        self.errors[text] = self.errors.get(text, 0) + 1


class Lateness:
    """The requests that started later than they were due (open loop only)."""

    def __init__(self) -> None:
        self.late = 0
        self.max_ns = 0

    def add(self, delay_ns: int) -> None:
        """A request started so long after it was due."""
        self.late += delay_ns > LATE_NS
        self.max_ns = max(self.max_ns, delay_ns)
