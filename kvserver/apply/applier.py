"""Applying committed entries: the only way into the store.

Rules
- Deterministic: an entry's result depends on the entries before it and on nothing else; no clock, no chance.
- Each entry ends in one `end_entry`: its index and its term reach the disk in one transaction with its (last) effects.
- An entry that deletes very many keys takes many slices (docs/adr/0008). What is written before the last one may reach the disk earlier; no
  reader sees it, and after a restart the same entry goes on behind it.
- Nobody's answer is built but that of a proposer who waits for it on this member, and within its bound.
- A refusal that every member reaches alike (DeterministicError) is a result like any other; whatever else is raised means that this member
  can't go on without parting from the others: it propagates and stops the node. What an alarm refuses is such a result, too.
- Damage that an entry meets in the store becomes an ApplyMetDamageError, which says where and what to do; the store is not read any more.
- An entry at or below the applied index is never applied again; the caller skips those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, assert_never, cast

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as PbMessage

from kvserver.apply import leases
from kvserver.apply.alarms import change_alarms, refusal, select
from kvserver.apply.errors import ApplyMetDamageError
from kvserver.apply.meta import Membership
from kvserver.apply.store import Store
from kvserver.commands import Command, CommandKind, ProposalId, decode, kinds_version
from kvserver.errors import AppliedAnswerTooLargeError, CorruptError, DeterministicError, FatalError, RequestError, RequestTimeoutError
from kvserver.mvcc import Allowance, Writing
from kvserver.pb.internal_pb2 import LeaseExpiry, MemberAttributes
from kvserver.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    TxnRequest,
)
from kvserver.types import ConfState, Index, NodeId, Term


class UnreadablePayloadError(FatalError):
    """A command's payload is not the message that its kind says."""

    def __init__(self, index: Index, kind: CommandKind) -> None:
        super().__init__(
            f"entry {index}: the payload of {kind.name} can't be parsed: this log is damaged or was written by another program"
        )


class OutOfOrderError(FatalError):
    """An entry was handed over twice or one was left out: a bug, and going on would corrupt the store."""

    def __init__(self, index: Index, applied: Index) -> None:
        super().__init__(f"entry {index} was given to apply after entry {applied}")


class AppliedResult(NamedTuple):
    """Whose command it was (None: raft's own empty entry) and what came of it."""

    proposal: ProposalId | None
    result: PbMessage | RequestError


_NOTHING = MemberAttributes()


class _Running(NamedTuple):
    """An entry that has been begun."""

    writing: Writing
    proposal: ProposalId
    answer: Allowance | None
    is_resumed: bool


def answer_all(proposal: ProposalId) -> Allowance | None:
    """Everybody's answer is wanted, however large."""
    del proposal
    return Allowance()


class Applier:
    """Applies entries to one store, in order.

    Args:
        answer_room: what the answer to a proposal may cost; None if nobody waits for it on this member.
    """

    def __init__(self, store: Store, answer_room: Callable[[ProposalId], Allowance | None] = answer_all) -> None:
        self._store = store
        self._answer_room = answer_room
        self._running: _Running | None = None

    @property
    def running(self) -> ProposalId | None:
        """Whose entry has been begun and has more slices to come."""
        return None if self._running is None else self._running.proposal

    def apply_entry(self, index: Index, term: Term, data: bytes) -> AppliedResult:
        """Apply a normal entry, all of it at once. As `apply_slice`."""
        while True:
            applied = self.apply_slice(index, term, data)
            if applied is not None:
                return applied

    def apply_slice(self, index: Index, term: Term, data: bytes) -> AppliedResult | None:
        """Apply a normal entry, or the next slice of it: None means that there is more, and the next call has to be for the same entry.

        Raises:
            FatalError: unknown or unreadable command, an entry out of order, or the store has failed.
            ApplyMetDamageError: a row that the command reads is damaged; the entry will never be ended, and nothing more be read.
        """
        store = self._store
        if index != store.applied_index + 1:
            raise OutOfOrderError(index, store.applied_index)
        if not data:
            store.mvcc.check_begun(data)
            store.end_entry(index, term)
            return AppliedResult(None, _NOTHING)
        result: PbMessage | RequestError | None
        try:
            if self._running is None:
                proposal, result = self._begin(index, term, data)
            else:
                proposal, result = self._running.proposal, self._run_slice(self._running)
        except CorruptError as error:
            damaged = ApplyMetDamageError.met(store.path, error, index)
            store.poison(damaged)
            raise damaged from error
        except BaseException as error:
            store.poison(error)
            raise
        if result is None:
            store.end_slice()
            return None
        store.end_entry(index, term)
        return AppliedResult(proposal, result)

    def _begin(self, index: Index, term: Term, data: bytes) -> tuple[ProposalId, PbMessage | RequestError | None]:
        """Execute a command, or the first slice of it; whose it is, and the result."""
        command = decode(data)
        mvcc = self._store.mvcc
        is_resumed = mvcc.is_unfinished
        mvcc.check_begun(data)
        answer = None if is_resumed else self._answer_room(command.id)
        try:
            result = self._execute(index, term, command, data, answer)
            if isinstance(result, Writing):
                self._running = _Running(result, command.id, answer, is_resumed)
                return command.id, self._run_slice(self._running)
        except DeterministicError as error:
            self._running = None
            return command.id, error.with_traceback(None)
        return command.id, result

    def _run_slice(self, running: _Running) -> PbMessage | RequestError | None:
        answer = running.writing.run_slice()
        if answer is None:
            return None
        self._running = None
        if running.is_resumed:
            return RequestTimeoutError()  # what it had deleted before is not known any more; hardly anybody can be waiting
        if running.answer is not None and running.answer.is_exceeded:
            return AppliedAnswerTooLargeError()
        return answer

    def apply_conf_state(self, index: Index, term: Term, conf_state: ConfState, membership: Membership | None = None) -> None:
        """Apply a configuration change: record the configuration and, if given, the membership that follows from it."""
        store = self._store
        if index != store.applied_index + 1:
            raise OutOfOrderError(index, store.applied_index)
        store.mvcc.check_begun(b"")
        store.set_conf_state(conf_state)
        if membership is not None:
            store.set_membership(membership)
        store.end_entry(index, term)

    def _execute(
        self, index: Index, term: Term, command: Command, data: bytes, answer: Allowance | None
    ) -> PbMessage | RequestError | Writing:
        """Run the command, or begin to. What an alarm refuses is returned, as a CorruptError that is raised means damage met by the command
        itself."""
        store = self._store
        mvcc = store.mvcc
        payload = cast("bytes", command.payload)  # protobuf reads any buffer, its stubs say bytes
        kind = command.kind
        store.need_kinds(kinds_version(kind))
        try:
            refused = refusal(store.alarms, kind, payload) if store.alarms and not mvcc.is_unfinished else None
            if refused is not None:
                return refused
            match kind:
                case CommandKind.PUT:
                    return mvcc.put(PutRequest.FromString(payload), answers=answer is not None)
                case CommandKind.DELETE_RANGE:
                    return mvcc.begin_delete_range(DeleteRangeRequest.FromString(payload), data, answer)
                case CommandKind.TXN:
                    return mvcc.begin_txn(TxnRequest.FromString(payload), data, answer)
                case CommandKind.COMPACT:
                    response = mvcc.compact(CompactionRequest.FromString(payload))
                    store.start_removal()
                    return response
                case CommandKind.MEMBER_PUBLISH:
                    return self._publish(MemberAttributes.FromString(payload))
                case CommandKind.LEASE_GRANT:
                    return leases.grant(store, LeaseGrantRequest.FromString(payload))
                case CommandKind.LEASE_REVOKE:
                    return leases.revoke(store, LeaseRevokeRequest.FromString(payload).ID, data)
                case CommandKind.LEASE_EXPIRE:
                    return leases.expire(store, LeaseExpiry.FromString(payload), term, data)
                case CommandKind.ALARM:
                    return self._change_alarms(AlarmRequest.FromString(payload))
                case unknown:
                    assert_never(unknown)
        except DecodeError as error:
            raise UnreadablePayloadError(index, kind) from error

    def _change_alarms(self, request: AlarmRequest) -> PbMessage | RequestError:
        """Raise or disarm an alarm; GET doesn't belong into the log, but a member that sends it is answered."""
        store = self._store
        if request.action == AlarmRequest.GET:
            return AlarmResponse(alarms=select(store.alarms, request.alarm))
        alarms, answer = change_alarms(store.alarms, request)
        if alarms != store.alarms:
            store.set_alarms(alarms)
        return answer if isinstance(answer, RequestError) else AlarmResponse(alarms=answer)

    def _publish(self, attributes: MemberAttributes) -> PbMessage:
        """A member tells its name, its client URLs and what it knows; one that is no member (any more) is ignored."""
        store = self._store
        member_id = NodeId(attributes.member_id)
        member = store.members.get(member_id)
        if member is not None:
            updated = replace(
                member, name=attributes.name, client_urls=tuple(attributes.client_urls), kinds_version=attributes.kinds_version
            )
            store.set_membership(replace(store.membership, members={**store.members, member_id: updated}))
        return attributes
