"""Planted history bugs: each turns a good history into one that a cluster with a certain mistake would have left.

Rules: a mutation changes as little as the mistake would, picks its target by a generator, and names the kind of violation that must be
found and a part of its text. It works on generated histories and on recorded ones alike; `NoTargetError` says that a history has nothing
to spoil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from kvserver.testing.chaos.model import (
    Delete,
    DeleteResult,
    History,
    Kind,
    Operation,
    Outcome,
    PutResult,
    Range,
    RangeResult,
    Relation,
    writer_of,
)
from kvserver.testing.chaos.violations import ViolationKind
from tests.chaos.correct import replica_at
from tests.chaos.targets import (
    NoTargetError,
    answer_from,
    answer_of,
    answered,
    append_changes,
    changes_at,
    delete_of,
    drop_revision,
    edit_stores,
    floors_of,
    member_floor,
    pick,
    put_change,
    put_of,
    reads,
    replace_revision,
    set_answer,
    store_of,
    writes,
)


@dataclass(frozen=True, slots=True)
class Planted:
    """One mistake."""

    name: str
    kind: ViolationKind
    says: str
    spoil: Callable[[History, Random], None]


def spoiled(planted: Planted, history: History, random: Random) -> History:
    """A copy of the history with the mistake in it; the original stays good."""
    copied = History(
        members=history.members,
        operations=[replace(operation) for operation in history.operations],
        stores={member: list(store) for member, store in history.stores.items()},
        ends=dict(history.ends),
        faults=history.faults,
    )
    planted.spoil(copied, random)
    return copied


# --- the mistakes ------------------------------------------------------------------------------------------------------------------------


def lose_an_acknowledged_write(history: History, random: Random) -> None:
    drop_revision(history, answer_of(pick(random, writes(history))).revision)


def lose_the_last_write(history: History, _: Random) -> None:
    """And with it whatever came behind it."""
    last = max(answer_of(each).revision for each in writes(history))
    edit_stores(history, lambda store: [each for each in store if each.revision < last])


def lose_on_one_member(history: History, random: Random) -> None:
    drop_revision(history, answer_of(pick(random, writes(history))).revision, ["kv2"])


def lack_an_unanswered_write_on_one_member(history: History, random: Random) -> None:
    acknowledged = {answer_of(each).revision for each in writes(history)}
    silent = [each.revision for each in store_of(history) if each.revision not in acknowledged]
    if not silent:
        raise NoTargetError
    drop_revision(history, random.choice(silent), ["kv3"])


def change_a_value(history: History, random: Random) -> None:
    revision = answer_of(pick(random, writes(history, Kind.PUT))).revision
    (change,) = changes_at(history, revision)
    replace_revision(history, revision, (replace(change, value=(change.value or b"")[:-1] + b"!"),))


def change_a_value_on_one_member(history: History, random: Random) -> None:
    revision = answer_of(pick(random, writes(history, Kind.PUT))).revision
    (change,) = changes_at(history, revision)
    replace_revision(history, revision, (replace(change, value=(change.value or b"")[:-1] + b"!"),), ["kv1"])


def half_a_transaction(history: History, random: Random) -> None:
    txn = pick(random, (each for each in writes(history, Kind.TXN) if len(changes_at(history, answer_of(each).revision)) > 1))
    revision = answer_of(txn).revision
    replace_revision(history, revision, changes_at(history, revision)[:-1])


def read_stale(history: History, random: Random) -> None:
    floors = floors_of(history)
    candidates = [each for each in reads(history) if floors[each.id].revision > max(1, member_floor(history, each))]
    read = pick(random, candidates)
    answer_from(history, read, floors[read.id].revision - 1)


def read_before_what_the_member_said(history: History, random: Random) -> None:
    read = pick(random, (each for each in reads(history) if member_floor(history, each) > 2))
    answer_from(history, read, member_floor(history, read) - 1)


def deny_a_known_revision(history: History, random: Random) -> None:
    """A linearizable read of an older revision is told that it is in the future."""
    floors = floors_of(history)
    old = pick(
        random,
        (
            each
            for each in answered(history)
            if not each.request.serializable and 0 < each.request.read_revision <= floors[each.id].revision
        ),
    )
    old.outcome, old.answer, old.error = Outcome.FAILED, None, "etcdserver: mvcc: required revision is a future revision"


def read_the_future(history: History, random: Random) -> None:
    last = store_of(history)[-1].revision
    late = max(each.invoked_ns for each in writes(history))
    read = pick(random, (each for each in reads(history) if (each.completed_ns or late) < late and answer_of(each).revision < last))
    answer_from(history, read, last)


def make_up_a_write(history: History, _: Random) -> None:
    append_changes(history, put_of(b"u/nobody", b"from nowhere"))


def make_up_a_deletion(history: History, random: Random) -> None:
    asked = {
        action.key for each in history.operations for action in (*each.request.success, *each.request.failure) if isinstance(action, Delete)
    }
    live = [kv.key for kv in replica_at(store_of(history), 1 << 62).find(b"u/", b"u0") if kv.key not in asked]
    if not live:
        raise NoTargetError
    append_changes(history, delete_of(random.choice(live)))


def swap_acknowledged_revisions(history: History, random: Random) -> None:
    puts = sorted(writes(history, Kind.PUT), key=lambda each: each.invoked_ns)
    early = random.choice(puts[: len(puts) // 3])
    late = pick(random, (each for each in puts if each.invoked_ns > (early.completed_ns or 0)))
    first, second = answer_of(early).revision, answer_of(late).revision
    set_answer(early, revision=second)
    set_answer(late, revision=first)


def swap_stored_revisions(history: History, random: Random) -> None:
    first, second = (answer_of(each).revision for each in random.sample(writes(history, Kind.PUT), 2))
    at_first, at_second = changes_at(history, first), changes_at(history, second)
    replace_revision(history, first, at_second)
    replace_revision(history, second, at_first)


def reuse_a_revision(history: History, random: Random) -> None:
    first, second = random.sample(writes(history, Kind.PUT), 2)
    set_answer(second, revision=answer_of(first).revision)


def apply_an_acknowledged_write_twice(history: History, random: Random) -> None:
    append_changes(history, put_of(*put_change(pick(random, writes(history, Kind.PUT)))))


def apply_an_unanswered_write_twice(history: History, random: Random) -> None:
    stored = {writer_of(change.value) for revised in store_of(history) for change in revised.changes if change.value is not None}
    silent = (
        each for each in history.operations if each.outcome is Outcome.UNKNOWN and each.request.kind is Kind.PUT and each.id in stored
    )
    append_changes(history, put_of(*put_change(pick(random, silent))))


def apply_a_failed_write(history: History, random: Random) -> None:
    failed = (each for each in history.operations if each.outcome is Outcome.FAILED and each.request.kind is Kind.PUT)
    append_changes(history, put_of(*put_change(pick(random, failed))))


def apply_an_unanswered_write_early(history: History, random: Random) -> None:
    """It is found at a revision that had been acknowledged before it began: revision against real time."""
    floors = floors_of(history)
    acknowledged = {each.id for each in writes(history)}
    seen = [
        (each, floor) for each in history.operations if (floor := floors[each.id]).seen_by is not None and floor.seen_by.id in acknowledged
    ]
    late, floor = random.choice(seen[len(seen) // 2 :])
    victim = pick(random, (each for each in writes(history, Kind.PUT) if answer_of(each).revision < floor.revision))
    victim.outcome, victim.answer, victim.completed_ns, victim.invoked_ns = Outcome.UNKNOWN, None, None, late.invoked_ns


def answer_the_wrong_branch(history: History, random: Random) -> None:
    """A reading transaction is told that its compares hold, with the results of that branch."""
    txn = pick(random, (each for each in answered(history) if not answer_of(each).succeeded and not each.request.is_mutation))
    executed = replica_at(store_of(history), answer_of(txn).revision).execute_branch(txn.request.success, succeeded=True)
    set_answer(txn, succeeded=True, results=executed.results)


def write_in_spite_of_a_compare(history: History, random: Random) -> None:
    """What was asked for is turned into its opposite: so it looks if the server took a false compare for true."""
    txn = pick(random, (each for each in writes(history, Kind.TXN) if each.request.compares and answer_of(each).succeeded))
    first = txn.request.compares[0]
    opposite = {
        Relation.EQUAL: Relation.NOT_EQUAL,
        Relation.NOT_EQUAL: Relation.EQUAL,
        Relation.GREATER: Relation.EQUAL,
        Relation.LESS: Relation.EQUAL,
    }
    changed = replace(first, relation=opposite[first.relation])
    txn.request = replace(txn.request, compares=(changed, *txn.request.compares[1:]))


def ignore_a_compare(history: History, random: Random) -> None:
    """A guarded write that went through is said, by its answer, not to have."""
    txn = pick(random, (each for each in writes(history, Kind.TXN) if each.request.compares and answer_of(each).succeeded))
    set_answer(txn, succeeded=False)


def wrong_version(history: History, random: Random) -> None:
    revision = answer_of(pick(random, writes(history, Kind.PUT))).revision
    (change,) = changes_at(history, revision)
    replace_revision(history, revision, (replace(change, version=change.version + 1),))


def wrong_create_revision(history: History, random: Random) -> None:
    revision = answer_of(pick(random, writes(history, Kind.PUT))).revision
    (change,) = changes_at(history, revision)
    replace_revision(history, revision, (replace(change, create_revision=change.create_revision - 1),))


def wrong_previous(history: History, random: Random) -> None:
    def has_previous(operation: Operation) -> bool:
        result = answer_of(operation).results[0]
        return isinstance(result, PutResult) and result.previous is not None

    put = pick(random, (each for each in writes(history, Kind.PUT) if has_previous(each)))
    (result,) = answer_of(put).results
    assert isinstance(result, PutResult)
    assert result.previous is not None
    set_answer(put, results=(PutResult(previous=replace(result.previous, version=result.previous.version + 1)),))


def no_previous(history: History, random: Random) -> None:
    def has_previous(operation: Operation) -> bool:
        result = answer_of(operation).results[0]
        return isinstance(result, DeleteResult) and bool(result.previous)

    delete = pick(random, (each for each in writes(history, Kind.DELETE) if has_previous(each)))
    (result,) = answer_of(delete).results
    assert isinstance(result, DeleteResult)
    set_answer(delete, results=(replace(result, previous=()),))


def read_a_wrong_value(history: History, random: Random, *, serializable: bool) -> None:
    read = pick(random, (each for each in reads(history, serializable=serializable) if found_in(each)))
    (result,) = answer_of(read).results
    assert isinstance(result, RangeResult)
    first = replace(result.kvs[0], value=b"0/0/")
    set_answer(read, results=(replace(result, kvs=(first, *result.kvs[1:])),))


def found_in(operation: Operation) -> bool:
    result = answer_of(operation).results[0]
    return isinstance(result, RangeResult) and bool(result.kvs)


def read_without_a_key(history: History, random: Random) -> None:
    def spans(operation: Operation) -> bool:
        action = operation.request.success[0]
        return isinstance(action, Range) and bool(action.end) and found_in(operation)

    read = pick(random, (each for each in answered(history) if each.request.kind is Kind.RANGE and spans(each)))
    (result,) = answer_of(read).results
    assert isinstance(result, RangeResult)
    set_answer(read, results=(RangeResult(kvs=result.kvs[1:], count=result.count - 1),))


def delete_without_saying(history: History, random: Random) -> None:
    delete = pick(random, writes(history, Kind.DELETE))
    set_answer(delete, revision=answer_of(delete).revision - 1, results=(DeleteResult(deleted=0),))


def say_deleted_without_deleting(history: History, random: Random) -> None:
    delete = pick(random, writes(history, Kind.DELETE))
    revision = answer_of(delete).revision
    drop_revision(history, revision)


def spoil_end(history: History, **changed: object) -> None:
    history.ends = {**history.ends, "kv3": replace(history.ends["kv3"], **changed)}  # type: ignore[arg-type]


Kinds = ViolationKind

PLANTED = [
    Planted("acknowledged write lost", Kinds.LOST_WRITE, "is missing on kv1, kv2, kv3", lose_an_acknowledged_write),
    Planted("last write lost everywhere", Kinds.LOST_WRITE, "is missing on kv1, kv2, kv3", lose_the_last_write),
    Planted("write lost on one member", Kinds.LOST_WRITE, "is missing on kv2", lose_on_one_member),
    Planted("unanswered write lacks on one member", Kinds.MEMBER_DIFFERS, "kv3 lacks revision", lack_an_unanswered_write_on_one_member),
    Planted("value changed", Kinds.CHANGED_WRITE, "in the place of", change_a_value),
    Planted("value changed on one member", Kinds.CHANGED_WRITE, "kv1 holds", change_a_value_on_one_member),
    Planted("half a transaction applied", Kinds.CHANGED_WRITE, "txn", half_a_transaction),
    Planted("stale linearizable read", Kinds.STALE_READ, "had been seen before it began", read_stale),
    Planted("header revision goes back", Kinds.HEADER_WENT_BACK, "the same member had answered", read_before_what_the_member_said),
    Planted("known revision denied", Kinds.STALE_READ, "is in the future", deny_a_known_revision),
    Planted("read from the future", Kinds.READ_FROM_FUTURE, "had begun", read_the_future),
    Planted("phantom write", Kinds.PHANTOM_WRITE, "no client wrote that", make_up_a_write),
    Planted("phantom deletion", Kinds.PHANTOM_WRITE, "nobody asked for that deletion", make_up_a_deletion),
    Planted("acknowledged revisions swapped", Kinds.REVISION_ORDER, "began after", swap_acknowledged_revisions),
    Planted("stored revisions swapped", Kinds.CHANGED_WRITE, "in the place of", swap_stored_revisions),
    Planted("revision acknowledged twice", Kinds.REVISION_REUSED, "was acknowledged to", reuse_a_revision),
    Planted("acknowledged write applied twice", Kinds.DUPLICATE_WRITE, "is its doing, too", apply_an_acknowledged_write_twice),
    Planted("unanswered write applied twice", Kinds.DUPLICATE_WRITE, "(never answered) was applied", apply_an_unanswered_write_twice),
    Planted("failed write appears", Kinds.FAILED_WRITE_APPEARED, "which promises no effect", apply_a_failed_write),
    Planted("unanswered write applied before it began", Kinds.REVISION_ORDER, "had been acknowledged at", apply_an_unanswered_write_early),
    Planted("compare said to hold", Kinds.WRONG_COMPARE, "was told that its compares hold", answer_the_wrong_branch),
    Planted("written in spite of a compare", Kinds.WRONG_COMPARE, "they do not hold", write_in_spite_of_a_compare),
    Planted("compare said not to hold", Kinds.WRONG_COMPARE, "was told that its compares do not hold", ignore_a_compare),
    Planted("wrong version", Kinds.WRONG_NUMBERS, "they should be", wrong_version),
    Planted("wrong create revision", Kinds.WRONG_NUMBERS, "they should be", wrong_create_revision),
    Planted("wrong previous key-value", Kinds.WRONG_PREVIOUS, "should be", wrong_previous),
    Planted("previous key-values left out", Kinds.WRONG_PREVIOUS, "previous key-values none", no_previous),
    Planted(
        "linearizable read of a wrong value",
        Kinds.WRONG_READ,
        "linearizable read of",
        lambda h, r: read_a_wrong_value(h, r, serializable=False),
    ),
    Planted(
        "serializable read of a wrong value",
        Kinds.WRONG_READ,
        "serializable read of",
        lambda h, r: read_a_wrong_value(h, r, serializable=True),
    ),
    Planted("range without one of its keys", Kinds.WRONG_READ, "gave none", read_without_a_key),
    Planted("deletion denied", Kinds.WRONG_ANSWER, "0 keys deleted, should be", delete_without_saying),
    Planted("deletion said and not done", Kinds.LOST_WRITE, "delete", say_deleted_without_deleting),
    Planted("HashKV differs", Kinds.HASH_DIFFERS, "HashKV is", lambda h, _: spoil_end(h, hash_kv=7)),
    Planted("member lists differ", Kinds.MEMBER_LIST_DIFFERS, "according to", lambda h, _: spoil_end(h, member_list=("1 kv1",))),
    Planted("served state differs", Kinds.STATE_DIFFERS, "kv3 serves", lambda h, _: spoil_end(h, state_digest="00")),
    Planted("member silent at the end", Kinds.NO_RECOVERY, "could not be asked", lambda h, _: setattr(h, "ends", {})),
    Planted(
        "member did not come back", Kinds.NO_RECOVERY, "kv1 ended by itself", lambda h, _: setattr(h, "trouble", ["kv1 ended by itself"])
    ),
]
