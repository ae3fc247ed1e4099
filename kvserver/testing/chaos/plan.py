"""What the nemesis will do, from a seed: a shuffled deck of faults, dealt again and again until there are enough kills.

Rules: pure. Every deck holds every kind, so that even moderate runs meet all of them; the last step kills all members at once, so that what
is judged at the end has been through a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final


class FaultKind(Enum):
    """What happens; the value is its name in reports."""

    LEADER = "leader killed"
    FOLLOWER = "follower killed"
    TWO = "two killed at once"
    ALL = "all killed at once"
    CATCH_UP = "killed, and again while catching up"
    AFTER_RESTART = "killed, and again right after its restart"
    STOPPED_LEADER = "leader stopped until another leads"
    STOPPED_THEN_KILLED = "leader stopped, then killed"
    LONE_LEADER = "followers stopped, all killed, followers back first"


_DECK: Final = {
    FaultKind.LEADER: 4,
    FaultKind.FOLLOWER: 2,
    FaultKind.TWO: 2,
    FaultKind.ALL: 2,
    FaultKind.CATCH_UP: 2,
    FaultKind.AFTER_RESTART: 2,
    FaultKind.STOPPED_LEADER: 2,
    FaultKind.STOPPED_THEN_KILLED: 1,
    FaultKind.LONE_LEADER: 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One deed: `hold_s` is how long the fault lasts before it is made good, `aim` picks among equal victims (0 <= aim < 1)."""

    kind: FaultKind
    hold_s: float
    aim: float


def kills_of(kind: FaultKind, members: int) -> int:
    """How many SIGKILLs a step sends."""
    match kind:
        case FaultKind.ALL | FaultKind.LONE_LEADER:
            return members
        case FaultKind.TWO:
            return min(2, members)
        case FaultKind.CATCH_UP | FaultKind.AFTER_RESTART:
            return 2
        case FaultKind.STOPPED_LEADER:
            return 0
        case FaultKind.LEADER | FaultKind.FOLLOWER | FaultKind.STOPPED_THEN_KILLED:
            return 1


def make_plan(random: Random, *, kills: int, members: int, only: frozenset[FaultKind] = frozenset()) -> list[Step]:
    """Steps with at least `kills` SIGKILLs, the last of which kills all; `only`, if not empty, restricts the others to these kinds.

    Raises:
        ValueError: `kills` or `members` is not positive, or `only` holds nothing that kills.
    """
    if kills < 1 or members < 1:
        raise ValueError("kills and members must be positive")
    if only and not any(kills_of(kind, members) for kind in only):
        raise ValueError("none of these kinds of faults kills a member")
    steps: list[Step] = []
    planned = members
    while planned < kills:
        deck = [kind for kind, count in _DECK.items() for _ in range(count) if not only or kind in only]
        random.shuffle(deck)
        for kind in deck:
            if planned >= kills:
                break
            steps.append(Step(kind=kind, hold_s=random.choice((0.0, 0.2, 0.6, 1.2)), aim=random.random()))
            planned += kills_of(kind, members)
    return [*steps, Step(kind=FaultKind.ALL, hold_s=0.2, aim=0.0)]
