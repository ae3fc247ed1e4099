"""The writes that other members forward here, as a leader: they wait in order while raft can't take them.

Purpose: a proposal that raft drops (the uncommitted tail is full, leadership is being transferred) is lost without a word, and its client
would wait for its time-out. So it waits here and is proposed when there is room; what can't wait is told to who sent it, at once.

Rules
- First come, first served; nobody passes a message that waits, however small. The driver lets these and the leader's own writes take turns.
- A message is here, or raft has it, or its sender was told that it is neither: exactly one of the three. So nothing is proposed twice.
- At most `max_bytes` wait (but for one message, which waits however large it is). Beyond that it is refused: its client hears `too many
  requests`, which says that nothing was proposed. Members keep within their share of it (forward_window.py).
- A member that stops leading hands back what waits, and so does one that knows no leader: its sender proposes it again. A follower that
  knows the leader passes it on, as raft does.
- While applying is behind (inflow.py) nothing goes on from here.
- What has waited for as long as its client does is refused: nobody wants it any more, and it has left its sender's share by then.
- What waited is shown to `admit` before it is proposed: a store that has become full since must not grow by it.

Invariants (tests/kvserver/node/test_forwarded.py): the order is kept; `held_bytes` is the sum of what waits; every message is proposed
once, or told of once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from raft.errors import InvalidMessageError, ProposalDroppedError, RaftError
from raft.messages import Message
from raft.types import NO_NODE, NodeId

__all__ = ["Forwarded", "Role", "Senders"]

_MESSAGE_OVERHEAD_BYTES: Final = 512


class Senders(Protocol):
    """Who tells the senders; must not block."""

    def refuse(self, message: Message) -> None:
        """There is no room for it, and it was not proposed."""

    def hand_back(self, message: Message) -> None:
        """Nobody leads here, and it was not proposed."""


class Role(Protocol):
    """What is needed of the core."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...
    def step(self, message: Message) -> None: ...


class Forwarded:
    """Forwarded writes on their way to raft.

    Args:
        max_bytes: refuse beyond this many bytes that wait.
        max_wait_ticks: refuse what has waited for so many.
        on_held: told of each message that has to wait.
        on_invalid: told of each that raft refuses for what it says.

    `admit` answers what raft may see of a message: all, a part, or (None) nothing of it; whoever keeps something from it tells the sender.
    `is_blocked` says that nothing may go on now.
    """

    def __init__(
        self,
        raw: Role,
        *,
        max_bytes: int,
        max_wait_ticks: int,
        senders: Senders,
        on_held: Callable[[], None],
        on_invalid: Callable[[Message, RaftError], None],
    ) -> None:
        self._raw = raw
        self._max_bytes = max_bytes
        self._max_wait_ticks = max_wait_ticks
        self._ticks = 0
        self._senders = senders
        self._on_held = on_held
        self._on_invalid = on_invalid
        self._waiting: deque[tuple[Message, int, int]] = deque()  # with its size, and the tick in which it came
        self._held_bytes = 0
        self._is_first_refused = False
        self.admit: Callable[[Message], Message | None] = lambda message: message
        self.is_blocked: Callable[[], bool] = lambda: False

    @property
    def held_bytes(self) -> int:
        """Bytes of what waits."""
        return self._held_bytes

    @property
    def is_waiting(self) -> bool:
        """Something waits."""
        return bool(self._waiting)

    @property
    def has_next(self) -> bool:
        """Something waits that may go on."""
        return bool(self._waiting) and not self.is_blocked()

    def take(self, message: Message) -> None:
        """A forwarded write has arrived. Raises what raft raises, if it is passed on to another leader."""
        raw = self._raw
        if not raw.is_leader:
            if raw.leader_id == NO_NODE:
                self._senders.hand_back(message)
            else:
                raw.step(message)
            return
        size_bytes = _size_bytes(message)
        if self._waiting and self._held_bytes + size_bytes > self._max_bytes:
            self._senders.refuse(message)
            return
        self._waiting.append((message, size_bytes, self._ticks))
        self._held_bytes += size_bytes

    def propose_next(self) -> bool:
        """Give raft the first that waits; False if raft takes none now. Raises what raft must not raise."""
        message = self.admit(self._waiting[0][0])
        if message is not None:
            try:
                self._raw.step(message)
            except ProposalDroppedError:
                self._keep(message)
                return False
            except InvalidMessageError as error:
                self._on_invalid(message, error)
        self._drop_first()
        return True

    def tick(self) -> None:
        """Time has passed."""
        self._ticks += 1
        while self._waiting and self._ticks - self._waiting[0][2] >= self._max_wait_ticks:
            self._senders.refuse(self._drop_first())

    def hand_back_all(self) -> None:
        """This member leads no more."""
        while self._waiting:
            self._senders.hand_back(self._drop_first())

    def _keep(self, message: Message) -> None:
        """Raft does not take the first; this is what was admitted of it."""
        if not self._is_first_refused:
            self._is_first_refused = True
            self._on_held()
        before, before_bytes, came = self._waiting[0]
        if message is not before:
            size_bytes = _size_bytes(message)
            self._waiting[0] = (message, size_bytes, came)
            self._held_bytes += size_bytes - before_bytes

    def _drop_first(self) -> Message:
        message, size_bytes, _ = self._waiting.popleft()
        self._held_bytes -= size_bytes
        self._is_first_refused = False
        return message


def _size_bytes(message: Message) -> int:
    return _MESSAGE_OVERHEAD_BYTES + sum(len(entry.data) for entry in message.entries)
