"""A model of one member's log window: what the rule promises, worked out from the whole history instead of kept up to date.

Purpose: `Model.run` plays steps (writes, applies, commits of the store, acknowledgements, silence, snapshots, elections, changes of the
members) on the real LogWindow, PeerBook and WindowKeeper, with a real raft tracker, and compares every decision with what the rule grants
each peer. `tests/kvserver/node/test_window_promises.py` lets hypothesis choose the steps; `test_window_planted.py` plants mistakes.

Rules: the model keeps lists of everything that ever happened and walks over them; it shares no arithmetic with the code under test. A
broken promise is a `BrokenPromiseError` whose text begins with the promise's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Final, cast

from kvserver.node.compaction import SLACK_BYTES, SLACK_ENTRIES, WindowLimits
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from kvserver.node.window_keeper import WindowKeeper
from raft.confchange import restore
from raft.raw_node import RawNode
from raft.tracker import Tracker
from raft.types import ConfState, Entry, HardState, Index, NodeId, Term

SELF: Final = NodeId(1)
OVERHEAD_BYTES: Final = 240
PIN_S: Final = 30.0
DOWN_S: Final = 600.0

CONFIGURATIONS: Final = (
    ConfState(voters=(NodeId(1), NodeId(2), NodeId(3))),
    ConfState(voters=(NodeId(1), NodeId(2)), voters_outgoing=(NodeId(1), NodeId(3)), learners=(NodeId(4),)),
    ConfState(voters=(NodeId(1), NodeId(2)), learners=(NodeId(3), NodeId(4))),
    ConfState(voters=(NodeId(1), NodeId(3)), voters_outgoing=(NodeId(1), NodeId(2), NodeId(3)), learners_next=(NodeId(2),)),
    ConfState(voters=(NodeId(1),)),
)
LIMITS: Final = (
    WindowLimits(max_entries=1 << 20, max_bytes=1 << 30),
    WindowLimits(max_entries=300, max_bytes=1 << 30),
    WindowLimits(max_entries=1 << 20, max_bytes=400_000),
    WindowLimits(max_entries=20, max_bytes=20_000),
    WindowLimits(max_entries=150, max_bytes=200_000),
    WindowLimits(max_entries=0, max_bytes=0),
)
SIZES: Final = (0, 100, 1_000, 20_000)
WAITS_S: Final = (0.1, 4.0, 9.0, 11.0, 16.0, 31.0, 200.0, 700.0)
STEPS: Final = (
    *(
        "write",
        "write",
        "write",
        "settle",
        "settle",
        "commit",
        "apply",
        "sync",
        "ack",
        "ack",
        "catch_up",
        "catch_up",
        "hear",
        "hear",
        "wait",
    ),
    *("want_snapshot", "want_snapshot", "copied", "delivered", "failed", "lead", "follow", "floor", "configure", "resend", "silence"),
)

Step = tuple[str, int, int]


class BrokenPromiseError(AssertionError):
    """What happened isn't what the rule says."""


@dataclass(slots=True)
class Stream:
    """A snapshot on its way; `delivered_s` once it has arrived."""

    pin: int
    delivered_s: float | None = None


def random_steps(seed: int, count: int = 150) -> list[Step]:
    """Steps for those who don't search."""
    rng = Random(seed)
    return [(rng.choice(STEPS), rng.randrange(1 << 16), rng.randrange(1 << 16)) for _ in range(count)]


class _Core:
    """A RawNode, as far as the keeper looks at it: the real reading of a real tracker."""

    id = SELF

    def __init__(self, is_leader: bool, tracker: Tracker) -> None:
        self.is_leader = is_leader
        self._state = SimpleNamespace(tracker=tracker)

    def progress(self) -> Any:
        return RawNode.progress(cast("RawNode", self))


class Model:
    """One member, its peers, and the whole past."""

    def __init__(self, limits: WindowLimits) -> None:
        self.limits = limits
        self.now_s = 1_000.0
        self.floor = 0
        self.sizes = [0]  # of every entry there ever was, by index
        self.commit = self.applied = self.durable = 0
        self.match: dict[NodeId, int] = {}
        self.contact_s: dict[NodeId, float] = {}
        self.streams: dict[NodeId, Stream] = {}
        self.expired = 0
        self.is_leader = True
        self.since_s = self.now_s
        self.leader_floor: int | None = None
        self.window = LogWindow(hard_state=HardState(), conf_state=ConfState(), durable=lambda: (Index(self.durable), ConfState()))
        self.book = PeerBook()
        self.keeper = WindowKeeper(self.window, self.book, limits)
        self.tracker = Tracker(256, 1 << 20)
        self.configuration = CONFIGURATIONS[0]
        self._install(CONFIGURATIONS[0])

    def run(self, steps: Iterable[Step]) -> None:
        """Play `steps`, with a turn behind each."""
        for name, one, other in steps:
            getattr(self, f"do_{name}")(one, other)
            self.turn()

    # --- what happens ---------------------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return len(self.sizes) - 1

    @property
    def peers(self) -> list[NodeId]:
        """Everybody but this member: voters of both halves, learners, and voters that will be learners."""
        conf = self.configuration
        return sorted({*conf.voters, *conf.voters_outgoing, *conf.learners, *conf.learners_next} - {SELF})

    def _peer(self, choice: int) -> NodeId | None:
        return self.peers[choice % len(self.peers)] if self.peers else None

    def do_write(self, count: int, size: int) -> None:
        first, count, size_bytes = self.last + 1, 1 + count % 60, SIZES[size % len(SIZES)]
        self.sizes += [size_bytes] * count
        self._append(range(first, first + count))

    def _append(self, indexes: Iterable[int]) -> None:
        self.window.append([Entry(index=Index(index), term=self._term(index), data=b"v" * self.sizes[index]) for index in indexes])

    def _term(self, index: int) -> Term:
        return Term(0) if index == 0 else Term(1 + index // 50)

    def do_resend(self, back: int, _: int) -> None:
        """A leader repeats what this member has compacted."""
        first = max(1, int(self.window.first_index()) - 1 - back % 5)
        if first < self.window.first_index():
            self._append(range(first, self.window.first_index()))

    def do_commit(self, back: int, _: int) -> None:
        self.commit = max(self.commit, self.last - back % 40)

    def do_apply(self, back: int, _: int) -> None:
        self.applied = max(self.applied, self.commit - back % 40)

    def do_sync(self, back: int, _: int) -> None:
        self.durable = max(self.durable, self.applied - back % 40)

    def do_settle(self, _: int, __: int) -> None:
        self.commit = self.applied = self.durable = self.last

    def do_hear(self, choice: int, _: int) -> None:
        peer = self._peer(choice)
        if peer is not None:
            self.contact_s[peer] = self.now_s
            self.book.note_contact(peer, self.now_s)

    def do_ack(self, choice: int, part: int) -> None:
        peer = self._peer(choice)
        if peer is not None and self.is_leader:
            self.do_hear(choice, 0)
            self._set_match(peer, self.match[peer] + (self.last - self.match[peer]) * (part % 101) // 100)

    def do_catch_up(self, left_out: int, _: int) -> None:
        """All peers but one, or all."""
        for choice in range(len(self.peers)):
            if choice != left_out % (len(self.peers) + 1):
                self.do_ack(choice, 100)

    def do_silence(self, choice: int, wait: int) -> None:
        """One peer falls silent, a little behind, for seconds or for longer than anybody waits; the others follow."""
        self.do_catch_up(-1, 0)
        for _ in range(2):
            self.do_write(59, 1)
        self.do_settle(0, 0)
        for _ in range(2):
            self.do_catch_up(choice, 0)
            self.now_s += (11.0, 350.0)[wait % 2]
        self.do_catch_up(choice, 0)

    def _set_match(self, peer: NodeId, index: int) -> None:
        self.match[peer] = index
        self.tracker.progress[peer].match_index = Index(index)

    def do_wait(self, choice: int, _: int) -> None:
        self.now_s += WAITS_S[choice % len(WAITS_S)]

    def do_want_snapshot(self, choice: int, _: int) -> None:
        peer = self._peer(choice)
        if peer is not None and self.is_leader and not self._is_flying(peer):
            self.streams[peer] = Stream(self.durable)
            self.book.pin(peer, Index(self.durable))

    def do_copied(self, choice: int, _: int) -> None:
        """The copy is newer than what was wanted."""
        peer = self._peer(choice)
        if peer is not None and self._is_flying(peer):
            self.streams[peer].pin = self.durable
            self.book.pin(peer, Index(self.durable))

    def do_delivered(self, choice: int, _: int) -> None:
        peer = self._peer(choice)
        if peer is not None and self._is_flying(peer):
            self.streams[peer].delivered_s = self.now_s
            self.book.unpin_later(peer, self.now_s)

    def do_failed(self, choice: int, _: int) -> None:
        peer = self._peer(choice)
        if peer is not None and self._is_flying(peer):
            del self.streams[peer]
            self.book.unpin(peer)

    def _is_flying(self, peer: NodeId) -> bool:
        return peer in self.streams and self.streams[peer].delivered_s is None

    def do_lead(self, _: int, __: int) -> None:
        if not self.is_leader:
            self.is_leader, self.since_s, self.leader_floor = True, self.now_s, None
            for peer in self.peers:
                self._set_match(peer, 0)

    def do_follow(self, rarely: int, _: int) -> None:
        if self.is_leader and rarely % 3 == 0:
            self.is_leader, self.since_s, self.leader_floor = False, self.now_s, None
            self.streams.clear()
            self.book.unpin_all()

    def do_floor(self, back: int, _: int) -> None:
        """The leader says what it holds itself."""
        if not self.is_leader:
            self.leader_floor = max(self.leader_floor or 0, self.last - back % 200)

    def do_configure(self, choice: int, rarely: int) -> None:
        if rarely % 3 == 0:
            self._install(CONFIGURATIONS[choice % len(CONFIGURATIONS)])

    def _install(self, configuration: ConfState) -> None:
        before, self.configuration = self.peers if self.match else [], configuration
        empty = Tracker(256, 1 << 20)
        self.tracker.install(*restore(empty, Index(self.last), configuration))
        for peer in before:
            if peer not in self.peers:
                self.book.forget(peer)
                self.streams.pop(peer, None)
                self.match.pop(peer, None)
                self.contact_s.pop(peer, None)
        for peer in self.peers:
            self._set_match(peer, self.match.get(peer, 0))

    # --- what the rule grants -------------------------------------------------------------------------------------------------------------

    def bytes_in(self, after: int, through: int) -> int:
        """What `(after, through]` weighs."""
        return sum(size + OVERHEAD_BYTES for size in self.sizes[after + 1 : through + 1])

    def fits(self, after: int, *, entries: float, size_bytes: float) -> bool:
        """Whether `(after, last]` is within these bounds."""
        return self.last - after <= entries and self.bytes_in(after, self.last) <= size_bytes

    def live_pins(self) -> dict[NodeId, int]:
        """The pins that should be in force; those that have run out are forgotten, those beyond twice the cap counted."""
        for peer, stream in list(self.streams.items()):
            arrived = stream.delivered_s is not None
            if arrived and (self.match[peer] >= stream.pin or self.now_s >= (stream.delivered_s or 0.0) + PIN_S):
                del self.streams[peer]
            elif not self.fits(stream.pin, entries=2 * self.limits.max_entries, size_bytes=2 * self.limits.max_bytes):
                self.expired += 1
                del self.streams[peer]
        return {peer: stream.pin for peer, stream in self.streams.items()}

    def cap(self, factor: int) -> int:
        """The least index behind which everything fits into the caps."""
        floor = int(self.window.first_index()) - 1
        index, size_bytes = self.last, 0
        while index > floor and self.last - index < factor * self.limits.max_entries:
            size_bytes += self.sizes[index] + OVERHEAD_BYTES
            if size_bytes > factor * self.limits.max_bytes:
                break
            index -= 1
        return index

    def granted(self, peer: NodeId) -> tuple[str, int] | None:
        """(promise, the index above which everything is kept for `peer`); None when it is owed nothing."""
        floor, match = int(self.window.first_index()) - 1, self.match[peer]
        if peer in self.streams:
            return "a pin holds", self.streams[peer].pin
        silent_s = self.now_s - max(self.contact_s.get(peer, -1e9), self.since_s)
        is_active = silent_s <= self.limits.grace_s
        if match == 0:
            return ("a peer not heard from is waited for", floor) if is_active else None
        if match < floor:
            return None
        if is_active:
            return "an active peer is served", match
        conf = self.configuration
        half = self.fits(match, entries=self.limits.max_entries // 2, size_bytes=self.limits.max_bytes // 2)
        if peer in {*conf.voters, *conf.voters_outgoing} and silent_s <= DOWN_S and half:
            return "a silent voter has a budget", match
        return None

    def grants(self) -> list[tuple[str, int]]:
        """Everything that is owed to somebody."""
        if not self.is_leader:
            return [] if self.leader_floor is None else [("a follower keeps what its leader does", self.leader_floor)]
        return [grant for grant in map(self.granted, self.peers) if grant is not None]

    # --- a turn ---------------------------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Have the keeper decide, hold that against the promises, and do it."""
        floor, safe = int(self.window.first_index()) - 1, min(self.applied, self.durable)
        _expect(floor == self.floor, "the floor moves forward", f"from {self.floor} to {floor} without a decision")
        grants, pins = self._expected()
        raw = cast("RawNode", _Core(self.is_leader, self.tracker))
        floor_heard = None if self.leader_floor is None else Index(self.leader_floor)
        decision = self.keeper.decide(raw, safe_index=Index(safe), now_s=self.now_s, role_since_s=self.since_s, leader_floor=floor_heard)
        index = floor if decision is None else int(decision.index)
        _expect(decision is None or index > floor, "the floor moves forward", f"{index}, the floor is {floor}")
        _expect(index <= max(safe, floor), "what is safe", f"{index} is dropped, durably applied is {safe}")
        cap = self.cap(2 if pins else 1)
        for promise, need in grants:
            _expect(index <= max(floor, need, cap), promise, f"{index} is dropped, {need} is needed, the cap reaches to {cap}")
        if not self.is_leader and self.leader_floor is None:
            _expect(index <= max(floor, cap), "a follower without leader holds", f"{index} is dropped, the cap reaches to {cap}")
        self._check_pins(pins)
        self._check_worth(floor, index, cap)
        if decision is not None:
            self.window.compact(decision.index)
        self.floor = index
        self._check_account(index)
        owed = [need for _, need in grants] if self.is_leader or grants else [floor]
        self._check_promptness(index, min(safe, max([min([safe, *owed]), cap])), cap)

    def _expected(self) -> tuple[list[tuple[str, int]], dict[NodeId, int]]:
        pins = self.live_pins() if self.is_leader else {}
        return self.grants(), pins

    def _check_pins(self, pins: dict[NodeId, int]) -> None:
        _expect(self.book.pins == pins, "pins begin and end", f"{self.book.pins} are held, {pins} should be")
        _expect(self.book.pins_expired == self.expired, "pins begin and end", f"{self.book.pins_expired} counted, {self.expired} expired")

    def _check_worth(self, floor: int, index: int, cap: int) -> None:
        """What is dropped is worth it, unless the caps demand it."""
        worth = index - floor >= SLACK_ENTRIES or self.bytes_in(floor, index) >= SLACK_BYTES
        _expect(index == floor or worth or cap > floor, "the slack is left alone", f"only {floor + 1} through {index} is dropped")

    def _check_promptness(self, floor: int, droppable: int, cap: int) -> None:
        """Nothing is held for nobody, but the slack; nothing beyond the caps that is safe to drop."""
        is_slack = droppable - floor < SLACK_ENTRIES and self.bytes_in(floor, droppable) < SLACK_BYTES
        _expect(floor >= droppable or is_slack, "nothing is held for nobody", f"the floor is {floor}, {droppable} could go")
        _expect(floor >= min(cap, droppable), "the caps are kept", f"the floor is {floor}, the cap reaches to {cap}")

    def _check_account(self, floor: int) -> None:
        window = self.window
        _expect(int(window.first_index()) - 1 == floor, "the floor moves forward", f"it is {window.first_index() - 1}, not {floor}")
        _expect(window.last_index() == self.last, "the window ends at the last entry", f"{window.last_index()}, not {self.last}")
        _expect(window.term(Index(floor)) == self._term(floor), "the term before the window", f"of {floor}: {window.term(Index(floor))}")
        held_bytes = self.bytes_in(floor, self.last)
        _expect(window.size_bytes == held_bytes, "bytes are counted", f"{window.size_bytes}, held are {held_bytes}")


def _expect(holds: bool, promise: str, text: str) -> None:
    if not holds:
        raise BrokenPromiseError(f"{promise}: {text}")
