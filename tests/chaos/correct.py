"""Histories of a cluster that makes no mistake: a model with virtual time, in which every operation happens at one instant.

Purpose: what the checker must accept (property test), and what mutations start from (planted.py). Clients overlap; answers get lost before
or after the operation happened, sometimes long before it does; refused operations never happen; serializable reads come from a member's
past.

Rules: one seed, one history. The clock is a counter of nanoseconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from kvserver.testing.chaos.model import Answer, History, Kind, MemberEnd, Operation, Outcome, Range, Revised
from kvserver.testing.chaos.replica import Executed, Replica
from kvserver.testing.chaos.workload import Workload

MEMBERS = ("kv1", "kv2", "kv3")
_TICK_NS = 1_000_000


@dataclass(slots=True)
class _World:
    """The one true store and the events to come."""

    random: Random
    unknown_share: float
    failed_share: float
    replica: Replica = field(default_factory=Replica)
    changes: list[Revised] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    events: list[tuple[int, int, Callable[[int], None]]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, when_ns: int, happens: Callable[[int], None]) -> None:
        heapq.heappush(self.events, (when_ns, next(self.numbers), happens))

    def soon(self, now_ns: int, ticks: int) -> int:
        return now_ns + 1 + self.random.randrange(ticks * _TICK_NS)

    def happen(self, operation: Operation) -> Answer:
        """The operation's instant."""
        request = operation.request
        if request.kind is Kind.RANGE:
            return self._read(operation)
        executed = self.replica.execute(request)
        if executed.changes:
            revision = self.replica.revision + 1
            self.changes.append(Revised(revision, executed.changes))
            self.replica.apply(revision, executed.changes)
        return Answer(revision=self.replica.revision, results=executed.results, succeeded=executed.succeeded)

    def _read(self, operation: Operation) -> Answer:
        """A read's header is the member's present; its keys are those of the revision that it asks for."""
        request = operation.request
        header = self.replica.revision
        if request.serializable:
            header = max(1, header - self.random.randrange(4))
        (action,) = request.success
        assert isinstance(action, Range)
        wanted = action.revision or header
        if wanted > header:
            raise LookupError("a future revision")
        return Answer(revision=header, results=self.executed_at(operation, wanted).results)

    def executed_at(self, operation: Operation, revision: int) -> Executed:
        """What the request comes to in the state at `revision`."""
        return replica_at(self.changes, revision).execute(operation.request)


def replica_at(changes: list[Revised], revision: int) -> Replica:
    """The store as of a revision."""
    replica = Replica()
    for revised in changes:
        if revised.revision > revision:
            break
        replica.apply(revised.revision, revised.changes)
    return replica


def make_history(
    seed: int,
    *,
    operations: int = 400,
    clients: int = 6,
    unknown_share: float = 0.1,
    failed_share: float = 0.05,
    value_size_bytes: int = 16,
) -> History:
    """A correct history of about `operations` operations."""
    random = Random(seed)
    world = _World(random, unknown_share, failed_share)
    workload = Workload(Random(seed + 1), value_size_bytes=value_size_bytes)
    ids = itertools.count(1)

    def begin(client: str, now_ns: int) -> None:
        if len(world.operations) >= operations:
            return
        number = next(ids)
        operation = Operation(
            id=number, client=client, member=random.choice(MEMBERS), request=workload.next_request(number, client), invoked_ns=now_ns
        )
        world.operations.append(operation)
        fate = random.random()
        if fate < world.unknown_share:
            _leave_unknown(world, operation, now_ns, lambda then_ns: begin(client, then_ns))
        elif fate < world.unknown_share + world.failed_share:
            operation.outcome, operation.error = Outcome.FAILED, "etcdserver: too many requests"
            operation.completed_ns = world.soon(now_ns, 3)
            world.at(operation.completed_ns + 1, lambda then_ns: begin(client, then_ns))
        else:
            world.at(world.soon(now_ns, 5), lambda then_ns: answer(operation, client, then_ns))

    def answer(operation: Operation, client: str, now_ns: int) -> None:
        operation.completed_ns = world.soon(now_ns, 5)
        try:
            found = world.happen(operation)
        except LookupError:
            operation.outcome, operation.error = Outcome.FAILED, "etcdserver: mvcc: required revision is a future revision"
        else:
            operation.outcome, operation.answer = Outcome.OK, found
            world.at(operation.completed_ns, lambda _: workload.note(client, operation.request, found))
        world.at(operation.completed_ns + 1, lambda then_ns: begin(client, then_ns))

    for number in range(clients):
        world.at(number, lambda now_ns, client=f"c{number}": begin(client, now_ns))
    while world.events:
        now_ns, _, happens = heapq.heappop(world.events)
        happens(now_ns)
    return _finish(world, seed)


def _leave_unknown(world: _World, operation: Operation, now_ns: int, go_on: Callable[[int], None]) -> None:
    """Its client never hears; half of the time it happens all the same, perhaps much later."""
    if world.random.random() < 0.5 and operation.request.is_mutation:
        world.at(world.soon(now_ns, world.random.choice((5, 200))), lambda _: _discard(world.happen(operation)))
    if world.random.random() < 0.7:
        operation.completed_ns, operation.error = world.soon(now_ns, 20), "context deadline exceeded"
    world.at((operation.completed_ns or world.soon(now_ns, 20)) + 1, go_on)


def _discard(_: Answer) -> None:
    return None


def _finish(world: _World, seed: int) -> History:
    replica = world.replica
    end = MemberEnd(
        revision=replica.revision,
        hash_revision=replica.revision,
        hash_kv=seed & 0xFFFFFFFF,
        member_list=("1 kv1", "2 kv2", "3 kv3"),
        state_digest=replica.digest(),
        key_count=len(replica),
    )
    return History(
        members=MEMBERS,
        operations=world.operations,
        stores={member: list(world.changes) for member in MEMBERS},
        ends=dict.fromkeys(MEMBERS, end),
        facts={"seed": seed},
    )
