"""The checker accepts what a correct cluster does, whatever the clients heard of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.testing.chaos import check, summarize
from kvserver.testing.chaos.matching import unmatched
from kvserver.testing.chaos.model import Delete, Kind, Operation, Outcome, Put, Request, value_of, writer_of
from tests.chaos.correct import make_history, replica_at
from tests.chaos.targets import append_changes, delete_of, drop_revision


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    operations=st.integers(0, 250),
    clients=st.integers(1, 12),
    unknown_share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    failed_share=st.sampled_from([0.0, 0.05]),
)
def test_histories_of_a_correct_model_never_raise_a_violation(
    seed: int, operations: int, clients: int, unknown_share: float, failed_share: float
) -> None:
    history = make_history(seed, operations=operations, clients=clients, unknown_share=unknown_share, failed_share=failed_share)
    assert check(history).lines() == []


def test_the_model_produces_everything_that_the_checker_distinguishes() -> None:
    """Otherwise the property above would hold for want of cases."""
    history = make_history(1, operations=1500)
    acknowledged = [each for each in history.operations if each.answer is not None]
    written = {each.answer.revision for each in acknowledged if each.answer is not None and each.answer.claims_change}
    store = next(iter(history.stores.values()))
    silent = [revised for revised in store if revised.revision not in written]
    assert any(all(change.value is None for change in revised.changes) for revised in silent), "no unanswered delete happened"
    assert any(change.value is not None for revised in silent for change in revised.changes), "no unanswered put happened"
    assert any(each.outcome is Outcome.FAILED for each in history.operations)
    txns = [each.answer for each in acknowledged if each.request.kind is Kind.TXN and each.answer is not None]
    assert {answer.succeeded for answer in txns} == {True, False}
    assert any(each.request.serializable for each in acknowledged)
    assert any(each.request.read_revision for each in acknowledged)
    assert any(each.request.is_mutation and each.answer is not None and not each.answer.claims_change for each in acknowledged)
    versions = {change.version for revised in store for change in revised.changes}
    assert {0, 1, 2, 3} <= versions


def test_summary_counts_what_happened() -> None:
    history = make_history(3, operations=300)
    summary = summarize(history)
    mutations = [each for each in history.operations if each.request.is_mutation]
    assert summary.writes_acknowledged + summary.writes_unknown + summary.writes_failed == len(mutations)
    assert summary.writes_unknown == sum(each.outcome is Outcome.UNKNOWN for each in mutations)
    assert summary.duration_s > 0


def largest_matching(candidates: dict[int, list[int]]) -> int:
    """By trying everything."""
    revisions = list(candidates)
    choices = [[None, *candidates[revision]] for revision in revisions]
    best = 0
    for chosen in itertools.product(*choices):
        taken = [each for each in chosen if each is not None]
        if len(taken) == len(set(taken)):
            best = max(best, len(taken))
    return best


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(2, 9), st.lists(st.integers(1, 5), unique=True, max_size=4), max_size=5))
def test_matching_leaves_as_few_revisions_alone_as_possible(candidates: dict[int, list[int]]) -> None:
    assert len(candidates) - len(unmatched(candidates)) == largest_matching(candidates)


def test_deletions_are_assigned_even_where_the_first_fit_is_wrong() -> None:
    """Revision 10 fits both deletes, revision 20 only the one that a hasty choice would have used up."""
    assert unmatched({10: [1, 2], 20: [1]}) == []
    assert unmatched({10: [1], 20: [1]}) == [20]


@given(st.integers(0, 1 << 40), st.integers(0, 9), st.integers(1, 40))
def test_values_name_their_writer_and_nothing_else_does(operation_id: int, number: int, size_bytes: int) -> None:
    value = value_of(operation_id, number, size_bytes)
    assert len(value) >= size_bytes
    assert writer_of(value) == operation_id
    assert writer_of(value + b"x") is None
    assert writer_of(b"x" + value) is None


@pytest.mark.parametrize("completed", [True, False])
def test_a_write_without_an_answer_may_have_happened_or_not(completed: bool) -> None:
    history = make_history(5, operations=30, unknown_share=0.0)
    put = Request(kind=Kind.PUT, success=(Put(key=b"u/x", value=value_of(900, 0, 16)),))
    silent = Operation(id=900, client="c", member="kv1", request=put, invoked_ns=0, completed_ns=7 if completed else None)
    history.operations = [*history.operations, silent]
    assert check(history).lines() == []


def test_a_deletion_that_nobody_asked_for_is_told_from_one_applied_twice() -> None:
    history = make_history(5, operations=60, unknown_share=0.0, failed_share=0.0)
    victim = replica_at(list(history.stores["kv1"]), history.ends["kv1"].revision).find(b"u/", b"u0")[0].key
    append_changes(history, delete_of(victim))
    assert any("nobody asked for that deletion" in line for line in check(history).lines())
    delete = Request(kind=Kind.DELETE, success=(Delete(key=victim),))
    history.operations = [*history.operations, Operation(id=901, client="c", member="kv1", request=delete, invoked_ns=0)]
    assert check(history).lines() == []


def test_a_run_that_ended_in_trouble_is_not_drowned_in_losses() -> None:
    """Members that could not be asked may lag; what they do hold is judged."""
    history = make_history(6, operations=200)
    store = list(history.stores["kv1"])
    history.stores = {"kv1": store, "kv2": store[:-30], "kv3": store[:-20]}
    history.ends = {}
    history.trouble = ["no member leads"]
    silent = {f"{member} could not be asked at the end" for member in history.members}
    assert {violation.text for violation in check(history).kept} == {"no member leads", *silent}
    drop_revision(history, store[3].revision, ["kv2"])
    assert any(f"revision {store[3].revision}" in line for line in check(history).lines())
    history.stores = {}
    assert {violation.text for violation in check(history).kept} == {"no member leads", *silent}
