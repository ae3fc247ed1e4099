"""Making an old store a new cluster's: everything that was the old cluster's goes, every key with its revisions stays.

Rules
- An entry that is applied in part (a copy may be taken between two slices) is applied to its end first: it was committed, and the log
  that would go on with it isn't here. The rest is one transaction.
- Replaced: position, configuration, members (the old ones and the removed ids are forgotten). Dropped: alarms, which were raised about
  members that are gone; a quota that is exceeded raises its alarm again with the first write, damage shows when it is checked.
- With `bump`, the current revision moves on by so much and everything up to there is compacted: revisions that the old cluster may have
  handed out after the snapshot are never handed out again, and whoever asks for one is told `compacted` instead of being given other data.

Invariant: the same store and the same arguments give the same rows, so all members of the new cluster have equal hashes.

Source: etcdutl's restore (TrimMembership, bump of the revision).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kvserver.apply import leases, meta
from kvserver.apply.inspection import inspect
from kvserver.apply.meta import Membership, Meta
from kvserver.commands import CommandKind, decode
from kvserver.errors import KvError
from kvserver.lease import LeaseTable
from kvserver.mvcc import LEASE, LEASE_KEY, META, TABLES, Mvcc, Writing
from kvserver.mvcc.compaction import Compactor
from kvserver.mvcc.unfinished import UnfinishedMismatchError
from kvserver.pb.internal_pb2 import LeaseExpiry
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, LeaseRevokeRequest, TxnRequest
from kvserver.storage import Engine
from kvserver.types import ConfState, Index, LeaseId, Revision, Term

MAX_REVISION: Final = 2**62
"""Far beyond what a cluster reaches, and far below where 64 bits end."""


class RevisionTooLargeError(KvError):
    """The bumped revision would leave no room for a cluster's life."""


async def refound(path: Path, membership: Membership, conf_state: ConfState, *, index: Index, term: Term, bump: int = 0) -> Revision:
    """Rewrite the store in the file `path`, which nobody has open, as the state of a new cluster at `index`; durable when this returns.

    Returns the revision that it is at now.

    Raises:
        StoreUnreadableError: it is no intact store.
        RevisionTooLargeError: `bump` is too large; nothing is changed.
        FatalError: writing failed.
    """
    old = inspect(path)
    revision = Revision(old.revision + old.is_unfinished + bump)
    if revision > MAX_REVISION:
        raise RevisionTooLargeError(f"the revision {old.revision} can't be raised by {bump}: {MAX_REVISION} is the highest")
    engine = Engine.open(path, tables=TABLES)
    try:
        if old.is_unfinished:
            await _finish(engine, old)
        if bump:
            Compactor(engine).schedule(revision, revision)
        engine.delete(META, meta.ALARMS_KEY)
        engine.put(META, meta.CONF_STATE_KEY, meta.encode_conf_state(conf_state))
        engine.put(META, meta.MEMBERSHIP_KEY, meta.encode_membership(membership))
        engine.put(META, meta.STATE_KEY, meta.encode_state(index, term, revision))
        engine.end_entry(index)
        await engine.commit()
    finally:
        await engine.close(commit=False)
    return revision


class _Half:
    """A store that an entry is applied to in part. Meets `leases.LeaseStore`."""

    def __init__(self, engine: Engine, old: Meta) -> None:
        self.leases = LeaseTable(engine, leases=LEASE, keys=LEASE_KEY)
        self.mvcc = Mvcc(engine, current_revision=old.revision, on_corrupt=lambda text: None, leases=self.leases)

    def on_lease(self, lease: LeaseId, ttl_s: int | None) -> None:
        """Nobody counts down here."""

    def begin(self) -> Writing:
        """Go on with the entry. Raises UnfinishedMismatchError."""
        data = self.mvcc.unfinished_request
        command = decode(data)
        payload = bytes(command.payload)
        match command.kind:
            case CommandKind.DELETE_RANGE:
                return self.mvcc.begin_delete_range(DeleteRangeRequest.FromString(payload), data)
            case CommandKind.TXN:
                return self.mvcc.begin_txn(TxnRequest.FromString(payload), data)
            case CommandKind.LEASE_REVOKE:
                return leases.revoke(self, LeaseRevokeRequest.FromString(payload).ID, data)
            case CommandKind.LEASE_EXPIRE:
                return leases.revoke(self, LeaseExpiry.FromString(payload).id, data)  # it counted, or it would not have begun
            case _:
                raise UnfinishedMismatchError


async def _finish(engine: Engine, old: Meta) -> None:
    """Apply the rest of the entry that is applied in part."""
    half = _Half(engine, old)
    writing = half.begin()
    while writing.run_slice() is None:
        engine.end_entry(old.index)
        await engine.wait_room()
    engine.put(META, meta.STATE_KEY, meta.encode_state(old.index, old.term, half.mvcc.current_revision))
    engine.end_entry(old.index)
