"""The result of planting mistakes as a table, a summary and a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.raft.mutants.mutant import Mutant
from tests.raft.mutants.rings import SEED_BATCHES, Outcome, Ring

_MAX_EVIDENCE = 90

_PREAMBLE = """# Known mistakes, planted and caught

`make mutants` (`python -m tests.raft.mutants`) plants known raft mistakes into a copy of the core, one at a time, and runs three rings of
tests on each:

- **data files**: etcd-io/raft's data-driven files, byte for byte (how many of them fail). The strictest ring: a changed log line is a
  failure, too;
- **suite**: our own tests in `tests/raft`, without those files, up to the first failure (its name);
- **simulator**: `python -m kvserver.testing.sim`, seeds {first} to {last} (the first seed with a violation). It knows nothing of the core's
  inside and notices only what breaks a promise.

A mistake that gets through all of them is a hole in the tests, and fails the run. Not every mistake is one against safety: those that only
cost time are rarely the simulator's business. Each ring is first shown to pass on the unchanged core. The run itself writes this page:
`python -m tests.raft.mutants --write docs/architecture/raft-mutants.md`.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mistake, and what each ring said."""

    mutant: Mutant
    outcomes: Mapping[str, Outcome]
    took_s: float

    @property
    def caught(self) -> bool:
        """At least one ring noticed."""
        return any(outcome.caught for outcome in self.outcomes.values())

    def describe(self, rings: Sequence[Ring]) -> str:
        """Which rings noticed, in a few words."""
        names = [ring.title for ring in rings if self.outcomes[ring.name].caught]
        return f"caught by {', '.join(names)}" if names else "SURVIVED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run took: by the clock, in processor time, and how many mistakes were tried at a time."""

    took_s: float
    cpu_s: float
    jobs: int


def table(rows: Sequence[Row], rings: Sequence[Ring]) -> str:
    """A Markdown table: one line per mistake, one column per ring."""
    lines = [
        "| mutant | what it does wrong |" + "".join(f" {ring.title} |" for ring in rings) + " |",
        "|---|---|" + "---|" * (len(rings) + 1),
    ]
    for row in rows:
        cells = [f"`{row.mutant.name}`", row.mutant.mistake]
        cells += [_cell(row.outcomes[ring.name]) for ring in rings]
        cells.append("caught" if row.caught else "**SURVIVED**")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(outcome: Outcome) -> str:
    if not outcome.caught:
        return "-"
    text = outcome.evidence.replace("|", "\\|")
    return text if len(text) <= _MAX_EVIDENCE else f"{text[:_MAX_EVIDENCE]}..."


def summary(rows: Sequence[Row], rings: Sequence[Ring], absent: Mapping[str, str], cost: Cost) -> str:
    """How many were caught, by which ring, and in which time."""
    survived = [row.mutant.name for row in rows if not row.caught]
    by_ring = [f"{ring.title}: {sum(row.outcomes[ring.name].caught for row in rows)}" for ring in rings]
    lines = [
        f"{len(rows)} mistakes, {len(rows) - len(survived)} caught ({', '.join(by_ring)}), in {cost.took_s:.0f} s, "
        f"{cost.jobs} at a time ({cost.cpu_s:.0f} s of processor time)."
    ]
    lines += [f"Ring {name} was left out: {reason}." for name, reason in absent.items()]
    if survived:
        lines.append(f"SURVIVED: {', '.join(survived)}")
    return "\n".join(lines)


def document(rows: Sequence[Row], rings: Sequence[Ring], absent: Mapping[str, str], cost: Cost) -> str:
    """The whole report as a Markdown document."""
    preamble = _PREAMBLE.format(first=SEED_BATCHES[0][0], last=SEED_BATCHES[-1][1])
    return preamble + table(rows, rings) + "\n\n" + summary(rows, rings, absent, cost) + "\n"
