"""What the checker can find: the kinds of broken promises, and a report that stays readable however many there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

KEPT_PER_KIND: Final = 20
"""Texts kept of each kind; all are counted."""


class ViolationKind(Enum):
    """One promise each; the value is how it stands in the report."""

    LOST_WRITE = "lost write"
    CHANGED_WRITE = "changed write"
    PHANTOM_WRITE = "phantom write"
    DUPLICATE_WRITE = "write applied twice"
    FAILED_WRITE_APPEARED = "failed write appeared"
    REVISION_REUSED = "revision acknowledged twice"
    REVISION_ORDER = "revision against real time"
    READ_FROM_FUTURE = "read from the future"
    STALE_READ = "stale linearizable read"
    HEADER_WENT_BACK = "header revision went back"
    WRONG_READ = "wrong read"
    WRONG_COMPARE = "wrong compare result"
    WRONG_PREVIOUS = "wrong previous key-value"
    WRONG_ANSWER = "wrong answer"
    WRONG_NUMBERS = "wrong create revision or version"
    MEMBER_DIFFERS = "a member's store differs"
    HASH_DIFFERS = "HashKV differs"
    STATE_DIFFERS = "served state differs from the store"
    MEMBER_LIST_DIFFERS = "member lists differ"
    NO_RECOVERY = "no recovery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken promise: what, where (a revision, or 0), and a sentence with all that is known."""

    kind: ViolationKind
    revision: int
    text: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.text}"


@dataclass(slots=True)
class Findings:
    """Violations in the order in which they were found, bounded per kind, and how many there were."""

    kept: list[Violation] = field(default_factory=list)
    counts: Counter[ViolationKind] = field(default_factory=Counter)

    def add(self, kind: ViolationKind, revision: int, text: str) -> None:
        """Note one."""
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT_PER_KIND:
            self.kept.append(Violation(kind=kind, revision=revision, text=text))

    @property
    def kinds(self) -> frozenset[ViolationKind]:
        """Those that were found."""
        return frozenset(self.counts)

    @property
    def total(self) -> int:
        """How many violations there were."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """The report: what is kept, then how many were left out."""
        left_out = [
            f"{kind.value}: {count - KEPT_PER_KIND} more"
            for kind, count in sorted(self.counts.items(), key=lambda each: each[0].value)
            if count > KEPT_PER_KIND
        ]
        return [*map(str, self.kept), *left_out]
