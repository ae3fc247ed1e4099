"""Where a member's services ask about leases, whoever leads: this member answers by itself or has the leader answer.

Rules
- Renewals that come while one is under way share the next: one round of the quorum, and on a follower one request to the leader, for up to
  `BATCH` of them.
- A renewal that the leader can't answer at once (its lease is being revoked, or unknown there) goes over to a queue of its own, with its
  own requests, and is asked there until it is settled: a revoke that takes minutes holds up nobody else's renewal.
- Asking again is safe (a renewal has no effect but more time), so what fails is asked again after `PAUSE_S`, of whoever leads by then,
  until the caller's deadline. Damage and a stop are answers.
- At most `MAX_WAITING` renewals wait; more are refused.

On the way to the leader: ids and TTLs as 8 bytes each, signed, big-endian. An answer has a number for each id that was asked; 0 stands for
a lease that doesn't exist where the TTL is asked, -1 for one that isn't settled; where the remaining time is asked, -1 for one that doesn't
exist.

Source: etcd's v3_server.go (LeaseRenew, LeaseTimeToLive) and its lease HTTP handler between members.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvserver.errors import (
    CorruptError,
    NoLeaderError,
    RequestError,
    RequestTimeoutError,
    StoppedError,
    TooManyRequestsError,
)
from kvserver.node.forwarding import ForwardKind, SendRequest, error_named
from kvserver.peer import PeerRequestError, PeerRequestRefusedError
from kvserver.types import LeaseId, NodeId
from raft.types import NO_NODE

BATCH: Final = 1_000
PAUSE_S: Final = 0.05
MAX_WAITING: Final = 100_000
ATTEMPT_S: Final = 5.0
GONE: Final = -1
UNSETTLED: Final = -1


class Leading(Protocol):
    """Who leads."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...


class LeaderAnswers(Protocol):
    """What the leader knows (leases.py)."""

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]: ...
    async def settle(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int | None]: ...
    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None: ...


@dataclass(slots=True, kw_only=True)
class _Queue:
    """Renewals that wait, how they are asked, and the task that asks while there are any."""

    kind: ForwardKind
    waiting: list[tuple[LeaseId, asyncio.Future[int]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class LeaseDesk:
    """See the module. Belongs to the loop that it was made on."""

    def __init__(self, *, leading: Leading, keeper: LeaderAnswers, send: SendRequest) -> None:
        self._leading = leading
        self._keeper = keeper
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._new = _Queue(kind=ForwardKind.LEASE_RENEW)
        self._unsettled = _Queue(kind=ForwardKind.LEASE_SETTLE)
        self._stopped = False

    # --- for the services ----------------------------------------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        """Give each lease its whole TTL from now on; returns the TTLs, 0 for a lease that doesn't exist.

        Raises:
            NoLeaderError, RequestTimeoutError: not by `deadline_s`. TooManyRequestsError. CorruptError. StoppedError.
        """
        if self._stopped:
            raise StoppedError
        if len(self._new.waiting) + len(self._unsettled.waiting) + len(leases) > MAX_WAITING:
            raise TooManyRequestsError
        futures: list[asyncio.Future[int]] = [self._loop.create_future() for _ in leases]
        self._put(self._new, list(zip(leases, futures, strict=True)))
        try:
            async with asyncio.timeout_at(deadline_s):
                return [await future for future in futures]
        except TimeoutError:
            raise self._too_late() from None
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # one error for all of them is enough

    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None:
        """The whole seconds that a lease has left, None if it doesn't exist. Raises as `renew`."""
        while True:
            try:
                (remaining_s,) = await self._ask(ForwardKind.LEASE_REMAINING, [lease], deadline_s)
            except (CorruptError, StoppedError):
                raise
            except RequestError:
                if self._stopped:
                    raise StoppedError from None
                if self._loop.time() + PAUSE_S >= deadline_s:
                    raise self._too_late() from None
                await asyncio.sleep(PAUSE_S)
            else:
                return None if remaining_s == GONE else remaining_s

    async def answer(self, kind: ForwardKind, payload: bytes, timeout_s: float) -> bytes:
        """Answer another member, as the leader.

        Raises:
            ValueError: the payload holds no leases.
            PeerRequestRefusedError: the domain error that it ended in.
        """
        leases = [LeaseId(number) for number in _unpack(payload)]
        if not leases or len(leases) > BATCH:
            raise ValueError(f"{len(leases)} leases are asked about, 1 to {BATCH} may be")
        try:
            return _pack(await self._ask_here(kind, leases, self._loop.time() + timeout_s))
        except RequestError as error:
            raise PeerRequestRefusedError(type(error).__name__, str(error)) from error

    def stop(self) -> None:
        """Answer what waits, and whatever comes, with `server stopped`."""
        self._stopped = True
        for queue in (self._new, self._unsettled):
            if queue.task is not None:
                queue.task.cancel()
            waiting, queue.waiting = queue.waiting, []
            for _, future in waiting:
                if not future.done():
                    future.set_exception(StoppedError())

    # --- asking --------------------------------------------------------------------------------------------------------------------------

    def _put(self, queue: _Queue, renewals: list[tuple[LeaseId, asyncio.Future[int]]]) -> None:
        queue.waiting += renewals
        if queue.task is None and renewals:
            queue.task = self._loop.create_task(self._serve(queue), name=queue.kind.name.lower())

    async def _serve(self, queue: _Queue) -> None:
        """Have everything that waits in a queue renewed, batch by batch."""
        try:
            while True:
                queue.waiting = [each for each in queue.waiting if not each[1].done()]
                if not queue.waiting:
                    return
                if not await self._serve_some(queue, [lease for lease, _ in queue.waiting[:BATCH]]):
                    await asyncio.sleep(PAUSE_S)
        finally:
            queue.task = None

    async def _serve_some(self, queue: _Queue, leases: list[LeaseId]) -> bool:
        """Renew the first of those that wait; False: they wait on, and are asked about again after a pause."""
        try:
            ttls = await self._ask(queue.kind, leases, self._loop.time() + ATTEMPT_S)
        except (CorruptError, StoppedError) as error:
            served, queue.waiting = queue.waiting[: len(leases)], queue.waiting[len(leases) :]
            for _, future in served:
                if not future.done():
                    future.set_exception(type(error)())
            return True
        except RequestError:
            return False
        served, queue.waiting = queue.waiting[: len(leases)], queue.waiting[len(leases) :]
        for (_, future), ttl_s in zip(served, ttls, strict=True):
            if ttl_s != UNSETTLED and not future.done():
                future.set_result(ttl_s)
        self._put(self._unsettled, [each for each, ttl_s in zip(served, ttls, strict=True) if ttl_s == UNSETTLED])
        return queue is self._new or any(ttl_s != UNSETTLED for ttl_s in ttls)

    async def _ask(self, kind: ForwardKind, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        """One attempt, here or at the leader. Raises RequestError."""
        if self._leading.is_leader:
            return await self._ask_here(kind, leases, deadline_s)
        leader = self._leading.leader_id
        if leader == NO_NODE:
            raise NoLeaderError
        timeout_s = min(ATTEMPT_S, deadline_s - self._loop.time())
        if timeout_s <= 0:
            raise RequestTimeoutError
        try:
            answer = _unpack(await self._send(leader, kind, _pack(leases), timeout_s=timeout_s))
        except PeerRequestRefusedError as refused:
            raise error_named(refused.code) from None
        except (PeerRequestError, ValueError):
            raise RequestTimeoutError from None
        if len(answer) != len(leases):
            raise RequestTimeoutError
        return answer

    async def _ask_here(self, kind: ForwardKind, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        if kind is not ForwardKind.LEASE_REMAINING:
            ask = self._keeper.renew if kind is ForwardKind.LEASE_RENEW else self._keeper.settle
            return [UNSETTLED if each is None else each for each in await ask(leases, deadline_s)]
        remaining = [await self._keeper.remaining_s(lease, deadline_s) for lease in leases]
        return [GONE if each is None else each for each in remaining]

    def _too_late(self) -> RequestError:
        return NoLeaderError() if self._leading.leader_id == NO_NODE else RequestTimeoutError()


def _pack(numbers: Sequence[int]) -> bytes:
    return struct.pack(f">{len(numbers)}q", *numbers)


def _unpack(data: bytes) -> list[int]:
    """Raises ValueError."""
    if len(data) % 8:
        raise ValueError(f"{len(data)} bytes are no list of leases")
    return list(struct.unpack(f">{len(data) // 8}q", data))
