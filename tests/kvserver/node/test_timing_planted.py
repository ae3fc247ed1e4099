"""Known mistakes in *when* the log window is compacted, planted one at a time in the real driver: a named test of test_compaction_timing.py
finds each.

Every row replaces a function through pytest's `monkeypatch`, names the test that must fail and the promise with which its text begins.
Mistakes in the rule itself stand in test_window_planted.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest

from kvserver.node import compaction, window_keeper
from kvserver.node.driver import Driver
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from kvserver.node.window_keeper import WindowKeeper
from raft.raw_node import RawNode
from raft.types import NO_NODE, Entry, Index
from tests.kvserver.node import test_compaction_timing as timing

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Planted:
    """One mistake, the test that finds it, and how what that says begins."""

    name: str
    plant: Callable[[Patch], None]
    found_by: Callable[[], None]
    promise: str


def _only_when(changed: Callable[[Driver], Any]) -> Callable[[Patch], None]:
    """The window is weighed only when `changed` gives another value than last time."""

    def plant(patch: Patch) -> None:
        original = Driver._compact
        seen: dict[Driver, Any] = {}

        def lazy(self: Driver) -> None:
            state = changed(self)
            if seen.get(self) != state:
                seen[self] = state
                original(self)

        patch.setattr(Driver, "_compact", lazy)

    return plant


def _matches(driver: Driver) -> list[Any]:
    return [(peer, progress.match_index) for peer, progress, _ in driver.raw.progress()] if driver.is_leader else []


def _everything_but_time(driver: Driver) -> Any:
    return driver._safe_index(), _matches(driver), driver.leader_floor, driver.is_leader, dict(driver._peers.pins)


def _ticks_weigh_nothing(patch: Patch) -> None:
    """A tick without work for raft has no turn."""
    original = Driver._schedule_turn

    def picky(self: Driver) -> None:
        if self._raw.has_ready() or self._proposals:
            original(self)

    patch.setattr(Driver, "_schedule_turn", picky)


def _direct_turns_forget(patch: Patch) -> None:
    """As the driver was: what is applied outside of a turn waits for the next tick."""
    patch.setattr(Driver, "_weighed_index", property(lambda self: 1 << 60, lambda self, value: None), raising=False)


def _every_input_weighs(patch: Patch) -> None:
    original = Driver.step

    def eager(self: Driver, message: Any, floor: Index) -> None:
        original(self, message, floor)
        self._compact()

    patch.setattr(Driver, "step", eager)


def _never_within_slack(patch: Patch) -> None:
    patch.setattr(window_keeper, "is_within_slack", lambda window, safe_index, limits: False)


def _slack_of_one(patch: Patch) -> None:
    patch.setattr(compaction, "SLACK_ENTRIES", 1)


def _durability_ignored(patch: Patch) -> None:
    patch.setattr(Driver, "_safe_index", lambda self: min(self._raw.applied_index, self._applied_index))


def _leader_change(change: Callable[[Driver, dict[str, Any]], None]) -> Callable[[Patch], None]:
    """`change` undoes a part of what the driver does when the leader changes, given what was before."""

    def plant(patch: Patch) -> None:
        original = Driver._note_leader

        def forgetful(self: Driver, leader: Any) -> None:
            before = {"floor": self._leader_floor, "since_s": self._role_since_s, "pins": dict(self._peers.pins)}
            original(self, leader)
            change(self, before)

        patch.setattr(Driver, "_note_leader", forgetful)

    return plant


def _keeps_floor(driver: Driver, before: dict[str, Any]) -> None:
    driver._leader_floor = before["floor"]


def _keeps_since(driver: Driver, before: dict[str, Any]) -> None:
    driver._role_since_s = before["since_s"]


def _keeps_pins(driver: Driver, before: dict[str, Any]) -> None:
    driver._peers.pins.update(before["pins"])


def _last_floor_counts(patch: Patch) -> None:
    original = Driver.step

    def trusting(self: Driver, message: Any, floor: Index) -> None:
        original(self, message, floor)
        if message.from_ == self._raw.leader_id != NO_NODE:
            self._leader_floor = floor

    patch.setattr(Driver, "step", trusting)


def _floor_does_not_ride(patch: Patch) -> None:
    original = Driver.step
    patch.setattr(Driver, "step", lambda self, message, floor: original(self, message, Index(0)))


def _follower_waits_for_writes(patch: Patch) -> None:
    _only_when(lambda driver: object() if driver.is_leader else driver._safe_index())(patch)


def _settled_for_good(patch: Patch) -> None:
    """Ticks don't have the window looked at, as long as the store commits nothing."""
    tick = Driver._tick

    def forgetful(self: Driver) -> None:
        settled = self._is_settled
        tick(self)
        self._is_settled = settled

    patch.setattr(Driver, "_tick", forgetful)


def _compaction_failure_swallowed(patch: Patch) -> None:
    original = Driver._compact

    def quiet(self: Driver) -> None:
        with suppress(RuntimeError):
            original(self)

    patch.setattr(Driver, "_compact", quiet)


def _removed_peer_counts(patch: Patch) -> None:
    original = RawNode.progress
    seen: dict[Any, Any] = {}

    def remembering(self: RawNode) -> Any:
        found = original(self)
        seen.update({(self, each[0]): each for each in found})
        return [each for (node, _), each in seen.items() if node is self]

    patch.setattr(RawNode, "progress", remembering)
    patch.setattr(PeerBook, "forget", lambda self, peer: None)


def _no_grace_for_a_new_leader(patch: Patch) -> None:
    original = WindowKeeper.decide
    patch.setattr(WindowKeeper, "decide", lambda self, raw, **given: original(self, raw, **{**given, "role_since_s": -1e9}))


def _follower_drops_early(patch: Patch) -> None:
    original = WindowKeeper._situation

    def early(self: WindowKeeper, is_leader: bool, safe_index: Index, now_s: float, role_since_s: float, floor: Index | None) -> Any:
        return original(self, is_leader, safe_index, now_s, role_since_s, safe_index if not is_leader else floor)

    patch.setattr(WindowKeeper, "_situation", early)


def _what_was_dropped_returns(patch: Patch) -> None:
    """A new leader has the last entry that was dropped put back."""
    note_leader, compact = Driver._note_leader, LogWindow.compact
    past: dict[tuple[LogWindow, int], Entry] = {}

    def remembering(self: LogWindow, index: Index) -> int:
        entries = self.entries(self.first_index(), Index(self.last_index() + 1), 1 << 60)
        past.update({(self, entry.index): entry for entry in entries})
        return compact(self, index)

    def returning(self: Driver, leader: Any) -> None:
        note_leader(self, leader)
        window = self._window
        first = window.first_index()
        if (window, first - 2) in past:
            entries = window.entries(first, Index(window.last_index() + 1), 1 << 60)
            window.reset(Index(first - 2), past[window, first - 2].term)
            window.append([past[window, first - 1], *entries])

    patch.setattr(LogWindow, "compact", remembering)
    patch.setattr(Driver, "_note_leader", returning)


PLANTED: Final = (
    Planted(
        "only after an apply",
        _only_when(lambda driver: driver.applied_index),
        timing.test_an_idle_cluster_frees_its_windows_within_a_second_after_the_last_member_caught_up,
        "idle windows are freed",
    ),
    Planted(
        "a match that moved is not noticed",
        _only_when(lambda driver: (driver._safe_index(), driver.leader_floor)),
        timing.test_the_window_is_compacted_in_the_turn_in_which_a_peer_has_caught_up,
        "a match moved",
    ),
    Planted(
        "a commit of the store is not noticed",
        _only_when(lambda driver: (driver.applied_index, _matches(driver), driver.leader_floor)),
        timing.test_the_window_is_compacted_in_the_turn_in_which_the_store_has_committed,
        "durable moved",
    ),
    Planted(
        "an apply outside of a turn is not noticed",
        _direct_turns_forget,
        timing.test_the_window_is_compacted_in_the_turn_in_which_raft_hears_of_the_apply,
        "applied moved",
    ),
    Planted(
        "only a commit of the store is noticed",
        _only_when(lambda driver: driver._durability.durable_index),
        timing.test_what_was_held_for_a_peer_goes_in_the_turn_in_which_its_removal_is_applied,
        "the configuration changed",
    ),
    Planted(
        "deadlines are forgotten: the grace",
        _only_when(_everything_but_time),
        timing.test_the_grace_of_a_silent_peer_ends_though_nothing_else_happens,
        "a deadline passed: the grace",
    ),
    Planted(
        "deadlines are forgotten: the budget",
        _only_when(_everything_but_time),
        timing.test_the_budget_of_a_silent_voter_ends_though_nothing_else_happens,
        "a deadline passed: the budget",
    ),
    Planted(
        "deadlines are forgotten: the pin",
        _only_when(_everything_but_time),
        timing.test_a_pin_ends_its_time_after_delivery_though_nothing_else_happens,
        "a deadline passed: the pin",
    ),
    Planted(
        "the budget is forgotten",
        lambda patch: patch.setattr(compaction, "DOWN_MEMBER_BUDGET_S", 0.0),
        timing.test_the_budget_of_a_silent_voter_ends_though_nothing_else_happens,
        "a silent voter has a budget",
    ),
    Planted(
        "the budget never ends",
        lambda patch: patch.setattr(compaction, "DOWN_MEMBER_BUDGET_S", 1e9),
        timing.test_the_budget_of_a_silent_voter_ends_though_nothing_else_happens,
        "a deadline passed: the budget",
    ),
    Planted(
        "a failed transfer weighs nothing",
        _ticks_weigh_nothing,
        timing.test_what_a_pin_held_goes_in_the_turn_in_which_its_snapshot_failed,
        "a pin ended",
    ),
    Planted(
        "the pin is forgotten",
        lambda patch: patch.setattr(PeerBook, "pin", lambda self, peer, index: None),
        timing.test_a_pin_ends_its_time_after_delivery_though_nothing_else_happens,
        "a pin holds",
    ),
    Planted(
        "pins never expire",
        lambda patch: patch.setattr(PeerBook, "expire", lambda self, now_s, **_: None),
        timing.test_a_pin_ends_its_time_after_delivery_though_nothing_else_happens,
        "a deadline passed: the pin",
    ),
    Planted(
        "a window that is settled stays so",
        _settled_for_good,
        timing.test_beyond_the_caps_even_less_than_the_slack_goes_with_the_next_tick,
        "a deadline passed: the caps",
    ),
    Planted(
        "pins outlive leadership", _leader_change(_keeps_pins), timing.test_what_a_pin_held_goes_when_leadership_is_lost, "the role changed"
    ),
    Planted(
        "the floor of the leader before counts",
        _leader_change(_keeps_floor),
        timing.test_a_follower_forgets_the_floor_of_the_leader_before,
        "a leader's floor ends with it",
    ),
    Planted(
        "a new leader's time is not noted",
        _leader_change(_keeps_since),
        timing.test_a_new_leader_waits_one_grace_for_those_it_has_not_heard_from_and_then_acts,
        "a new leader waits",
    ),
    Planted(
        "no grace for a new leader",
        _no_grace_for_a_new_leader,
        timing.test_a_new_leader_waits_one_grace_for_those_it_has_not_heard_from_and_then_acts,
        "a new leader waits",
    ),
    Planted(
        "the floor heard last counts", _last_floor_counts, timing.test_a_floor_that_was_overtaken_does_not_count, "floors never move back"
    ),
    Planted(
        "a floor moves back with its leader",
        _what_was_dropped_returns,
        timing.test_floors_never_move_back_while_leaders_change,
        "floors never move",
    ),
    Planted(
        "the floor does not ride",
        _floor_does_not_ride,
        timing.test_a_follower_compacts_when_its_leaders_floor_rises_though_nothing_is_written,
        "the leader's floor rose",
    ),
    Planted(
        "a follower waits for writes",
        _follower_waits_for_writes,
        timing.test_a_follower_compacts_when_its_leaders_floor_rises_though_nothing_is_written,
        "the leader's floor rose",
    ),
    Planted(
        "a follower drops too early",
        _follower_drops_early,
        timing.test_a_follower_compacts_when_its_leaders_floor_rises_though_nothing_is_written,
        "a follower keeps",
    ),
    Planted(
        "a removed peer's match counts",
        _removed_peer_counts,
        timing.test_what_was_held_for_a_peer_goes_in_the_turn_in_which_its_removal_is_applied,
        "the configuration changed",
    ),
    Planted(
        "compacts past what is durable",
        _durability_ignored,
        timing.test_the_window_is_compacted_in_the_turn_in_which_the_store_has_committed,
        "what is safe",
    ),
    Planted("every idle turn asks the rule", _never_within_slack, timing.test_an_idle_member_weighs_nothing, "no busy work"),
    Planted("the slack is ignored", _slack_of_one, timing.test_slow_writes_are_compacted_by_the_slack_and_not_one_by_one, "no busy work"),
    Planted("every input asks the rule", _every_input_weighs, timing.test_many_inputs_of_one_turn_are_weighed_once, "once per turn"),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name.replace(" ", "-"))
def test_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    with pytest.raises(AssertionError) as broken:
        planted.found_by()
    assert str(broken.value).startswith(planted.promise)


@pytest.mark.parametrize("where", ["compact", "first_index"])
def test_finds_a_swallowed_failure(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _compaction_failure_swallowed(monkeypatch)
    with pytest.raises(AssertionError, match="a failing compaction is fatal"):
        timing.test_a_failing_compaction_is_fatal(where, monkeypatch)
