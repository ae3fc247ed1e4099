"""Where a member's services ask about leases, whoever leads: this member answers by itself or has the leader answer.

Rules
- Renewals that come while one is under way share the next: one round of the quorum, and on a follower one request to the leader, for up to
  `BATCH` of them.
- Asking again is safe (a renewal has no effect but more time), so what fails is asked again after `PAUSE_S`, of whoever leads by then,
  until the caller's deadline. Damage and a stop are answers.
- At most `MAX_WAITING` renewals wait; more are refused.

On the way to the leader: ids and TTLs as 8 bytes each, signed, big-endian. An answer has a number for each id that was asked; 0 stands for
a lease that doesn't exist where the TTL is asked, -1 where the remaining time is.

Source: etcd's v3_server.go (LeaseRenew, LeaseTimeToLive) and its lease HTTP handler between members.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
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


class Leading(Protocol):
    """Who leads."""

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader_id(self) -> NodeId: ...


class LeaderAnswers(Protocol):
    """What the leader knows (leases.py)."""

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int]: ...
    async def remaining_s(self, lease: LeaseId, deadline_s: float) -> int | None: ...


class LeaseDesk:
    """See the module. Belongs to the loop that it was made on."""

    def __init__(self, *, leading: Leading, keeper: LeaderAnswers, send: SendRequest) -> None:
        self._leading = leading
        self._keeper = keeper
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[LeaseId, asyncio.Future[int]]] = []
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    # --- for the services ----------------------------------------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[LeaseId], deadline_s: float) -> list[int]:
        """Give each lease its whole TTL from now on; returns the TTLs, 0 for a lease that doesn't exist.

        Raises:
            NoLeaderError, RequestTimeoutError: not by `deadline_s`. TooManyRequestsError. CorruptError. StoppedError.
        """
        if self._stopped:
            raise StoppedError
        if len(self._waiting) + len(leases) > MAX_WAITING:
            raise TooManyRequestsError
        futures: list[asyncio.Future[int]] = [self._loop.create_future() for _ in leases]
        self._waiting += zip(leases, futures, strict=True)
        if self._task is None:
            self._task = self._loop.create_task(self._serve(), name="renew-leases")
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
        if self._task is not None:
            self._task.cancel()
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(StoppedError())

    # --- asking --------------------------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Have everything that waits renewed, batch by batch."""
        try:
            while True:
                self._waiting = [each for each in self._waiting if not each[1].done()]
                if not self._waiting:
                    return
                if not await self._serve_some([lease for lease, _ in self._waiting[:BATCH]]):
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._task = None

    async def _serve_some(self, leases: list[LeaseId]) -> bool:
        """Renew the first of those that wait; False: they wait on."""
        try:
            ttls = await self._ask(ForwardKind.LEASE_RENEW, leases, self._loop.time() + ATTEMPT_S)
        except (CorruptError, StoppedError) as error:
            served, self._waiting = self._waiting[: len(leases)], self._waiting[len(leases) :]
            for _, future in served:
                if not future.done():
                    future.set_exception(type(error)())
            return True
        except RequestError:
            return False
        served, self._waiting = self._waiting[: len(leases)], self._waiting[len(leases) :]
        for (_, future), ttl_s in zip(served, ttls, strict=True):
            if not future.done():
                future.set_result(ttl_s)
        return True

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
        if kind is ForwardKind.LEASE_RENEW:
            return await self._keeper.renew(leases, deadline_s)
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
