"""The lessor: a model that remembers every promise, and the corners that a model meets rarely."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvserver.lease import Lessor
from kvserver.lease.lessor import SLACK
from kvserver.types import LeaseId

EXTEND_S = 1.0
IDS = st.integers(min_value=-3, max_value=3).map(LeaseId)
TTLS = st.integers(min_value=2, max_value=9)


class LessorModel(RuleBasedStateMachine):
    """`deadlines` is what clients may rely on: until then no lease is handed out as due."""

    def __init__(self) -> None:
        super().__init__()
        self.lessor = Lessor(extend_s=EXTEND_S)
        self.now_s = 1000.0
        self.deadlines: dict[LeaseId, float] = {}
        self.ttls: dict[LeaseId, int] = {}
        self.taken: set[LeaseId] = set()

    @rule(pause_s=st.sampled_from([0.0, 0.25, 1.0, 3.0, 20.0]))
    def pass_time(self, pause_s: float) -> None:
        self.now_s += pause_s

    @rule(lease=IDS, ttl_s=TTLS)
    def grant(self, lease: LeaseId, ttl_s: int) -> None:
        if lease in self.ttls:
            return  # apply refuses it
        self.lessor.grant(lease, ttl_s, self.now_s)
        self.ttls[lease], self.deadlines[lease] = ttl_s, self.now_s + ttl_s

    @rule(lease=IDS, ttl_s=TTLS)
    def take_up(self, lease: LeaseId, ttl_s: int) -> None:
        self.lessor.take_up(lease, ttl_s, self.now_s)
        if lease not in self.ttls:
            self.ttls[lease], self.deadlines[lease] = ttl_s, self.now_s + ttl_s + EXTEND_S

    @rule(lease=IDS)
    def renew(self, lease: LeaseId) -> None:
        renewed = self.lessor.renew(lease, self.now_s)
        if lease not in self.ttls or lease in self.taken:
            assert renewed is None
            return
        assert renewed == self.ttls[lease]
        self.deadlines[lease] = max(self.deadlines[lease], self.now_s + renewed)

    @rule(lease=IDS)
    def forget(self, lease: LeaseId) -> None:
        self.lessor.forget(lease)
        self.ttls.pop(lease, None)
        self.deadlines.pop(lease, None)
        self.taken.discard(lease)

    @rule(limit=st.integers(min_value=0, max_value=4))
    def take_due(self, limit: int) -> None:
        due = self.lessor.take_due(self.now_s, limit)
        overdue = [lease for lease, deadline_s in self.deadlines.items() if deadline_s <= self.now_s and lease not in self.taken]
        assert len(due) == min(limit, len(overdue))
        assert set(due) <= set(overdue)
        self.taken |= set(due)

    @rule(lease=IDS, pause_s=st.sampled_from([0.0, 1.0]))
    def put_back(self, lease: LeaseId, pause_s: float) -> None:
        self.lessor.put_back(lease, self.now_s + pause_s)
        if lease in self.taken:
            self.taken.discard(lease)
            self.deadlines[lease] = self.now_s + pause_s

    @invariant()
    def remaining_time_is_what_was_promised_and_never_more_than_the_ttl(self) -> None:
        for lease in map(LeaseId, range(-3, 4)):
            remaining_s = self.lessor.remaining_s(lease, self.now_s)
            if lease not in self.ttls:
                assert remaining_s is None
                assert lease not in self.lessor
            else:
                assert remaining_s == min(self.ttls[lease], max(0.0, self.deadlines[lease] - self.now_s))
            assert self.lessor.is_taken(lease) == (lease in self.taken)

    @invariant()
    def heap_is_bounded(self) -> None:
        assert self.lessor.heap_length <= 2 * len(self.ttls) + SLACK + 1
        assert len(self.lessor) == len(self.ttls)


LessorModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLessorAgainstItsModel: Any = LessorModel.TestCase


def test_longest_overdue_lease_is_taken_first() -> None:
    lessor = Lessor()
    for lease, ttl_s in ((1, 5), (2, 3), (3, 4)):
        lessor.grant(LeaseId(lease), ttl_s, 0.0)
    assert lessor.take_due(2.9, 10) == []
    assert lessor.take_due(100.0, 2) == [2, 3]
    assert lessor.take_due(100.0, 2) == [1]


def test_renewing_costs_no_memory() -> None:
    lessor = Lessor()
    lessor.grant(LeaseId(1), 5, 0.0)
    for second in range(10_000):
        assert lessor.renew(LeaseId(1), second / 10) == 5
    assert lessor.heap_length == 1
    assert lessor.take_due(1000.0, 1) == []
    assert lessor.take_due(1005.0, 1) == [1]


def test_leases_that_come_and_go_long_before_their_time_cost_no_memory() -> None:
    lessor = Lessor()
    lessor.grant(LeaseId(-1), 2, 0.0)
    for number in range(10_000):
        lessor.grant(LeaseId(number + 1), 9_000_000_000, 0.0)
        lessor.forget(LeaseId(number + 1))
    assert lessor.heap_length <= SLACK + 3
    assert lessor.take_due(2.0, 10) == [-1]


@given(st.lists(st.tuples(st.integers(1, 50), TTLS), max_size=60))
def test_every_lease_comes_due_once(grants: list[tuple[int, int]]) -> None:
    lessor = Lessor()
    ttls = dict(grants)
    for lease, ttl_s in ttls.items():
        lessor.grant(LeaseId(lease), ttl_s, 0.0)
    seen: list[LeaseId] = []
    for now_s in range(12):
        due = lessor.take_due(float(now_s), 1000)
        assert {ttls[lease] for lease in due} <= {now_s}
        seen += due
    assert sorted(seen) == sorted(ttls)


def test_silence_gives_what_is_overdue_as_much_more_once_until_it_is_renewed() -> None:
    lessor = Lessor()
    for lease, ttl_s in ((1, 10), (2, 2), (3, 10)):
        lessor.grant(LeaseId(lease), ttl_s, 0.0)
    assert lessor.renew(LeaseId(3), 9.0) == 10
    lessor.note_silence(4.0, 12.0)
    assert lessor.take_due(12.0, 10) == []
    assert lessor.take_due(13.9, 10) == []
    assert lessor.take_due(14.0, 10) == [2], "its whole TTL is the most that it gets"
    assert lessor.renew(LeaseId(1), 15.0) == 10
    lessor.note_silence(4.0, 20.0)
    assert lessor.take_due(20.0, 10) == []
    lessor.note_silence(4.0, 26.0)
    assert lessor.take_due(26.0, 10) == [3], "it had more time since it was renewed"
    lessor.note_silence(4.0, 31.0)
    assert lessor.take_due(31.0, 10) == [1]
