"""The compaction decision: each clause of the rule, and its invariants for any cluster."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.compaction import (
    SLACK_BYTES,
    SLACK_ENTRIES,
    PeerClaim,
    Reason,
    Role,
    Situation,
    WindowLimits,
    decide,
    is_within_slack,
)
from kvserver.node.log_window import LogWindow
from raft.types import ConfState, Entry, HardState, Index, Term

NOW_S = 10_000.0


def window_of(first: int, last: int, size: int = 1000) -> LogWindow:
    window = LogWindow(
        first_index=Index(first), prev_term=Term(1), hard_state=HardState(), conf_state=ConfState(), durable=lambda: (Index(0), ConfState())
    )
    window.append([Entry(index=Index(i), term=Term(1), data=b"v" * size) for i in range(first, last + 1)])
    return window


def leader(safe: int, since_s: float = 0.0) -> Situation:
    return Situation(role=Role.LEADER, safe_index=Index(safe), now_s=NOW_S, role_since_s=since_s)


def follower(safe: int, floor: int | None) -> Situation:
    return Situation(
        role=Role.FOLLOWER, safe_index=Index(safe), now_s=NOW_S, role_since_s=0.0, leader_floor=None if floor is None else Index(floor)
    )


def peer(match: int, *, age_s: float = 0.0, voter: bool = True, pin: int | None = None) -> PeerClaim:
    return PeerClaim(match_index=Index(match), is_voter=voter, last_contact_s=NOW_S - age_s, pin=None if pin is None else Index(pin))


LIMITS = WindowLimits(max_entries=1000, max_bytes=1 << 30, grace_s=10.0)


def target(window: LogWindow, peers: list[PeerClaim], situation: Situation, limits: WindowLimits = LIMITS) -> int | None:
    decision = decide(window, peers, situation, limits)
    return None if decision is None else decision.index


def test_single_node_keeps_nothing_that_is_applied() -> None:
    decision = decide(window_of(1, 500), [], leader(480), LIMITS)
    assert decision is not None
    assert (decision.index, decision.reason) == (480, Reason.SINGLE)


def test_slack_below_both_bounds_is_left_alone() -> None:
    assert target(window_of(1, SLACK_ENTRIES - 1, size=10), [], leader(SLACK_ENTRIES - 1)) is None
    assert target(window_of(1, SLACK_ENTRIES, size=10), [], leader(SLACK_ENTRIES)) == SLACK_ENTRIES


def test_slack_is_also_met_by_bytes() -> None:
    assert target(window_of(1, 2, size=SLACK_BYTES), [], leader(1)) == 1


def test_the_slowest_active_peer_decides() -> None:
    assert target(window_of(1, 500), [peer(450), peer(300)], leader(500)) == 300


def test_a_lagging_active_peer_is_cut_off_at_the_cap() -> None:
    decision = decide(window_of(1, 500), [peer(10)], leader(500), WindowLimits(max_entries=200, max_bytes=1 << 30))
    assert decision is not None
    assert (decision.index, decision.reason) == (300, Reason.CAP)


def test_the_byte_cap_beats_an_active_peer() -> None:
    cut = target(window_of(1, 500, size=10_000), [peer(10)], leader(500), WindowLimits(max_entries=1000, max_bytes=1_000_000))
    assert cut == 500 - 1_000_000 // 10_240


def test_a_silent_voter_holds_at_most_half_a_cap() -> None:
    assert target(window_of(1, 500), [peer(100, age_s=60.0), peer(500)], leader(500)) == 100
    assert target(window_of(1, 900), [peer(100, age_s=60.0), peer(900)], leader(900)) == 900


def test_a_voter_silent_for_ten_minutes_holds_nothing() -> None:
    assert target(window_of(1, 500), [peer(100, age_s=601.0), peer(500)], leader(500)) == 500


def test_a_silent_learner_holds_nothing() -> None:
    assert target(window_of(1, 500), [peer(100, age_s=60.0, voter=False)], leader(500)) == 500


def test_a_peer_below_the_floor_has_no_claim() -> None:
    assert target(window_of(200, 500), [peer(100)], leader(500)) == 500


def test_a_pin_holds_behind_the_snapshot_even_for_a_peer_without_match() -> None:
    assert target(window_of(1, 500), [peer(0, age_s=300.0, pin=250)], leader(500)) == 250


def test_a_pin_doubles_the_cap() -> None:
    limits = WindowLimits(max_entries=100, max_bytes=1 << 30)
    assert target(window_of(1, 500), [peer(0, pin=10)], leader(500), limits) == 300


def test_a_new_leader_holds_everything_for_one_grace_period() -> None:
    unheard = PeerClaim(match_index=Index(0), is_voter=True, last_contact_s=-math.inf)
    assert target(window_of(1, 500), [unheard], leader(500, since_s=NOW_S - 5.0)) is None
    assert target(window_of(1, 500), [unheard], leader(500, since_s=NOW_S - 11.0)) == 500


def test_a_follower_goes_where_its_leader_is() -> None:
    assert target(window_of(1, 500), [], follower(450, 300)) == 300
    assert target(window_of(1, 500), [], follower(200, 300)) == 200


def test_a_follower_that_hears_no_leader_holds_within_the_cap() -> None:
    assert target(window_of(1, 500), [], follower(500, None)) is None
    assert target(window_of(1, 1500), [], follower(1500, None)) == 500


def test_a_zero_window_keeps_nothing_that_is_applied() -> None:
    zero = WindowLimits(max_entries=0, max_bytes=0)
    assert target(window_of(1, 500), [peer(10)], leader(400), zero) == 400


peers_strategy = st.lists(
    st.builds(
        peer,
        st.integers(0, 700),
        age_s=st.sampled_from([0.0, 9.0, 11.0, 599.0, 601.0]),
        voter=st.booleans(),
        pin=st.none() | st.integers(1, 700),
    ),
    max_size=5,
)


@given(
    first=st.integers(1, 300),
    count=st.integers(1, 400),
    safe_back=st.integers(0, 50),
    peers=peers_strategy,
    max_entries=st.integers(0, 500),
    max_bytes=st.integers(0, 600_000),
    since_s=st.sampled_from([0.0, NOW_S - 5.0]),
)
def test_decision_invariants(
    first: int, count: int, safe_back: int, peers: list[PeerClaim], max_entries: int, max_bytes: int, since_s: float
) -> None:
    window = window_of(first, first + count - 1)
    limits = WindowLimits(max_entries=max_entries, max_bytes=max_bytes, grace_s=10.0)
    safe = max(first - 1, first + count - 1 - safe_back)
    decision = decide(window, peers, leader(safe, since_s), limits)
    floor, pinned = first - 1, any(p.pin is not None for p in peers)
    factor = 2 if pinned else 1
    cap = window.cap_index(factor * max_entries, factor * max_bytes)
    reached = floor if decision is None else int(decision.index)
    if is_within_slack(window, Index(safe), limits) and not pinned:
        assert decision is None
    assert floor <= reached <= safe
    assert decision is None or reached > floor
    for p in peers:
        active = NOW_S - max(p.last_contact_s, since_s) <= 10.0
        if p.pin is None and active and p.match_index >= max(floor, cap, 1):
            assert reached <= p.match_index, "an active peer within the cap keeps what it needs"
    if safe >= cap:
        assert window.last_index() - max(reached, floor) <= factor * max_entries or decision is None
        if decision is None:
            assert cap <= floor, "over the cap something always goes"
