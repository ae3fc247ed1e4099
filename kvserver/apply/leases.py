"""What lease commands do to the store, and what is read of its leases.

Rules
- Deterministic: a TTL is what the command says (the proposer has raised it to the minimum), an id is never drawn here.
- A revoke deletes the lease's keys in one revision, in the order of their rows (byte order but among long keys with the same beginning,
  lease/table.py), and then the lease; without keys it takes no revision. Very many keys take many slices (docs/adr/0008); meanwhile the
  lease is there, and those of its keys that are still attached.
- An expiry counts only in an entry of the very term under which its leader proposed it. Forwarded, or proposed again, it may reach another
  leader's log, and that leader has promised the lease its whole TTL: then it is of no effect.

Source: etcd's apply.go and lessor.go.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

from kvserver.errors import LeaderChangedError, LeaseNotFoundError, RequestError
from kvserver.lease import LeaseRows, LeaseTable
from kvserver.mvcc import KEY_OVERHEAD_BYTES, LEASE, LEASE_KEY, Allowance, Mvcc, Snapshot, Writing
from kvserver.pb.internal_pb2 import LeaseExpiry
from kvserver.pb.rpc_pb2 import LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesResponse, LeaseRevokeResponse, ResponseHeader
from kvserver.types import LeaseId, Term

ROWS = LeaseRows(leases=LEASE, keys=LEASE_KEY)


class LeaseKeys(NamedTuple):
    """A lease as of one state: its TTL (None: there is none), its keys in the order of their rows (if wanted), and the state's revision."""

    ttl_s: int | None
    keys: list[bytes]
    revision: int


class LeaseStore(Protocol):
    """What lease commands need of the store."""

    mvcc: Mvcc
    leases: LeaseTable

    def on_lease(self, lease: LeaseId, ttl_s: int | None, /) -> None: ...


def grant(store: LeaseStore, request: LeaseGrantRequest) -> LeaseGrantResponse:
    """Add a lease. Raises LeaseNotFoundError (id 0), LeaseExistsError, LeaseTtlTooLargeError."""
    lease = LeaseId(request.ID)
    store.leases.grant(lease, request.TTL)
    store.on_lease(lease, request.TTL)
    return LeaseGrantResponse(header=_header(store), ID=lease, TTL=request.TTL)


def revoke(store: LeaseStore, lease_id: int, source: bytes) -> Writing:
    """End a lease, and with it its keys, in slices; `source` is the entry's data. Raises LeaseNotFoundError."""
    lease = LeaseId(lease_id)
    if not store.leases.has(lease):
        raise LeaseNotFoundError

    def end(revision: int) -> LeaseRevokeResponse:
        store.leases.remove(lease)
        store.on_lease(lease, None)
        return LeaseRevokeResponse(header=ResponseHeader(revision=revision))

    return store.mvcc.begin_delete_keys(partial(store.leases.keys, lease), source, end)


def expire(store: LeaseStore, expiry: LeaseExpiry, term: Term, source: bytes) -> Writing | RequestError:
    """Revoke a lease whose time is over, if the entry is of the term of the leader that saw it. Raises LeaseNotFoundError."""
    if expiry.term != term:
        return LeaderChangedError()
    return revoke(store, expiry.id, source)


def list_leases(state: Snapshot) -> LeaseLeasesResponse:
    """All leases, ascending by id. Raises RangeTooLargeError."""
    allowance = state.allowance or Allowance()
    response = LeaseLeasesResponse(header=ResponseHeader(revision=state.revision))
    for lease, _ in ROWS.leases(state.reader):
        allowance.touch_key()
        if allowance.charge(KEY_OVERHEAD_BYTES):
            response.leases.add(ID=lease)
    return response


def read_lease(state: Snapshot, lease: LeaseId, *, with_keys: bool) -> LeaseKeys:
    """One lease, and if wanted its keys. Raises RangeTooLargeError."""
    allowance = state.allowance or Allowance()
    ttl_s = ROWS.ttl_s(state.reader, lease)
    found: list[bytes] = []
    for key in ROWS.keys(state.reader, lease) if with_keys else ():
        allowance.touch_key()
        if allowance.charge(KEY_OVERHEAD_BYTES + len(key)):
            found.append(key)
    return LeaseKeys(ttl_s, found, state.revision)


def _header(store: LeaseStore) -> ResponseHeader:
    return ResponseHeader(revision=store.mvcc.current_revision)
