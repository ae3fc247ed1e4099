"""One committed entry, applied: commands to the state machine, configuration changes to the core as well.

Rules: strictly in order; whatever the entry is, the store records its index in the same batch as its effect. The proposer's future (if it
is ours) is resolved with the result. A configuration change that the membership refuses, or that raft can't make (removing the last voter),
reaches raft as a change of nobody, on every member alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as PbMessage

from kvserver.apply import Alarms, Applier, MemberChange, Membership, Store, change_members, decode_change
from kvserver.commands import ProposalId
from kvserver.errors import DeterministicError, FatalError, NotEnoughStartedMembersError, RequestError
from kvserver.mvcc import Allowance
from kvserver.pb import internal_pb2
from raft.confchange import ConfChange, ConfChangeV2
from raft.confchange_codec import decode_conf_change
from raft.errors import ConfChangeError
from raft.raw_node import RawNode
from raft.types import NO_NODE, Entry, EntryType, Index, Term


class UnreadableChangeError(FatalError):
    """A configuration change carries a context that isn't a membership change."""

    def __init__(self, index: Index) -> None:
        super().__init__(f"entry {index}: the configuration change can't be read; the log is damaged or written by another program")


class EntryApplier:
    """Applies entries to the store and tells who waits."""

    def __init__(
        self,
        *,
        store: Store,
        raw: RawNode,
        resolve: Callable[[ProposalId, PbMessage | RequestError], None],
        note_applied: Callable[[Index, Term], None],
        on_membership: Callable[[Membership], None],
        on_alarms: Callable[[Alarms], None],
        answer_room: Callable[[ProposalId], Allowance | None],
        note_begun: Callable[[ProposalId], None],
    ) -> None:
        self._note_begun = note_begun
        self._store = store
        self._applier = Applier(store, answer_room)
        self._raw = raw
        self._resolve = resolve
        self._note_applied = note_applied
        self._on_membership = on_membership
        self._on_alarms = on_alarms

    def apply_slice(self, entry: Entry) -> bool:
        """Apply the next entry, or the next slice of it; whether that was all of it. Raises FatalError when this member can't."""
        if entry.type is EntryType.NORMAL:
            alarms = self._store.alarms
            applied = self._applier.apply_slice(entry.index, entry.term, entry.data)
            if applied is None:
                if self._applier.running is not None:
                    self._note_begun(self._applier.running)
                return False
            if self._store.alarms is not alarms:
                self._on_alarms(self._store.alarms)
            # First the result, then the news of the term: it fails what was proposed under an older term, and this entry was applied.
            if applied.proposal is not None:
                self._resolve(applied.proposal, applied.result)
        else:
            self._apply_change(entry)
        self._note_applied(entry.index, entry.term)
        return True

    def _apply_change(self, entry: Entry) -> None:
        change = decode_conf_change(entry.type, entry.data)
        if not change.context:
            # Raft's own: leaving a joint configuration changes no membership.
            self._applier.apply_conf_state(entry.index, entry.term, self._raw.apply_conf_change(change))
            return
        member_change, proposal = _decode(entry.index, change)
        result: PbMessage | RequestError
        membership: Membership | None = None
        try:
            membership = change_members(self._store.membership, member_change)
            conf_state = self._raw.apply_conf_change(change)
            result = internal_pb2.StoredMember(id=member_change.member.id)
        except DeterministicError as error:
            result = error.with_traceback(None)
        except ConfChangeError:
            membership, result = None, NotEnoughStartedMembersError()  # it would remove the last voter: no later entry could be committed
        if membership is None:
            conf_state = self._raw.apply_conf_change(_of_nobody(change))
        self._applier.apply_conf_state(entry.index, entry.term, conf_state, membership)
        if membership is not None:
            self._on_membership(membership)
        self._resolve(proposal, result)


def _decode(index: Index, change: ConfChange | ConfChangeV2) -> tuple[MemberChange, ProposalId]:
    try:
        return decode_change(change.context)
    except (DecodeError, ValueError) as error:
        raise UnreadableChangeError(index) from error


def _of_nobody(change: ConfChange | ConfChangeV2) -> ConfChange | ConfChangeV2:
    """The same change without an effect: raft still has to hear that the entry is applied."""
    if isinstance(change, ConfChange):
        return replace(change, node_id=NO_NODE)
    return replace(change, changes=tuple(replace(single, node_id=NO_NODE) for single in change.changes))
