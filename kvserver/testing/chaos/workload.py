"""What the clients ask for: a seeded stream of requests over keys that collide and keys that do not.

    u/<client>/<id>     put once by one client, sometimes deleted later by it
    s/<group>/<n>       shared by all: put, deleted, compared, read, alone and by group

Purpose: `Workload` makes the next request of a client; `note` lets it learn from answers, so that compare-and-set mostly meets the present.

Rules: no clock; the generator is the caller's. The requests depend on the answers, so equal seeds give equal mixtures and not equal runs.
Overlapping changes within a transaction are refused by the server, so none are made. Memory is bounded: only the shared keys and a few of
the unique ones are remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

from kvserver.testing.chaos.model import (
    Action,
    Answer,
    Compare,
    Delete,
    Kind,
    Kv,
    Put,
    Range,
    RangeResult,
    Relation,
    Request,
    Target,
    value_of,
)

GROUPS: Final = 10
KEYS_PER_GROUP: Final = 6
_REMEMBERED: Final = 64
_OLD_REVISIONS: Final = 400
"""How far back reads of older revisions go."""


def shared_key(group: int, number: int) -> bytes:
    """A key that everybody uses."""
    return b"s/%02d/%d" % (group, number)


def group_bounds(group: int) -> tuple[bytes, bytes]:
    """[key, end) of a group's keys."""
    return b"s/%02d/" % group, b"s/%02d0" % group


class Workload:
    """Requests for all clients of a run."""

    def __init__(self, random: Random, *, value_size_bytes: int) -> None:
        self._random = random
        self._size_bytes = value_size_bytes
        self._known: dict[bytes, Kv] = {}
        self._mine: dict[str, deque[bytes]] = {}
        self._revision = 1
        makers: list[tuple[Callable[[int, str], Request], int]] = [
            (self._put_unique, 26),
            (self._put_shared, 18),
            (self._delete_unique, 4),
            (self._delete_shared, 6),
            (self._delete_group, 1),
            (self._compare_and_set, 14),
            (self._write_many, 8),
            (self._read_one, 12),
            (self._read_group, 4),
            (self._read_serializable, 6),
            (self._read_old, 3),
            (self._read_txn, 2),
        ]
        self._makers = [maker for maker, _ in makers]
        self._weights = [weight for _, weight in makers]

    def next_request(self, operation_id: int, client: str) -> Request:
        """Something for this client to do; its values name `operation_id`."""
        (maker,) = self._random.choices(self._makers, self._weights)
        return maker(operation_id, client)

    def read(self) -> Request:
        """A linearizable read of one shared key: what a resumed leader must not answer from the past."""
        return self._read_one(0, "")

    def note(self, client: str, request: Request, answer: Answer) -> None:
        """Learn from an answer."""
        self._revision = max(self._revision, answer.revision)
        for result in answer.results:
            if isinstance(result, RangeResult) and not request.serializable:
                for kv in result.kvs:
                    self._learn(kv)
        if not answer.claims_change:
            return
        for action in request.success if answer.succeeded else request.failure:
            if isinstance(action, Put) and action.key.startswith(b"s/"):
                old = self._known.get(action.key)
                self._learn(Kv(action.key, action.value, 0, answer.revision, 1 if old is None else old.version + 1))
            elif isinstance(action, Put) and request.kind is Kind.PUT:
                self._mine.setdefault(client, deque(maxlen=_REMEMBERED)).append(action.key)

    def _learn(self, kv: Kv) -> None:
        old = self._known.get(kv.key)
        if kv.key.startswith(b"s/") and (old is None or old.mod_revision <= kv.mod_revision):
            self._known[kv.key] = kv

    # --- writes --------------------------------------------------------------------------------------------------------------------------

    def _put_unique(self, operation_id: int, client: str) -> Request:
        key = b"u/%b/%d" % (client.encode(), operation_id)
        return Request(kind=Kind.PUT, success=(Put(key=key, value=self._value(operation_id, 0)),))

    def _put_shared(self, operation_id: int, _: str) -> Request:
        put = Put(key=self._shared(), value=self._value(operation_id, 0), wants_previous=self._random.random() < 0.5)
        return Request(kind=Kind.PUT, success=(put,))

    def _delete_unique(self, operation_id: int, client: str) -> Request:
        mine = self._mine.get(client)
        if not mine:
            return self._put_unique(operation_id, client)
        return Request(kind=Kind.DELETE, success=(Delete(key=mine.popleft(), wants_previous=self._random.random() < 0.5),))

    def _delete_shared(self, _: int, __: str) -> Request:
        return Request(kind=Kind.DELETE, success=(Delete(key=self._shared(), wants_previous=self._random.random() < 0.5),))

    def _delete_group(self, _: int, __: str) -> Request:
        key, end = group_bounds(self._random.randrange(GROUPS))
        return Request(kind=Kind.DELETE, success=(Delete(key=key, end=end, wants_previous=True),))

    def _compare_and_set(self, operation_id: int, _: str) -> Request:
        key = self._shared()
        success: tuple[Action, ...] = (Put(key=key, value=self._value(operation_id, 0), wants_previous=True),)
        failure: tuple[Action, ...] = (Range(key=key),)
        return Request(kind=Kind.TXN, compares=(self._guard(key),), success=success, failure=failure)

    def _guard(self, key: bytes) -> Compare:
        """Compare with what is known of the key, mostly so that it holds if nobody came in between."""
        known = self._known.get(key)
        relation = self._random.choices([Relation.EQUAL, Relation.NOT_EQUAL, Relation.LESS, Relation.GREATER], [8, 1, 1, 1])[0]
        if known is None:
            return Compare(key=key, target=Target.VERSION, relation=relation, operand=0)
        target = self._random.choice([Target.MOD, Target.MOD, Target.VALUE, Target.VERSION, Target.CREATE])
        match target:
            case Target.MOD:
                return Compare(key=key, target=target, relation=relation, operand=known.mod_revision)
            case Target.VALUE:
                return Compare(key=key, target=target, relation=relation, operand=known.value)
            case Target.VERSION:
                return Compare(key=key, target=target, relation=relation, operand=known.version)
            case Target.CREATE:
                return Compare(key=key, target=target, relation=relation, operand=known.create_revision)

    def _write_many(self, operation_id: int, client: str) -> Request:
        """Two puts, a delete and two reads in one revision; in the other branch fewer."""
        group = self._random.randrange(GROUPS)
        first, second, third = (shared_key(group, number) for number in self._random.sample(range(KEYS_PER_GROUP), 3))
        key, end = group_bounds(group)
        success: tuple[Action, ...] = (
            Range(key=first),
            Put(key=first, value=self._value(operation_id, 0), wants_previous=True),
            Put(key=second, value=self._value(operation_id, 1)),
            Delete(key=third, wants_previous=True),
            Range(key=key, end=end),
        )
        failure: tuple[Action, ...] = (Put(key=b"u/%b/%d" % (client.encode(), operation_id), value=self._value(operation_id, 2)),)
        compares = tuple(self._guard(each) for each in (first, third)[: self._random.randrange(3)])
        return Request(kind=Kind.TXN, compares=compares, success=success, failure=failure)

    # --- reads ---------------------------------------------------------------------------------------------------------------------------

    def _read_one(self, _: int, __: str) -> Request:
        return Request(kind=Kind.RANGE, success=(Range(key=self._shared()),))

    def _read_group(self, _: int, __: str) -> Request:
        key, end = group_bounds(self._random.randrange(GROUPS))
        return Request(kind=Kind.RANGE, success=(Range(key=key, end=end),))

    def _read_serializable(self, _: int, __: str) -> Request:
        return Request(kind=Kind.RANGE, success=(Range(key=self._shared()),), serializable=True)

    def _read_old(self, _: int, __: str) -> Request:
        revision = self._random.randint(max(1, self._revision - _OLD_REVISIONS), self._revision)
        key, end = group_bounds(self._random.randrange(GROUPS))
        return Request(kind=Kind.RANGE, success=(Range(key=key, end=end, revision=revision),), serializable=self._random.random() < 0.3)

    def _read_txn(self, _: int, __: str) -> Request:
        first, second = self._shared(), self._shared()
        success: tuple[Action, ...] = (Range(key=first), Range(key=second))
        return Request(kind=Kind.TXN, compares=(self._guard(first),), success=success, failure=(Range(key=second),))

    def _shared(self) -> bytes:
        return shared_key(self._random.randrange(GROUPS), self._random.randrange(KEYS_PER_GROUP))

    def _value(self, operation_id: int, number: int) -> bytes:
        return value_of(operation_id, number, self._size_bytes)
