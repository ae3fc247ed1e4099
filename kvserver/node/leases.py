"""The leader's care for leases: their deadlines, renewing them, and having those revoked whose time is over.

Theory of operation
- With each term that this member leads begins a *reign*: a new lessor, which takes up all leases of the store, slice by slice, with their
  whole TTL. Its task looks every `CHECK_S` for leases whose time is over. With the reign's end it is all dropped.
- Before anything is revoked or answered a quorum has confirmed that this member still leads (a ReadIndex round), and that it is still the
  same term: a leader that was stopped for a while and wakes up finds that out first, whatever its clock says.
- A revoke is an entry like any other, and names the term of its reign; apply takes it only in an entry of that term. So one that a
  follower forwards, because leadership moved between the confirmation and the proposal, has no effect under the next leader.
- Neither renewing nor revoking waits for apply: an entry that takes ten seconds must not cost a lease. Time in which no quorum answered is
  given back to the leases whose time it took (`Lessor.note_silence`).
- A lease can be renewed until its revoke is proposed, also when its time is over by then. One whose revoke is on its way can't be: who
  renews it hears what became of that. So does who renews one that is unknown here, once all that is committed is applied. Both take
  time, so `renew` leaves them open and answers the others; `settle` waits for them.

Bounds: `BATCH` revokes are under way at most, and as many begin within `CHECK_S`: 1,000 a second, as in etcd. An attempt that fails is made
again after `RETRY_S`; one that the CORRUPT alarm refused after `REFUSED_S`, as each is an entry. The log hears of failures every `SAY_S`.

Source: etcd's lessor and its server's revokeExpiredLeases. Deviation: leases are not checkpointed; a new leader gives each its whole TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Protocol

from google.protobuf.message import Message as PbMessage

from kvserver.commands import CommandKind
from kvserver.errors import CorruptError, LeaseNotFoundError, NotLeaderError, RequestError
from kvserver.lease import LeaseTable, Lessor
from kvserver.logs import Logger
from kvserver.pb.internal_pb2 import LeaseExpiry
from kvserver.types import LeaseId, Term

CHECK_S: Final = 0.25
BATCH: Final = 250
RETRY_S: Final = 1.0
REFUSED_S: Final = 30.0
SAY_S: Final = 10.0
SETTLE_S: Final = 0.5
"""How long `settle` waits for revokes: as long as one of them may hold up the others that are asked about with it."""
SLICE: Final = 1_000
"""Leases that one turn takes up: about 2 ms."""


class Leadership(Protocol):
    """Whether this member leads, as raft knows it now."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def term(self) -> Term: ...


class LeaseStore(Protocol):
    """The replicated leases; another object after a snapshot was installed, hence by way of the store."""

    @property
    def leases(self) -> LeaseTable: ...


class Confirmations(Protocol):
    """The way to a quorum's word that the leader is one."""

    async def wait_confirmed(self, deadline_s: float) -> None: ...
    async def wait_linearizable(self, deadline_s: float) -> None: ...


class LeaseProposals(Protocol):
    """The way to change the replicated state."""

    async def propose(self, kind: CommandKind, request: PbMessage, *, deadline_s: float) -> PbMessage: ...


class _Reign:
    """One term of leading: its deadlines, and who waits for what becomes of a revoke."""

    def __init__(self, term: Term, extend_s: float) -> None:
        self.term = term
        self.lessor = Lessor(extend_s=extend_s)
        self.task: asyncio.Task[None] | None = None
        self.silent_since_s: float | None = None
        """Since when no quorum has answered; None if the last round was answered."""
        self._waiting: dict[LeaseId, list[asyncio.Future[None]]] = {}

    async def wait_settled(self, lease: LeaseId, until_s: float) -> bool:
        """Return when the lease isn't taken any more, or (False) at `until_s`. Raises NotLeaderError: the reign has ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(lease, [])
        waiting.append(future)
        try:
            async with asyncio.timeout_at(until_s):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.remove(future)
            if not waiting and self._waiting.get(lease) is waiting:
                del self._waiting[lease]
        return True

    def settle(self, lease: LeaseId) -> None:
        """It isn't taken any more."""
        for future in self._waiting.pop(lease, ()):
            if not future.done():
                future.set_result(None)

    def end(self) -> None:
        """This member leads no more, or in another term."""
        if self.task is not None:
            self.task.cancel()
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(NotLeaderError())


class LeaseKeeper:
    """The leader's side of leases. Belongs to the loop that it was made on.

    Args:
        extend_s: what a new leader gives to a lease beyond its TTL.
        attempt_timeout_s: how long a confirmation or a revoke may take before it is tried again.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        leadership: Leadership,
        reads: Confirmations,
        proposals: LeaseProposals,
        extend_s: float,
        attempt_timeout_s: float,
        log: Logger,
    ) -> None:
        self._store = store
        self._leadership = leadership
        self._reads = reads
        self._proposals = proposals
        self._extend_s = extend_s
        self._attempt_timeout_s = attempt_timeout_s
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._reign: _Reign | None = None
        self._said_s = -SAY_S
        self._stopped = False

    @property
    def known_count(self) -> int:
        """Leases whose deadlines are kept here: none on a follower."""
        return 0 if self._reign is None else len(self._reign.lessor)

    # --- what happens --------------------------------------------------------------------------------------------------------------------

    def note_leader(self, *, leads: bool, term: Term) -> None:
        """This member leads in `term`, or it doesn't."""
        reign = self._reign
        if reign is not None and (not leads or reign.term != term):
            self._reign = None
            reign.end()
        if leads and self._reign is None and not self._stopped:
            self._reign = reign = _Reign(term, self._extend_s)
            reign.task = self._loop.create_task(self._rule(reign), name=f"leases-of-term-{term}")
            reign.task.add_done_callback(self._ended)

    def note_lease(self, lease: LeaseId, ttl_s: int | None) -> None:
        """A lease was granted, or (None) has ended, as applied on this member."""
        reign = self._reign
        if reign is None:
            return
        if ttl_s is None:
            reign.lessor.forget(lease)
            reign.settle(lease)
        else:
            reign.lessor.grant(lease, ttl_s, self._loop.time())

    def stop(self) -> None:
        """End it all."""
        self._stopped = True
        reign, self._reign = self._reign, None
        if reign is not None:
            reign.end()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A reign's task ends by being cancelled; anything else is a defect, after which leases don't expire under this leader."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("the care for leases failed: they don't expire until another member leads", error=error)

    # --- what is asked -------------------------------------------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]:
        """Give each lease its whole TTL from now on; returns the TTLs, and None where that takes longer to say: see `settle`.

        Raises:
            NotLeaderError: this member doesn't lead, or a quorum didn't say so; ask who does.
            RequestTimeoutError and other RequestErrors: nobody can say in time.
        """
        reign = await self._confirmed(deadline_s, applied=False)
        return [self._renew(reign, lease) or None for lease in leases]

    async def settle(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]:
        """As `renew`, once what was committed is applied: 0 for a lease that doesn't exist, None for one whose revoke takes its time."""
        reign = await self._confirmed(deadline_s, applied=True)
        until_s = min(deadline_s, self._loop.time() + SETTLE_S)
        ttls: list[int | None] = []
        for lease in leases:
            ttl_s = self._renew(reign, lease)
            while ttl_s is None:
                is_settled = await reign.wait_settled(lease, until_s)
                if not self._holds(reign):
                    raise NotLeaderError
                if not is_settled:
                    break
                ttl_s = self._renew(reign, lease)
            ttls.append(ttl_s)
        return ttls

    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None:
        """The whole seconds that a lease has left, None if it doesn't exist. Raises as `renew`."""
        reign = await self._confirmed(deadline_s, applied=True)
        if not self._knows(reign, lease):
            return None
        remaining_s = reign.lessor.remaining_s(lease, self._loop.time())
        return None if remaining_s is None else int(remaining_s)

    async def _confirmed(self, deadline_s: float, *, applied: bool) -> _Reign:
        """The reign, which a quorum has confirmed since the call; if wanted, with everything applied that was committed at the call."""
        reign = self._reign
        if reign is None or not self._holds(reign):
            raise NotLeaderError
        await (self._reads.wait_linearizable(deadline_s) if applied else self._reads.wait_confirmed(deadline_s))
        if not self._holds(reign):
            raise NotLeaderError
        return reign

    def _holds(self, reign: _Reign) -> bool:
        leadership = self._leadership
        return self._reign is reign and leadership.is_leader and leadership.term == reign.term

    def _renew(self, reign: _Reign, lease: LeaseId) -> int | None:
        """Its TTL, 0 if there is no such lease in what is applied, None if it is taken."""
        return reign.lessor.renew(lease, self._loop.time()) if self._knows(reign, lease) else 0

    def _knows(self, reign: _Reign, lease: LeaseId) -> bool:
        """Whether there is such a lease; one that has not had its turn yet is taken up."""
        if lease not in reign.lessor:
            ttl_s = self._store.leases.ttl_s(lease)
            if ttl_s is None:
                return False
            reign.lessor.take_up(lease, ttl_s, self._loop.time())
        return True

    # --- a reign -------------------------------------------------------------------------------------------------------------------------

    async def _rule(self, reign: _Reign) -> None:
        try:
            await self._take_up_all(reign)
        except CorruptError as error:
            # Reported, and the cluster is told; what is not known here can't expire, and under the alarm nothing is revoked anyway.
            self._log.error("the leases can't be read, not all of them will expire", error=error)
        while True:
            await asyncio.sleep(CHECK_S)
            await self._expire(reign)

    async def _take_up_all(self, reign: _Reign) -> None:
        after: LeaseId | None = None
        while True:
            page = list(islice(self._store.leases.leases(after), SLICE))
            now_s = self._loop.time()
            for lease, ttl_s in page:
                reign.lessor.take_up(lease, ttl_s, now_s)
            if len(page) < SLICE:
                return
            after = page[-1][0]
            await asyncio.sleep(0)

    async def _expire(self, reign: _Reign) -> None:
        """Have a batch of leases revoked whose time is over, once a quorum has confirmed that this is for us to say."""
        begun_s = self._loop.time()
        if not reign.lessor.has_due(begun_s):
            return
        if reign.silent_since_s is None:
            reign.silent_since_s = begun_s
        try:
            await self._reads.wait_confirmed(begun_s + self._attempt_timeout_s)
        except RequestError as error:
            self._say("leases are due, but no quorum confirms that this member leads; will retry", error)
            await asyncio.sleep(RETRY_S)
            return
        if not self._holds(reign):
            return
        now_s = self._loop.time()
        silence_s, reign.silent_since_s = now_s - reign.silent_since_s, None
        if silence_s > CHECK_S:
            reign.lessor.note_silence(silence_s, now_s)
        due = reign.lessor.take_due(now_s, BATCH)
        failures = await self._revoke_all(reign, due)
        if failures:
            self._say("failed to revoke expired leases; will retry", failures[0])

    def _say(self, event: str, error: RequestError) -> None:
        """Log a failure, now and then."""
        now_s = self._loop.time()
        if now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            self._log.warning(event, reason=str(error))

    async def _revoke_all(self, reign: _Reign, leases: Iterable[LeaseId]) -> list[RequestError]:
        failures: list[RequestError] = []
        async with asyncio.TaskGroup() as group:
            for lease in leases:
                group.create_task(self._revoke(reign, lease, failures), name=f"expire-lease-{lease:x}")
        return failures

    async def _revoke(self, reign: _Reign, lease: LeaseId, failures: list[RequestError]) -> None:
        """Propose the revoke of a taken lease; what is applied is told by `note_lease`."""
        request = LeaseExpiry(id=lease, term=reign.term)
        try:
            await self._proposals.propose(CommandKind.LEASE_EXPIRE, request, deadline_s=self._loop.time() + self._attempt_timeout_s)
        except LeaseNotFoundError:
            reign.lessor.forget(lease)  # revoked by a client meanwhile
        except RequestError as error:
            failures.append(error)
            reign.lessor.put_back(lease, self._loop.time() + (REFUSED_S if isinstance(error, CorruptError) else RETRY_S))
        reign.settle(lease)
