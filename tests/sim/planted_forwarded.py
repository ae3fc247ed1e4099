"""Known mistakes with forwarded writes, planted one at a time as in planted.py: what the simulator must find."""

from __future__ import annotations

from typing import Final

from kvserver.node.forwarded import Forwarded
from kvserver.testing.sim.workload import Workload
from raft.messages import Message
from tests.sim.planted import Patch, Planted

TWICE = ("applied at most once", "state machine safety", "refused writes")


def _handed_back_and_kept(patch: Patch) -> None:
    """A leader that steps down tells the senders, and proposes all the same when it leads again."""

    def careless(self: Forwarded) -> None:
        for message, *_ in self._waiting:
            self._senders.hand_back(message)

    patch.setattr(Forwarded, "hand_back_all", careless)


def _handed_back_and_passed_on(patch: Patch) -> None:
    """A follower passes it on to the leader, and hands it back as well."""
    original = Forwarded.take

    def careless(self: Forwarded, message: Message) -> None:
        original(self, message)
        if not self._raw.is_leader and self._raw.leader_id:
            self._senders.hand_back(message)

    patch.setattr(Forwarded, "take", careless)


def _refused_and_kept(patch: Patch) -> None:
    """The sender is told that there was no room, and it waits nevertheless."""
    original = Forwarded.take

    def careless(self: Forwarded, message: Message) -> None:
        limit, self._max_bytes = self._max_bytes, 1 << 62
        if self._waiting and self._held_bytes + sum(len(entry.data) for entry in message.entries) > limit:
            self._senders.refuse(message)
        original(self, message)
        self._max_bytes = limit

    patch.setattr(Forwarded, "take", careless)


def _proposed_and_kept(patch: Patch) -> None:
    """What raft took stays in front once more."""
    original = Forwarded._drop_first
    kept: list[Message] = []

    def careless(self: Forwarded) -> Message:
        first = message, size_bytes, _ = self._waiting[0]
        original(self)
        if not any(each is message for each in kept):
            kept.append(message)
            self._waiting.appendleft(first)
            self._held_bytes += size_bytes
        return message

    patch.setattr(Forwarded, "_drop_first", careless)


def _proposed_again_although_it_may_be_in_raft(patch: Patch) -> None:
    """A member that hears nothing of a forwarded write for a while proposes it again."""
    original = Workload.write

    def careless(self: Workload, member: object) -> int:
        operation: int = original(self, member)  # type: ignore[arg-type]
        data = operation.to_bytes(8, "big") + b"\0"
        self._kernel.after(3_000_000, self._propose_again, operation, data)
        return operation

    patch.setattr(Workload, "write", careless)


PLANTED_FORWARDED: Final = (
    Planted("what is handed back stays with who led", _handed_back_and_kept, TWICE, 40),
    Planted("what is passed on is handed back as well", _handed_back_and_passed_on, TWICE, 40),
    Planted("what is refused waits all the same", _refused_and_kept, TWICE, 80),
    Planted("what raft took stays in front", _proposed_and_kept, TWICE, 40),
    Planted("what may be in raft is proposed again", _proposed_again_although_it_may_be_in_raft, TWICE, 40),
)
