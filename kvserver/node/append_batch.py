"""What one save of the WAL carries: pure decisions over raft's queued MsgStorageAppend, used by the node and by the simulator alike.

Rules
- A batch never joins two messages of which the later one overwrites entries of the earlier: the acknowledgements of the earlier one are
  only true once its own entries were on disk.
- An installed snapshot is a batch of its own.
- A commit index alone is a hint (it is learned anew after a restart): what carries nothing else, and nobody waits for, can wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from raft.messages import Message
from raft.types import EMPTY_HARD_STATE, Entry, HardState


@dataclass(slots=True, kw_only=True)
class AppendBatch:
    """What is saved together; `hard_state` is the one in force once it is."""

    messages: list[Message]
    entries: list[Entry]
    hard_state: HardState

    def must_be_saved_now(self, saved: HardState) -> bool:
        """Whether somebody waits for this, given the hard state that is on disk."""
        return self.must_sync(saved) or any(message.responses for message in self.messages)

    def must_sync(self, saved: HardState) -> bool:
        """Whether the save needs an fdatasync."""
        return bool(self.entries) or self.hard_state.term != saved.term or self.hard_state.vote != saved.vote


def take_batch(queue: deque[Message], known: HardState, max_bytes: int) -> AppendBatch:
    """Take the longest run of queued messages that one save may carry; one that is larger than `max_bytes` goes alone.

    Args:
        known: the hard state in force before them.
    """
    batch = AppendBatch(messages=[], entries=[], hard_state=known)
    size_bytes = 0
    while queue and size_bytes < max_bytes:
        message = queue[0]
        overwrites = bool(message.entries and batch.entries and message.entries[0].index <= batch.entries[-1].index)
        if message.snapshot is not None or overwrites:
            break
        queue.popleft()
        batch.messages.append(message)
        batch.entries.extend(message.entries)
        size_bytes += sum(len(entry.data) for entry in message.entries)
        batch.hard_state = hard_state_after(message, batch.hard_state)
    return batch


def hard_state_after(message: Message, known: HardState) -> HardState:
    """The hard state in force once `message` is saved; raft leaves the fields empty when nothing changed."""
    stated = HardState(term=message.term, vote=message.vote, commit=message.commit)
    return known if stated == EMPTY_HARD_STATE else stated
