"""Known mistakes in the rule of the log window, planted one at a time in the real code: the model of window_model.py finds each.

Every row replaces a function through pytest's `monkeypatch` and says as the breach of which promise it must show; a name that is gone fails
loudly. Mistakes of the driver (what it calls safe, the floors it hears) stand in test_driver.py, those that need a cluster to
show in tests/sim/planted.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from kvserver.node import compaction, peers, window_keeper
from kvserver.node.compaction import Role, WindowLimits, decide
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES, LogWindow
from kvserver.node.peers import PeerBook
from raft.raw_node import RawNode
from raft.types import Index
from tests.kvserver.node.window_model import LIMITS, BrokenPromiseError, Model, random_steps
from tests.kvserver.node.window_plants import term_not_kept

Patch = pytest.MonkeyPatch
SEEDS: Final = 150


@dataclass(frozen=True, slots=True)
class Planted:
    """One mistake, and the promises of which it must break one."""

    name: str
    plant: Callable[[Patch], None]
    promises: tuple[str, ...]


def _deciding(change: Callable[[Any, Any, WindowLimits], tuple[Any, Any, WindowLimits]]) -> Callable[[Patch], None]:
    """The keeper asks `decide` something else: `change` of claims, situation and limits."""

    def plant(patch: Patch) -> None:
        def mistaken(window: Any, claims: Any, situation: Any, limits: WindowLimits) -> Any:
            return decide(window, *change(list(claims), situation, limits))

        patch.setattr(window_keeper, "decide", mistaken)

    return plant


def _claiming(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """The book makes other claims."""
    return _deciding(lambda claims, situation, limits: ([change(claim) for claim in claims], situation, limits))


def _without(owner: Any, name: str) -> Callable[[Patch], None]:
    """A method does nothing."""
    return lambda patch: patch.setattr(owner, name, lambda self, *arguments, **named: None)


def _ignores_learners(patch: Patch) -> None:
    original = PeerBook.claims
    patch.setattr(PeerBook, "claims", lambda self, progress, self_id: original(self, [each for each in progress if not each[2]], self_id))


def _ignores_outgoing_voters(patch: Patch) -> None:
    original = RawNode.progress

    def half(self: Any) -> Any:
        config = self._state.tracker.config
        return [each for each in original(self) if each[0] in config.voters.incoming | config.learners]

    patch.setattr(RawNode, "progress", half)


def _removed_peer_counts(patch: Patch) -> None:
    """As it stood when the peer was last a member."""
    original = RawNode.progress
    seen: dict[tuple[Any, Any], Any] = {}

    def remembering(self: Any) -> Any:
        found = original(self)
        seen.update({(self._state.tracker, each[0]): each for each in found})
        return [each for (tracker, _), each in seen.items() if tracker is self._state.tracker]

    patch.setattr(RawNode, "progress", remembering)
    patch.setattr(PeerBook, "forget", lambda self, peer: self.unpin(peer))


def _floor_moves_back(patch: Patch) -> None:
    original = LogWindow.append

    def accepting(self: LogWindow, entries: Any) -> None:
        if entries and entries[0].index < self.first_index():
            self.reset(Index(entries[0].index - 1), entries[0].term)
        original(self, entries)

    patch.setattr(LogWindow, "append", accepting)


def _every_pin_expires_with_one(patch: Patch) -> None:
    original = PeerBook.expire

    def sweeping(self: PeerBook, now_s: float, **named: Any) -> None:
        before = self.pins_expired
        original(self, now_s, **named)
        if self.pins_expired > before:
            self.unpin_all()

    patch.setattr(PeerBook, "expire", sweeping)


def _overhead_not_counted(patch: Patch) -> None:
    original = LogWindow._push

    def light(self: LogWindow, entry: Any) -> None:
        original(self, entry)
        self._end_offset -= ENTRY_OVERHEAD_BYTES

    patch.setattr(LogWindow, "_push", light)


def _payload_not_counted(patch: Patch) -> None:
    original = LogWindow._push

    def light(self: LogWindow, entry: Any) -> None:
        original(self, replace(entry, data=b""))

    patch.setattr(LogWindow, "_push", light)


def _cap_is_one_too_high(patch: Patch) -> None:
    original = LogWindow.cap_index
    patch.setattr(LogWindow, "cap_index", lambda self, entries, size: Index(min(original(self, entries, size) + 1, int(self.last_index()))))


def _slack_ignored(patch: Patch) -> None:
    patch.setattr(compaction, "SLACK_ENTRIES", 1)
    patch.setattr(compaction, "SLACK_BYTES", 1)


def _nothing_is_enough(patch: Patch) -> None:
    patch.setattr(compaction, "SLACK_ENTRIES", 10_000)
    patch.setattr(compaction, "SLACK_BYTES", 1 << 40)


def _huge(limits: WindowLimits) -> WindowLimits:
    return replace(limits, max_entries=1 << 40, max_bytes=1 << 40)


def _early(situation: Any) -> Any:
    return replace(situation, leader_floor=situation.safe_index) if situation.role is Role.FOLLOWER else situation


ACTIVE, WAITED, BUDGET = "an active peer is served", "a peer not heard from is waited for", "a silent voter has a budget"
PINS, HOLDS, NOBODY = "pins begin and end", "a pin holds", "nothing is held for nobody"

PLANTED: Final = (
    Planted("ignores learners", _ignores_learners, (ACTIVE, WAITED, HOLDS)),
    Planted("ignores outgoing voters", _ignores_outgoing_voters, (ACTIVE, WAITED, HOLDS, BUDGET, PINS)),
    Planted("ignores peers", _deciding(lambda claims, situation, limits: ([], situation, limits)), (ACTIVE, WAITED, HOLDS)),
    Planted(
        "trusts an inactive peer",
        _deciding(lambda claims, situation, limits: (claims, situation, replace(limits, grace_s=1e9))),
        (NOBODY,),
    ),
    Planted(
        "no grace at all", _deciding(lambda claims, situation, limits: (claims, situation, replace(limits, grace_s=0.0))), (ACTIVE, WAITED)
    ),
    Planted("forgets the pin", _without(PeerBook, "pin"), (PINS,)),
    Planted("a pin holds nothing", _claiming(lambda claim: replace(claim, pin=None)), (HOLDS,)),
    Planted("a pin never ends", _without(PeerBook, "expire"), (PINS,)),
    Planted("a pin ends with delivery", lambda patch: patch.setattr(peers, "PIN_AFTER_SUCCESS_S", 0.0), (PINS,)),
    Planted("a pin outlives delivery", _without(PeerBook, "unpin_later"), (PINS,)),
    Planted("a pin outlives failure", _without(PeerBook, "unpin"), (PINS,)),
    Planted("a pin outlives leadership", _without(PeerBook, "unpin_all"), (PINS,)),
    Planted("one pin at its limit ends all", _every_pin_expires_with_one, (PINS, HOLDS)),
    Planted(
        "entry cap not enforced",
        _deciding(lambda claims, situation, limits: (claims, situation, _huge(limits))),
        ("the caps are kept", NOBODY),
    ),
    Planted(
        "the cap is one too high", _cap_is_one_too_high, (ACTIVE, WAITED, BUDGET, PINS, HOLDS, "a follower", "the slack is left alone")
    ),
    Planted(
        "a follower drops too early", _deciding(lambda claims, situation, limits: (claims, _early(situation), limits)), ("a follower",)
    ),
    Planted(
        "a follower forgets its leader's floor",
        _deciding(lambda claims, situation, limits: (claims, replace(situation, leader_floor=None), limits)),
        (NOBODY,),
    ),
    Planted("the floor moves back", _floor_moves_back, ("the floor moves forward",)),
    Planted(
        "drops what is not safe",
        _deciding(lambda claims, situation, limits: (claims, replace(situation, safe_index=Index(situation.safe_index + 1)), limits)),
        ("what is safe", "the window ends"),
    ),
    Planted(
        "a new leader drops at once",
        _deciding(lambda claims, situation, limits: (claims, replace(situation, role_since_s=-1e9), limits)),
        (WAITED, ACTIVE, BUDGET),
    ),
    Planted("a silent voter has no budget", lambda patch: patch.setattr(compaction, "DOWN_MEMBER_BUDGET_S", 0.0), (BUDGET,)),
    Planted("a silent voter's budget never ends", lambda patch: patch.setattr(compaction, "DOWN_MEMBER_BUDGET_S", 1e9), (NOBODY,)),
    Planted("a removed peer's match counts", _removed_peer_counts, (NOBODY, PINS)),
    Planted("silent learners have a budget", _claiming(lambda claim: replace(claim, is_voter=True)), (NOBODY,)),
    Planted("the slack is ignored", _slack_ignored, ("the slack is left alone",)),
    Planted("nothing is worth dropping", _nothing_is_enough, (NOBODY,)),
    Planted("the overhead is not counted", _overhead_not_counted, ("bytes are counted", "the slack")),
    Planted("the payload is not counted", _payload_not_counted, ("bytes are counted", "the caps")),
    Planted("the term before the window is not kept", term_not_kept, ("the term before the window",)),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name.replace(" ", "-"))
def test_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    broken = next(filter(None, map(_broken_promise, range(SEEDS))), None)
    assert broken is not None, f"not found within {SEEDS} seeds"
    assert broken.startswith(planted.promises)


def _broken_promise(seed: int) -> str | None:
    try:
        Model(LIMITS[seed % len(LIMITS)]).run(random_steps(seed))
    except BrokenPromiseError as broken:
        return str(broken)
    return None
