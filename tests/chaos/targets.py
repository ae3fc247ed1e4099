"""What planted history bugs need: finding something to spoil in a history, and changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from kvserver.testing.chaos.model import Answer, Change, History, Kind, Operation, Put, Revised
from kvserver.testing.chaos.order import Sighting, check_order
from kvserver.testing.chaos.replica import Replica
from kvserver.testing.chaos.violations import Findings
from tests.chaos.correct import replica_at


class NoTargetError(Exception):
    """The history holds nothing that this mistake could spoil."""


# --- finding targets ---------------------------------------------------------------------------------------------------------------------


def pick(random: Random, found: Iterable[Operation]) -> Operation:
    candidates = list(found)
    if not candidates:
        raise NoTargetError
    return random.choice(candidates)


def answered(history: History) -> list[Operation]:
    return [each for each in history.operations if each.answer is not None]


def answer_of(operation: Operation) -> Answer:
    assert operation.answer is not None
    return operation.answer


def writes(history: History, kind: Kind | None = None) -> list[Operation]:
    return [each for each in answered(history) if answer_of(each).claims_change and kind in (None, each.request.kind)]


def reads(history: History, *, serializable: bool = False) -> list[Operation]:
    return [
        each
        for each in answered(history)
        if each.request.kind is Kind.RANGE and each.request.serializable is serializable and not each.request.read_revision
    ]


def store_of(history: History) -> list[Revised]:
    return list(next(iter(history.stores.values())))


def floors_of(history: History) -> dict[int, Sighting]:
    return check_order(history, Findings())


def member_floor(history: History, operation: Operation) -> int:
    """The greatest revision that the operation's member had answered to linearizable requests before it began."""
    seen = [
        answer_of(each).revision
        for each in answered(history)
        if each.member == operation.member and not each.request.serializable and (each.completed_ns or 0) < operation.invoked_ns
    ]
    return max(seen, default=1)


# --- changing things ---------------------------------------------------------------------------------------------------------------------


def edit_stores(history: History, edit: Callable[[list[Revised]], Sequence[Revised]], members: Sequence[str] = ()) -> None:
    history.stores = {
        member: list(edit(list(store))) if not members or member in members else store for member, store in history.stores.items()
    }


def replace_revision(history: History, revision: int, changes: tuple[Change, ...], members: Sequence[str] = ()) -> None:
    def edit(store: list[Revised]) -> list[Revised]:
        return [Revised(revision, changes) if each.revision == revision else each for each in store]

    edit_stores(history, edit, members)


def drop_revision(history: History, revision: int, members: Sequence[str] = ()) -> None:
    edit_stores(history, lambda store: [each for each in store if each.revision != revision], members)


def changes_at(history: History, revision: int) -> tuple[Change, ...]:
    found = next((each.changes for each in store_of(history) if each.revision == revision), None)
    if found is None:
        raise NoTargetError
    return found


def append_changes(history: History, make: Callable[[Replica], tuple[Change, ...]]) -> None:
    """One more revision on all members, of which the ends know."""
    replica = replica_at(store_of(history), 1 << 62)
    changes = make(replica)
    revision = replica.revision + 1
    edit_stores(history, lambda store: [*store, Revised(revision, changes)])
    replica.apply(revision, changes)
    history.ends = {
        member: replace(end, revision=revision, state_digest=replica.digest(), key_count=len(replica))
        for member, end in history.ends.items()
    }


def put_of(key: bytes, value: bytes) -> Callable[[Replica], tuple[Change, ...]]:
    def make(replica: Replica) -> tuple[Change, ...]:
        bare = Change(key, value)
        create_revision, version = replica.expected_numbers(bare)
        return (Change(key, value, create_revision, version),)

    return make


def delete_of(key: bytes) -> Callable[[Replica], tuple[Change, ...]]:
    return lambda _: (Change(key, None),)


def set_answer(operation: Operation, **changed: object) -> None:
    operation.answer = replace(answer_of(operation), **changed)  # type: ignore[arg-type]


def answer_from(history: History, operation: Operation, revision: int) -> None:
    """Let a read be answered from the state at `revision`."""
    executed = replica_at(store_of(history), revision).execute(operation.request)
    operation.answer = Answer(revision=revision, results=executed.results, succeeded=executed.succeeded)


def put_change(operation: Operation) -> tuple[bytes, bytes]:
    (action,) = operation.request.success
    assert isinstance(action, Put)
    return action.key, action.value
