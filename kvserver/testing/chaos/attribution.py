"""Whose is it? Explaining revisions that nobody was acknowledged.

Purpose: each such revision must be the effect of exactly one operation without an answer, each of which may have happened at most once; of
one that certainly failed it never may be, and of an acknowledged one only the acknowledged revision.

Rules
- Puts name their writer in the value. All changes of a revision must be what that operation does in the state before, branch and order
  included.
- Revisions of deletions alone are collected with all operations that would have done exactly that, and assigned at the end (`matching`).
- Real time holds here, too: nobody may have seen the revision before its writer began.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.testing.chaos.matching import unmatched
from kvserver.testing.chaos.model import Change, Delete, Operation, Outcome, Put, writer_of
from kvserver.testing.chaos.order import Sighting, check_write_floor
from kvserver.testing.chaos.replica import Replica
from kvserver.testing.chaos.show import show_changes
from kvserver.testing.chaos.violations import Findings, ViolationKind


class Attribution:
    """Which operation wrote which revision, as far as is known."""

    def __init__(self, operations: Sequence[Operation], floors: dict[int, Sighting], findings: Findings) -> None:
        self._findings = findings
        self._floors = floors
        self._mutations = {each.id: each for each in operations if each.request.is_mutation}
        self._silent_deletes = [each for each in self._mutations.values() if each.outcome is Outcome.UNKNOWN and _may_only_delete(each)]
        self._revision_of: dict[int, int] = {}
        self._deletions: dict[int, list[int]] = {}
        self._shown: dict[int, str] = {}

    def note_acknowledged(self, operation: Operation, revision: int) -> None:
        """This revision is explained by an answer."""
        self._revision_of.setdefault(operation.id, revision)

    def explain(self, revision: int, changes: tuple[Change, ...], replica: Replica) -> None:
        """Find the writer of a revision that nobody was acknowledged; `replica` is the state before it."""
        writers = {writer_of(change.value) for change in changes if change.value is not None}
        if not writers:
            self._collect_deletion(revision, changes, replica)
        elif len(writers) > 1:
            self._phantom(revision, changes, "its values are those of several operations, or of none")
        else:
            (writer,) = writers
            operation = None if writer is None else self._mutations.get(writer)
            if operation is None:
                self._phantom(revision, changes, "no client wrote that")
            else:
                self._explain_by(operation, revision, changes, replica)

    def finish(self) -> None:
        """Assign the deletions."""
        for revision in unmatched(self._deletions):
            if not self._deletions[revision]:
                why = "nobody asked for that deletion without hearing the answer"
            else:
                why = "every unanswered delete that could have done it did something else already: one was applied twice"
            self._findings.add(ViolationKind.PHANTOM_WRITE, revision, f"revision {revision} holds {self._shown[revision]}: {why}")

    def _explain_by(self, operation: Operation, revision: int, changes: tuple[Change, ...], replica: Replica) -> None:
        if _bare(changes) & _puts_of(operation) != {pair for pair in _bare(changes) if pair[1] is not None}:
            self._phantom(revision, changes, f"{operation} is named, but wrote something else")
            return
        if operation.outcome is Outcome.FAILED:
            shown = show_changes(changes)
            text = f"{operation} failed ({operation.error}), which promises no effect, but revision {revision} holds {shown}"
            self._findings.add(ViolationKind.FAILED_WRITE_APPEARED, revision, text)
            return
        elsewhere = self._revision_of.get(operation.id)
        if elsewhere is None and operation.answer is not None and operation.answer.revision != revision:
            elsewhere = operation.answer.revision
        if elsewhere is not None:
            how = "was acknowledged at" if operation.answer is not None else "(never answered) was applied at"
            text = f"{operation} {how} revision {elsewhere}, but revision {revision} is its doing, too: {show_changes(changes)}"
            self._findings.add(ViolationKind.DUPLICATE_WRITE, revision, text)
            return
        self._revision_of[operation.id] = revision
        check_write_floor(operation, revision, self._floors[operation.id], self._findings)
        executed = replica.execute(operation.request)
        if [(each.key, each.value) for each in executed.changes] != [(each.key, each.value) for each in changes]:
            self._findings.add(
                ViolationKind.CHANGED_WRITE,
                revision,
                f"revision {revision} is the doing of {operation} and holds {show_changes(changes)}; in the state before it that operation "
                f"does {show_changes(executed.changes)}",
            )

    def _collect_deletion(self, revision: int, changes: tuple[Change, ...], replica: Replica) -> None:
        keys = {change.key for change in changes}
        self._shown[revision] = show_changes(changes)
        self._deletions[revision] = [
            operation.id
            for operation in self._silent_deletes
            if self._floors[operation.id].revision < revision
            and _touches(operation, keys)
            and replica.execute(operation.request).changes == changes
        ]

    def _phantom(self, revision: int, changes: tuple[Change, ...], why: str) -> None:
        self._findings.add(ViolationKind.PHANTOM_WRITE, revision, f"revision {revision} holds {show_changes(changes)}: {why}")


def _may_only_delete(operation: Operation) -> bool:
    """Whether a branch exists that deletes and puts nothing."""
    branches = (operation.request.success, operation.request.failure)
    return any(
        any(isinstance(action, Delete) for action in branch) and not any(isinstance(action, Put) for action in branch)
        for branch in branches
    )


def _touches(operation: Operation, keys: set[bytes]) -> bool:
    """Whether it deletes one of the keys in some branch; spares the execution of most."""
    for action in (*operation.request.success, *operation.request.failure):
        if isinstance(action, Delete) and any(key == action.key if not action.end else action.key <= key < action.end for key in keys):
            return True
    return False


def _puts_of(operation: Operation) -> set[tuple[bytes, bytes | None]]:
    actions = (*operation.request.success, *operation.request.failure)
    return {(action.key, action.value) for action in actions if isinstance(action, Put)}


def _bare(changes: tuple[Change, ...]) -> set[tuple[bytes, bytes | None]]:
    return {(change.key, change.value) for change in changes}
