"""One committed entry, applied: commands to the state machine, configuration changes to the core as well.

Rules: strictly in order; whatever the entry is, the store records its index in the same batch as its effect. The proposer's future (if it
is ours) is resolved with the result.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message as PbMessage

from kvserver.apply import Applier
from kvserver.commands import ProposalId
from kvserver.errors import RequestError
from raft.confchange_codec import decode_conf_change
from raft.raw_node import RawNode
from raft.types import Entry, EntryType, Index, Term


class EntryApplier:
    """Applies entries to the store and tells who waits."""

    def __init__(
        self,
        *,
        applier: Applier,
        raw: RawNode,
        resolve: Callable[[ProposalId, PbMessage | RequestError], None],
        note_applied: Callable[[Index, Term], None],
    ) -> None:
        self._applier = applier
        self._raw = raw
        self._resolve = resolve
        self._note_applied = note_applied

    def apply(self, entry: Entry) -> None:
        """Apply the next entry. Raises FatalError when this member can't."""
        if entry.type is EntryType.NORMAL:
            applied = self._applier.apply_entry(entry.index, entry.term, entry.data)
            # First the result, then the news of the term: it fails what was proposed under an older term, and this entry was applied.
            if applied.proposal is not None:
                self._resolve(applied.proposal, applied.result)
            self._note_applied(entry.index, entry.term)
            return
        conf_state = self._raw.apply_conf_change(decode_conf_change(entry.type, entry.data))
        self._applier.apply_conf_state(entry.index, entry.term, conf_state)
        self._note_applied(entry.index, entry.term)
