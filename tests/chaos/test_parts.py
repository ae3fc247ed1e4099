"""The parts of a run that need no process: the plan, the requests, what an error proves, the figures."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from kvserver.client import CallTimeoutError, ClientError, ConnectError, ServerError
from kvserver.errors import LeaderChangedError, NoLeaderError, NoSpaceError, RequestTimeoutError, StoppedError, TooManyRequestsError
from kvserver.mvcc.check import check_delete, check_put, check_range, check_txn
from kvserver.pb import rpc_pb2 as pb
from kvserver.testing.chaos import FaultKind, Load, summarize
from kvserver.testing.chaos.__main__ import main
from kvserver.testing.chaos.model import Answer, Delete, Fault, Kind, Operation, Outcome, Put, PutResult, Range, Request
from kvserver.testing.chaos.plan import kills_of, make_plan
from kvserver.testing.chaos.summary import quantile
from kvserver.testing.chaos.wire import outcome_of, txn_of
from kvserver.testing.chaos.workload import Workload
from tests.chaos.correct import make_history


@pytest.mark.parametrize("kills", [1, 3, 6, 50, 200])
@pytest.mark.parametrize("members", [1, 3, 5])
def test_plan_kills_at_least_as_often_as_asked_and_everybody_at_the_end(kills: int, members: int) -> None:
    plan = make_plan(Random(kills), kills=kills, members=members)
    total = sum(kills_of(step.kind, members) for step in plan)
    assert kills <= total <= kills + 2 * members
    assert plan[-1].kind is FaultKind.ALL
    assert plan == make_plan(Random(kills), kills=kills, members=members)


def test_a_full_run_meets_every_fault_many_times() -> None:
    dealt = Counter(step.kind for step in make_plan(Random(1), kills=200, members=3))
    assert min(dealt[kind] for kind in FaultKind) >= 5


def test_a_plan_keeps_to_the_kinds_it_is_given() -> None:
    plan = make_plan(Random(1), kills=20, members=3, only=frozenset({FaultKind.LEADER, FaultKind.STOPPED_LEADER}))
    assert {step.kind for step in plan[:-1]} == {FaultKind.LEADER, FaultKind.STOPPED_LEADER}
    with pytest.raises(ValueError, match="kills a member"):
        make_plan(Random(1), kills=20, members=3, only=frozenset({FaultKind.STOPPED_LEADER}))


def test_the_server_accepts_every_request_that_the_workload_makes() -> None:
    """Overlapping changes within a transaction would be refused, and the load would be less than it looks."""
    workload = Workload(Random(5), value_size_bytes=16)
    seen: Counter[Kind] = Counter()
    for number in range(3000):
        request = workload.next_request(number, f"c{number % 5}")
        seen[request.kind] += 1
        if request.kind is Kind.TXN:
            check_txn(txn_of(request), max_txn_ops=128)
        for action in (*request.success, *request.failure):
            match action:
                case Put():
                    check_put(pb.PutRequest(key=action.key, value=action.value))
                case Delete():
                    check_delete(pb.DeleteRangeRequest(key=action.key, range_end=action.end))
                case Range():
                    check_range(pb.RangeRequest(key=action.key, range_end=action.end))
        if request.kind is Kind.PUT:
            workload.note(f"c{number % 5}", request, Answer(revision=number + 2, results=(PutResult(),)))
    assert min(seen[kind] for kind in Kind) > 100


def test_compare_and_set_mostly_meets_the_present() -> None:
    history = make_history(4, operations=1500, unknown_share=0.02)
    guarded = [each for each in history.operations if each.request.compares and each.answer is not None]
    succeeded = sum(each.answer is not None and each.answer.succeeded for each in guarded)
    assert 0.2 * len(guarded) < succeeded < 0.9 * len(guarded)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectError({"a": "connection refused"}), Outcome.FAILED),
        (ServerError(8, TooManyRequestsError.message), Outcome.FAILED),
        (ServerError(14, NoLeaderError.message), Outcome.FAILED),
        (ServerError(8, NoSpaceError.message), Outcome.FAILED),
        (ServerError(14, LeaderChangedError.message), Outcome.UNKNOWN),
        (ServerError(14, RequestTimeoutError.message), Outcome.UNKNOWN),
        (ServerError(14, StoppedError.message), Outcome.UNKNOWN),
        (ServerError(14, "Socket closed"), Outcome.UNKNOWN),
        (CallTimeoutError(), Outcome.UNKNOWN),
    ],
)
def test_only_what_certainly_had_no_effect_counts_as_failed(error: ClientError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def acknowledged(at_ns: int, number: int) -> Operation:
    put = Request(kind=Kind.PUT, success=(Put(key=b"a", value=b"b"),))
    answer = Answer(revision=number + 2, results=(PutResult(),))
    return Operation(
        id=number, client="c", member="kv1", request=put, invoked_ns=at_ns - 1, completed_ns=at_ns, outcome=Outcome.OK, answer=answer
    )


def test_a_fault_s_pause_is_the_longest_time_without_an_acknowledgement_until_the_next_fault() -> None:
    history = make_history(1, operations=0)
    seconds = [1.0, 1.1, 3.1, 3.2, 5.0, 5.1]
    history.operations = [acknowledged(int(at_s * 1e9), number) for number, at_s in enumerate(seconds)]
    history.faults = [
        Fault(kind="leader killed", kills=1, began_ns=int(1.05e9), ended_ns=int(3.15e9)),
        Fault(kind="all killed at once", kills=3, began_ns=int(3.15e9), ended_ns=int(5.05e9)),
    ]
    summary = summarize(history)
    assert {row.kind: round(row.pause_max_s, 3) for row in summary.by_kind} == {"leader killed": 2.0, "all killed at once": 1.8}
    assert summary.kills == summary.total.kills == 4
    assert any("all killed at once" in line for line in summary.lines())


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert quantile(values, 0.5) == 50
    assert quantile(values, 0.99) == 99
    assert quantile(values, 1.0) == 100
    assert quantile([3.0], 0.5) == 3.0
    assert quantile([], 0.5) == 0.0


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--rate", "0"], ["--members", "0"], ["--size", "x"], ["check"], ["--nonsense"]])
def test_wrong_arguments_end_in_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: python -m kvserver.testing.chaos" in capsys.readouterr().err


def test_load_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Load(rate_per_s=1.0, clients=0, value_size_bytes=1)
