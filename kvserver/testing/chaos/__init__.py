"""Chaos: a cluster of real processes that are killed and stopped under load, and a checker of all that clients heard and members hold.

    python -m kvserver.testing.chaos --kills 200

`check` judges a `History` and knows nothing of how it was made; `run` makes one. docs/chaos.md says how to read the result.
"""

from kvserver.testing.chaos.checker import check
from kvserver.testing.chaos.clients import Load
from kvserver.testing.chaos.files import HistoryError, load
from kvserver.testing.chaos.model import History
from kvserver.testing.chaos.plan import FaultKind
from kvserver.testing.chaos.run import Plan, leftovers, run
from kvserver.testing.chaos.summary import Summary, summarize
from kvserver.testing.chaos.violations import Findings, Violation, ViolationKind

__all__ = [
    "FaultKind",
    "Findings",
    "History",
    "HistoryError",
    "Load",
    "Plan",
    "Summary",
    "Violation",
    "ViolationKind",
    "check",
    "leftovers",
    "load",
    "run",
    "summarize",
]
