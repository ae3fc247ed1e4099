"""Which waiting proposals go to raft together: a pure decision.

Rules: in order; a configuration change goes alone; a batch is taken or dropped as a whole, so that its size is bounded by count and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final, Protocol

from raft.confchange import ConfChange
from raft.types import Term

MAX_PROPOSAL_BATCH: Final = 256
MAX_PROPOSAL_BATCH_BYTES: Final = 1 << 20


class WaitingProposal(Protocol):
    """A proposal on its way to raft: an entry's data or a configuration change."""

    @property
    def content(self) -> bytes | ConfChange: ...
    @property
    def is_wanted(self) -> bool:
        """Somebody still waits for it; otherwise it is dropped before raft sees it."""
        ...

    def taken(self, term: Term) -> None:
        """Raft has it, under this term: from here on it may be applied."""
        ...


def next_batch(waiting: Sequence[WaitingProposal], position: int) -> ConfChange | list[bytes]:
    """What to propose next of `waiting[position:]`, which isn't empty; at least one, whatever its size."""
    batch: list[bytes] = []
    size_bytes = 0
    for proposal in islice(waiting, position, position + MAX_PROPOSAL_BATCH):
        content = proposal.content
        if isinstance(content, ConfChange):
            return batch or content
        if batch and size_bytes + len(content) > MAX_PROPOSAL_BATCH_BYTES:
            break
        batch.append(content)
        size_bytes += len(content)
    return batch
