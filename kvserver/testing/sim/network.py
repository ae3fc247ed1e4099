"""The network between simulated members: it delays, drops, duplicates, reorders, and can be cut in one direction.

Rules
- A message may be lost, arrive twice, or overtake another (unless the plan orders each link). Forwarded proposals arrive at most once, as
  over the real transport: raft does not tell a duplicate proposal from a new one, so the check "applied at most once" relies on it.
- A message that a cut swallows may be reported to its sender as unreachable, as the transport reports a queue that it had to drop.
- Messages to a member that is down are lost; those that were under way when it restarts do arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvserver.testing.sim.kernel import Kernel
from kvserver.testing.sim.plan import NetworkPlan
from raft.messages import Message, MessageType
from raft.types import Index, NodeId

Link = tuple[NodeId, NodeId]
_UNREACHABLE_REPORTS = 0.3
_NAMES = {kind: "".join(part.capitalize() for part in kind.name.split("_")) for kind in MessageType}


def describe(message: Message) -> str:
    """One message in short: type, term, position, commit, entries."""
    text = f"{message.from_}>{message.to} {_NAMES[message.type]} t{message.term} {message.log_term}/{message.index}"
    if message.commit:
        text += f" c{message.commit}"
    if message.entries:
        text += f" n{len(message.entries)}"
    if message.reject:
        text += f" rejected, hint {message.reject_hint}"
    if message.snapshot is not None:
        metadata = message.snapshot.metadata
        text += f" snapshot {metadata.term}/{metadata.index}"
    return text


class Network:
    """All links. `deliver` gets what arrives, `report_unreachable` (sender, target) what was noticed to be lost."""

    def __init__(
        self,
        kernel: Kernel,
        plan: NetworkPlan,
        deliver: Callable[[Message, Index], None],
        report_unreachable: Callable[[NodeId, NodeId], None],
    ) -> None:
        self._kernel = kernel
        self._plan = plan
        self._deliver = deliver
        self._report_unreachable = report_unreachable
        self._cuts: set[Link] = set()
        self._last_arrival_us: dict[Link, int] = {}
        self._is_healed = False

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        """Nothing gets from `source` to `target`."""
        return (source, target) in self._cuts

    def cut(self, links: Iterable[Link]) -> None:
        """Cut these directions."""
        self._cuts.update(links)

    def mend(self) -> None:
        """Undo all cuts."""
        self._cuts.clear()

    def heal(self) -> None:
        """From now on every message arrives, once and quickly."""
        self._cuts.clear()
        self._is_healed = True

    def send(self, messages: Sequence[Message], floor: Index) -> None:
        """Send messages on their way, each with its sender's log floor."""
        rng, plan = self._kernel.rng, self._plan
        for message in messages:
            link = (message.from_, message.to)
            if link in self._cuts:
                if rng.random() < _UNREACHABLE_REPORTS:
                    self._kernel.after(self._delay_us(), self._report_unreachable, *link)
                continue
            if self._is_healed:
                self._schedule(message, floor, link)
                continue
            if plan.drop and rng.random() < plan.drop:
                continue
            self._schedule(message, floor, link)
            if plan.duplicate and message.type is not MessageType.PROP and rng.random() < plan.duplicate:
                self._schedule(message, floor, link)

    def _schedule(self, message: Message, floor: Index, link: Link) -> None:
        delay_us = self._delay_us()
        if self._plan.is_ordered:
            arrival_us = max(self._kernel.now_us + delay_us, self._last_arrival_us.get(link, 0))
            self._last_arrival_us[link] = arrival_us
            delay_us = arrival_us - self._kernel.now_us
        self._kernel.after(delay_us, self._arrive, message, floor)

    def _delay_us(self) -> int:
        return self._kernel.between(500, 20_000 if self._is_healed else self._plan.max_delay_us)

    def _arrive(self, message: Message, floor: Index) -> None:
        if (message.from_, message.to) not in self._cuts:
            self._deliver(message, floor)
