"""Real time against revisions: one sweep over all invocations and completions.

Purpose: for every operation, the greatest revision that anybody had seen before it began (its *floor*), and the violations that follow from
floors alone.

Rules, with h the revision in an answer's header
- A write that is acknowledged at h, or found in a store at h, began when nobody had seen h yet: floor < h.
- A linearizable read (or a mutation that changed nothing, which went through the log as well) has h >= floor.
- At one member, answers to linearizable requests never go back; that follows, but is told apart, as it means something else to whoever
  has to find the mistake.
- A linearizable read of an older revision that anybody had seen can't fail as a future revision.
- Serializable reads raise floors (what one member applied was committed) and are bound by none.

Every answer counts as a sighting of its header's revision. What happens in the same nanosecond is concurrent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvserver.testing.chaos.model import FIRST_REVISION, History, Operation, Outcome
from kvserver.testing.chaos.violations import Findings, ViolationKind

FUTURE_REVISION: Final = "required revision is a future revision"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A revision and the operation whose answer showed it; None at the very beginning."""

    revision: int
    seen_by: Operation | None


_NOTHING: Final = Sighting(FIRST_REVISION, None)


def is_linearizable(operation: Operation) -> bool:
    """Whether real time binds the answer."""
    return not operation.request.serializable


def check_order(history: History, findings: Findings) -> dict[int, Sighting]:
    """Judge all answers by their floors; returns the floor of every operation by its id."""
    floors: dict[int, Sighting] = {}
    of_member: dict[int, Sighting] = {}
    highest = _NOTHING
    highest_of: dict[str, Sighting] = {}
    for _, is_completion, operation in _events(history):
        if not is_completion:
            floors[operation.id] = highest
            of_member[operation.id] = highest_of.get(operation.member, _NOTHING)
            continue
        answer = operation.answer
        if answer is None:
            _check_failure(operation, floors[operation.id], findings)
            continue
        _check_answer(operation, floors[operation.id], of_member.pop(operation.id), findings)
        if answer.revision > highest.revision:
            highest = Sighting(answer.revision, operation)
        if is_linearizable(operation) and answer.revision > highest_of.get(operation.member, _NOTHING).revision:
            highest_of[operation.member] = Sighting(answer.revision, operation)
    return floors


def check_write_floor(operation: Operation, revision: int, floor: Sighting, findings: Findings) -> None:
    """A change at `revision` is this operation's: nobody may have seen that revision before it began."""
    if revision > floor.revision or floor.seen_by is None:
        return
    earlier = floor.seen_by
    if earlier.answer is not None and earlier.answer.claims_change:
        findings.add(
            ViolationKind.REVISION_ORDER,
            revision,
            f"{operation} wrote revision {revision}, but began after {earlier} had been acknowledged at revision {floor.revision}",
        )
    else:
        findings.add(
            ViolationKind.READ_FROM_FUTURE,
            floor.revision,
            f"{earlier} showed revision {floor.revision} before {operation}, which wrote revision {revision}, had begun",
        )


def _events(history: History) -> list[tuple[int, bool, Operation]]:
    """In order of time; of equal times invocations first, so that they count as concurrent."""
    events = []
    for operation in history.operations:
        events.append((operation.invoked_ns, False, operation))
        if operation.outcome is not Outcome.UNKNOWN and operation.completed_ns is not None:
            events.append((operation.completed_ns, True, operation))
    events.sort(key=lambda event: event[:2])
    return events


def _check_failure(operation: Operation, floor: Sighting, findings: Findings) -> None:
    asked = operation.request.read_revision
    if is_linearizable(operation) and 0 < asked <= floor.revision and FUTURE_REVISION in operation.error:
        findings.add(
            ViolationKind.STALE_READ,
            asked,
            f"{operation} was told that revision {asked} is in the future, but {floor.seen_by} had seen revision {floor.revision} before",
        )


def _check_answer(operation: Operation, floor: Sighting, of_member: Sighting, findings: Findings) -> None:
    answer = operation.answer
    assert answer is not None
    if answer.claims_change:
        check_write_floor(operation, answer.revision, floor, findings)
    elif is_linearizable(operation) and answer.revision < of_member.revision:
        findings.add(
            ViolationKind.HEADER_WENT_BACK,
            answer.revision,
            f"{operation} answered revision {answer.revision}, but the same member had answered {of_member.revision} before it began "
            f"({of_member.seen_by})",
        )
    elif is_linearizable(operation) and answer.revision < floor.revision:
        findings.add(
            ViolationKind.STALE_READ,
            answer.revision,
            f"{operation} answered revision {answer.revision}, but revision {floor.revision} had been seen before it began "
            f"({floor.seen_by})",
        )
