"""The explanation of the log window: it adds up, it agrees with the decision, and it names the one who holds."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.compaction import (
    DOWN_MEMBER_BUDGET_S,
    Claim,
    ClaimKind,
    Hold,
    PeerClaim,
    Role,
    Share,
    Situation,
    WindowLimits,
    decide,
    explain,
)
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES, LogWindow
from kvserver.node.peers import PIN_AFTER_SUCCESS_S, PeerBook
from kvserver.node.window_keeper import WindowKeeper
from raft.types import ConfState, Entry, HardState, Index, NodeId, Term

NOW_S = 10_000.0
LIMITS = WindowLimits(max_entries=1000, max_bytes=1 << 30, grace_s=10.0)


def window_of(first: int, last: int, size: int = 1000) -> LogWindow:
    window = LogWindow(
        first_index=Index(first), prev_term=Term(1), hard_state=HardState(), conf_state=ConfState(), durable=lambda: (Index(0), ConfState())
    )
    window.append([Entry(index=Index(i), term=Term(1), data=b"v" * size) for i in range(first, last + 1)])
    return window


def leader(safe: int) -> Situation:
    return Situation(role=Role.LEADER, safe_index=Index(safe), now_s=NOW_S, role_since_s=0.0)


def peer(match: int, *, age_s: float = 0.0, voter: bool = True, pin: int | None = None) -> PeerClaim:
    return PeerClaim(match_index=Index(match), is_voter=voter, last_contact_s=NOW_S - age_s, pin=None if pin is None else Index(pin))


def test_the_slowest_active_peer_holds_what_it_has_not_got() -> None:
    found = explain(window_of(1, 500), [peer(480), peer(300)], leader(490), LIMITS)
    per_entry = 1000 + ENTRY_OVERHEAD_BYTES
    assert (found.slack, found.held, found.unsafe) == (Share(300, 300 * per_entry), Share(190, 190 * per_entry), Share(10, 10 * per_entry))
    assert [hold.share.entries for hold in found.holds] == [10, 190]
    assert [hold.claim.kind for hold in found.holds] == [ClaimKind.ACTIVE] * 2


@pytest.mark.parametrize(
    ("claim", "kind", "held", "ends_in_s"),
    [
        (peer(400, age_s=3.0), ClaimKind.ACTIVE, 100, 7.0),
        (peer(400, age_s=60.0), ClaimKind.DOWN, 100, DOWN_MEMBER_BUDGET_S - 60.0),
        (peer(400, age_s=60.0, voter=False), ClaimKind.SILENT, 0, math.inf),
        (peer(400, age_s=601.0), ClaimKind.SILENT, 0, math.inf),
        (peer(150, age_s=3.0), ClaimKind.BEYOND, 0, math.inf),
        (peer(0, age_s=3.0), ClaimKind.JOINING, 300, 7.0),
        (peer(0, age_s=60.0), ClaimKind.SILENT, 0, math.inf),
        (peer(150, age_s=900.0, pin=350), ClaimKind.SNAPSHOT, 150, math.inf),
    ],
)
def test_every_kind_of_claim_is_named_with_its_end(claim: PeerClaim, kind: ClaimKind, held: int, ends_in_s: float) -> None:
    found = explain(window_of(201, 500), [claim], leader(500), LIMITS)
    (hold,) = found.holds
    assert (hold.claim.kind, hold.share.entries, found.held.entries) == (kind, held, held)
    assert hold.claim.ends_s - NOW_S == pytest.approx(ends_in_s)


def test_a_down_peer_that_needs_more_than_half_a_cap_holds_nothing() -> None:
    found = explain(window_of(1, 700), [peer(100, age_s=60.0)], leader(700), LIMITS)
    assert found.holds[0].claim.kind is ClaimKind.SILENT
    assert (found.held.entries, found.slack.entries) == (0, 700)


def test_the_caps_bound_what_an_active_peer_holds() -> None:
    found = explain(window_of(1, 500), [peer(10)], leader(500), WindowLimits(max_entries=200, max_bytes=1 << 30))
    assert (found.holds[0].share.entries, found.held.entries, found.cap_index) == (200, 200, 300)


def test_a_follower_explains_by_its_leaders_floor_and_grants_nothing() -> None:
    situation = replace(leader(480), role=Role.FOLLOWER, leader_floor=Index(400))
    found = explain(window_of(301, 500), [peer(1)], situation, LIMITS)
    assert found.holds == ()
    assert [part.entries for part in (found.slack, found.held, found.unsafe)] == [100, 80, 20]


PEERS = st.builds(
    peer,
    st.integers(0, 320),
    age_s=st.sampled_from([0.0, 9.0, 11.0, 599.0, 700.0]),
    voter=st.booleans(),
    pin=st.one_of(st.none(), st.integers(0, 320)),
)


@given(
    st.integers(1, 200),
    st.integers(0, 120),
    st.lists(PEERS, max_size=5),
    st.integers(0, 340),
    st.sampled_from([0, 40, 150]),
    st.sampled_from([Role.LEADER, Role.FOLLOWER]),
    st.one_of(st.none(), st.integers(0, 320)),
)
def test_the_parts_add_up_and_agree_with_the_decision(
    first: int, count: int, peers: list[PeerClaim], safe: int, max_entries: int, role: Role, floor: int | None
) -> None:
    window, limits = window_of(first, first + count - 1, 50), replace(LIMITS, max_entries=max_entries)
    situation = replace(leader(safe), role=role, leader_floor=None if floor is None else Index(floor))
    found = explain(window, peers, situation, limits)
    parts = (found.slack, found.held, found.unsafe)
    assert min(min(part) for part in parts) >= 0
    assert (sum(part.entries for part in parts), sum(part.bytes for part in parts)) == (window.entry_count, window.size_bytes)
    decision = decide(window, peers, situation, limits)
    if decision is not None:
        assert (decision.index, decision.reason) == (found.target_index, found.reason)
        if decision.index <= window.last_index():
            assert decision.index == window.first_index() - 1 + found.slack.entries
    if role is Role.LEADER:
        assert found.held == max((hold.share for hold in found.holds), default=Share(0, 0))
        for one, hold in zip(peers, found.holds, strict=True):
            if all(each.pin is None for each in peers):  # a pin doubles the caps, for all
                assert explain(window, [one], situation, limits).held == hold.share, "what a peer holds does not depend on the others"


def test_asking_changes_nothing_and_names_the_peers() -> None:
    window, book = window_of(1, 500), PeerBook()
    for member in (2, 3):
        book.note_contact(NodeId(member), NOW_S)
    book.pin(NodeId(3), Index(450))
    book.unpin_later(NodeId(3), NOW_S - 2 * PIN_AFTER_SUCCESS_S)
    progress = [(NodeId(member), SimpleNamespace(match_index=Index(match)), False) for member, match in ((1, 500), (2, 400), (3, 20))]
    raw: Any = SimpleNamespace(is_leader=True, id=NodeId(1), progress=lambda: progress)
    keeper = WindowKeeper(window, book, LIMITS)
    situation = {"safe_index": Index(500), "now_s": NOW_S, "role_since_s": 0.0, "leader_floor": None}
    report = keeper.explain(raw, **situation)  # type: ignore[arg-type]
    assert {peer: (hold.claim.kind, hold.share.entries) for peer, hold in report.holds.items()} == {
        2: (ClaimKind.ACTIVE, 100),
        3: (ClaimKind.SNAPSHOT, 50),
    }
    assert (book.pins, window.first_index()) == ({3: 450}, 1)
    raw.is_leader = False
    assert keeper.explain(raw, **situation).holds == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("match", "kind"),
    [(200, ClaimKind.ACTIVE), (199, ClaimKind.DISK), (100, ClaimKind.DISK), (99, ClaimKind.BEYOND)],
)
def test_a_peer_that_is_fed_from_the_wal_is_named_and_holds_nothing_of_memory(match: int, kind: ClaimKind) -> None:
    situation = replace(leader(500), log_first=Index(101))
    window = window_of(201, 500)
    found = explain(window, [peer(match)], situation, LIMITS)
    assert found.holds[0].claim.kind is kind
    decision = decide(window, [peer(match)], situation, LIMITS)
    if kind is ClaimKind.ACTIVE:
        assert decision is None
    else:
        assert found.holds[0] == Hold(Claim(kind, None), Share(0, 0))
        assert decision is not None
        assert decision.index == 500, "memory is compacted as if it were not there"
