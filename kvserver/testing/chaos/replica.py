"""The reference store: what a correct cluster answers and changes, from one revision to the next.

Purpose: `execute` computes what a request finds and changes in the present state, without changing it; `apply` moves to the next revision.

Rules: independent of kvserver.mvcc on purpose (one can't find the other's mistakes otherwise) and as plain as possible. Compares are
decided against the state before the first operation; operations see what earlier ones of the same transaction wrote. A request that
changes nothing takes no revision.

Source: the client contract (etcd's KV service). Caveat: no leases, limits, sorting or filters; the workload uses none.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from kvserver.testing.chaos.model import (
    FIRST_REVISION,
    Action,
    Change,
    Compare,
    Delete,
    DeleteResult,
    Kv,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Request,
    Result,
    Target,
)

_MISSING = Kv(b"", b"", 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Executed:
    """What a request comes to in some state."""

    succeeded: bool
    results: tuple[Result, ...]
    changes: tuple[Change, ...]


class Replica:
    """Keys as of one revision."""

    __slots__ = ("_keys", "_live", "revision")

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self._live: dict[bytes, Kv] = {}
        self._keys: list[bytes] = []

    def __len__(self) -> int:
        return len(self._live)

    def get(self, key: bytes) -> Kv | None:
        """The key, None if it doesn't exist."""
        return self._live.get(key)

    def find(self, key: bytes, end: bytes) -> list[Kv]:
        """One key (empty `end`), or those in [key, end), in byte order."""
        if not end:
            one = self._live.get(key)
            return [] if one is None else [one]
        return [self._live[each] for each in self._keys[bisect_left(self._keys, key) : bisect_left(self._keys, end)]]

    def execute(self, request: Request) -> Executed:
        """What the request finds and would change; its changes would be those of `revision + 1`."""
        succeeded = all(self._holds(compare) for compare in request.compares)
        return self.execute_branch(request.success if succeeded else request.failure, succeeded=succeeded)

    def execute_branch(self, actions: Iterable[Action], *, succeeded: bool) -> Executed:
        """One branch, whatever the compares say."""
        txn = _Txn(self)
        results = tuple(txn.run(action) for action in actions)
        return Executed(succeeded, results, tuple(txn.changes))

    def expected_numbers(self, change: Change) -> tuple[int, int]:
        """(create_revision, version) that a change of `revision + 1` must have."""
        if change.value is None:
            return 0, 0
        old = self._live.get(change.key)
        return (self.revision + 1, 1) if old is None else (old.create_revision, old.version + 1)

    def apply(self, revision: int, changes: Iterable[Change]) -> None:
        """Move on to `revision`, whose changes these are; their numbers are computed here, not taken over."""
        self.revision = revision
        for change in changes:
            old = self._live.get(change.key)
            if change.value is None:
                if old is not None:
                    del self._live[change.key]
                    del self._keys[bisect_left(self._keys, change.key)]
                continue
            if old is None:
                insort(self._keys, change.key)
                self._live[change.key] = Kv(change.key, change.value, revision, revision, 1)
            else:
                self._live[change.key] = Kv(change.key, change.value, old.create_revision, revision, old.version + 1)

    def digest(self) -> str:
        """`Digest` of all keys, in hex."""
        found = Digest()
        for key in self._keys:
            found.add(self._live[key])
        return found.hex()

    def _holds(self, compare: Compare) -> bool:
        found = self._live.get(compare.key)
        if found is None and compare.target is Target.VALUE:
            return False
        kv = found or _MISSING
        match compare.target:
            case Target.VALUE:
                return _relates(kv.value, compare.relation, compare.operand)
            case Target.VERSION:
                return _relates(kv.version, compare.relation, compare.operand)
            case Target.CREATE:
                return _relates(kv.create_revision, compare.relation, compare.operand)
            case Target.MOD:
                return _relates(kv.mod_revision, compare.relation, compare.operand)
            case unknown:
                assert_never(unknown)


class _Txn:
    """Operations on top of a replica, which stays as it is."""

    __slots__ = ("_base", "_main", "_over", "changes")

    def __init__(self, base: Replica) -> None:
        self._base = base
        self._main = base.revision + 1
        self._over: dict[bytes, Kv | None] = {}
        self.changes: list[Change] = []

    def run(self, action: Action) -> Result:
        match action:
            case Put():
                return self._put(action)
            case Delete():
                return self._delete(action)
            case Range():
                found = tuple(self._find(action.key, action.end))
                return RangeResult(kvs=found, count=len(found))
            case unknown:
                assert_never(unknown)

    def _find(self, key: bytes, end: bytes) -> list[Kv]:
        if not self._over:
            return self._base.find(key, end)
        found = {kv.key: kv for kv in self._base.find(key, end)}
        for changed, kv in self._over.items():
            if changed == key or (end and key <= changed < end):
                if kv is None:
                    found.pop(changed, None)
                else:
                    found[changed] = kv
        return [found[each] for each in sorted(found)]

    def _put(self, action: Put) -> PutResult:
        old = next(iter(self._find(action.key, b"")), None)
        create, version = (self._main, 1) if old is None else (old.create_revision, old.version + 1)
        self._over[action.key] = Kv(action.key, action.value, create, self._main, version)
        self.changes.append(Change(action.key, action.value, create, version))
        return PutResult(previous=old if action.wants_previous else None)

    def _delete(self, action: Delete) -> DeleteResult:
        doomed = self._find(action.key, action.end)
        for kv in doomed:
            self._over[kv.key] = None
            self.changes.append(Change(kv.key, None))
        return DeleteResult(deleted=len(doomed), previous=tuple(doomed) if action.wants_previous else ())


def _relates(left: bytes | int, relation: Relation, right: bytes | int) -> bool:
    if isinstance(left, bytes) and isinstance(right, bytes):  # noqa: SIM114 - two pairs of types, not one of unions
        sign = (left > right) - (left < right)
    elif isinstance(left, int) and isinstance(right, int):
        sign = (left > right) - (left < right)
    else:
        raise TypeError(f"a compare of {left!r} with {right!r}")
    match relation:
        case Relation.EQUAL:
            return sign == 0
        case Relation.NOT_EQUAL:
            return sign != 0
        case Relation.GREATER:
            return sign > 0
        case Relation.LESS:
            return sign < 0
        case unknown:
            assert_never(unknown)


class Digest:
    """SHA-256 over key-values that are added in key order, lengths included."""

    __slots__ = ("_hasher", "count")

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self.count = 0

    def add(self, kv: Kv) -> None:
        """The next one."""
        self.count += 1
        numbers = b"%d,%d,%d" % (kv.create_revision, kv.mod_revision, kv.version)
        self._hasher.update(b"%d:%b%d:%b%b;" % (len(kv.key), kv.key, len(kv.value), kv.value, numbers))

    def hex(self) -> str:
        """The digest of all that were added."""
        return self._hasher.hexdigest()
