"""All members' stores side by side, revision by revision.

Purpose: walks the (possibly very long) change lists of the members in lockstep and yields, for each revision that any of them holds, what
each holds there. Memory: one revision per member.

Rules: a store's revisions must ascend; one that does not is reported and the member's list ends there. A member that could not be asked at
the end (that is a violation of its own) may lag: behind its last revision it is left out, not called lacking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvserver.testing.chaos.model import FIRST_REVISION, Change, History, Revised
from kvserver.testing.chaos.violations import Findings, ViolationKind


@dataclass(frozen=True, slots=True)
class Held:
    """One revision on all members; None where a member doesn't have it."""

    revision: int
    by_member: Mapping[str, tuple[Change, ...] | None]

    def majority(self) -> tuple[Change, ...]:
        """What most members hold of those that hold it at all; of equals the first member's."""
        return Counter(changes for changes in self.by_member.values() if changes is not None).most_common(1)[0][0]

    @property
    def is_uniform(self) -> bool:
        """Every member holds the same."""
        return len(set(self.by_member.values())) == 1


def walk(history: History, findings: Findings) -> Iterator[Held]:
    """Every revision that any member holds, ascending."""
    iterators = {member: _ascending(member, iter(store), findings) for member, store in history.stores.items()}
    heads = {member: next(iterator, None) for member, iterator in iterators.items()}
    while present := [head.revision for head in heads.values() if head is not None]:
        revision = min(present)
        held: dict[str, tuple[Change, ...] | None] = {}
        for member, head in heads.items():
            if head is not None and head.revision == revision:
                held[member] = head.changes
                heads[member] = next(iterators[member], None)
            elif head is not None or member in history.ends:
                held[member] = None
        yield Held(revision, held)


def _ascending(member: str, revisions: Iterator[Revised], findings: Findings) -> Iterator[Revised]:
    last = FIRST_REVISION
    for revised in revisions:
        if revised.revision <= last:
            text = f"the store of {member} holds revision {revised.revision} behind revision {last}"
            findings.add(ViolationKind.MEMBER_DIFFERS, revised.revision, text)
            return
        last = revised.revision
        yield revised
