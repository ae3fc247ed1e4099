"""The quota: whether a write may be proposed, and the alarm when it may not.

Purpose: every put, putting transaction and lease grant passes here before it is proposed. Over the quota the client hears `database space
exceeded`, the member raises the NOSPACE alarm for itself, and from then on apply refuses such writes on every member until an operator
disarms the alarm.

Theory of operation
- What counts is what is in use: pages of the file that hold something, what waits in the write buffer, and what this member has admitted
  and not yet answered. Free pages don't count, because they are reused; so deleting and compacting make room without a defragmentation.
- Those three overlap for a moment (an applied write is in the buffer before its client is answered). Their sum is therefore an estimate
  from above: a write that fits beside it passes. With the larger of the last two it is one from below: a write that doesn't fit beside that
  is refused, after the buffer was committed once (what it holds may be deletions). Between the two nothing is known: the write waits
  for the next commit and asks again. Meanwhile nothing larger is admitted, so what was admitted is answered, and the two meet: the store
  doesn't pass its quota by what this member admits, and an alarm is never raised for a store that had room.
- The alarm is raised once: while this member's own alarm is raised, it is not proposed again. After `alarm disarm` a write that still
  doesn't fit raises it again. Below the quota with the alarm raised, writes are proposed, and refused by apply: the alarm is the cluster's.

Caveats: each member asks its own store, with its own quota; members whose quotas differ raise the alarm at different sizes. Other members'
writes that are under way are not counted, so a store may exceed its quota by what the other members admit at the same time (each at most
`--max-inflight-bytes`). Deletions and compactions are always admitted and may add a little before they free anything.

Source: etcd's v3rpc/quota.go. Deviations: etcd counts the file's size, free pages included; it asks before it checks the arguments, and
again while it applies, when it answers writes that it did apply with an error.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from kvserver.apply import fits
from kvserver.clock import Clock
from kvserver.errors import FatalError, NoSpaceError, StoppedError
from kvserver.pb.rpc_pb2 import NOSPACE, AlarmType

__all__ = ["AlarmRaising", "QuotaGate", "SpaceUse"]


class SpaceUse(Protocol):
    """How full the store is. Reading the numbers is cheap enough for every put."""

    @property
    def size_in_use_bytes(self) -> int:
        """Bytes of the file that hold something, as committed."""

    @property
    def buffered_payload_bytes(self) -> int:
        """Bytes that are applied and not yet committed."""

    async def commit(self) -> None:
        """Commit what is applied. Raises FatalError if the store has failed."""


class AlarmRaising(Protocol):
    """The way to this member's alarms."""

    async def wait_raised(self, kind: AlarmType.ValueType, *, deadline_s: float) -> bool:
        """Have the alarm raised and wait for that, at most until `deadline_s`; returns whether it is. Does not raise."""


class QuotaGate:
    """Decides about one member's writes.

    Args:
        quota_bytes: what the store may use; negative for any amount.
    """

    __slots__ = ("_admitted_bytes", "_alarms", "_clock", "_quota_bytes", "_space")

    def __init__(self, *, quota_bytes: int, space: SpaceUse, alarms: AlarmRaising, clock: Clock) -> None:
        self._quota_bytes = quota_bytes
        self._space = space
        self._alarms = alarms
        self._clock = clock
        self._admitted_bytes = 0

    @property
    def admitted_bytes(self) -> int:
        """What was admitted and not released."""
        return self._admitted_bytes

    async def admit(self, cost_bytes: int, *, deadline_s: float) -> None:
        """Let a write that is charged `cost_bytes` pass; the caller releases it when it is answered, whatever the answer.

        Raises:
            NoSpaceError: it does not fit. Nothing was proposed but the alarm, which is raised by then, unless `deadline_s` came first.
            StoppedError: the store has failed; this member is stopping.
        """
        if not self._fits_for_certain(cost_bytes):
            await self._look_closer(cost_bytes, deadline_s)
        self._admitted_bytes += cost_bytes

    def release(self, cost_bytes: int) -> None:
        """A write that was admitted is answered."""
        self._admitted_bytes -= cost_bytes

    async def _look_closer(self, cost_bytes: int, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._clock.monotonic_s())):
                while True:
                    await self._space.commit()
                    if self._fits_for_certain(cost_bytes):
                        return
                    if not self._may_fit(cost_bytes):
                        break
        except TimeoutError:
            raise NoSpaceError from None  # the disk takes nothing: full for now, which is not the quota's business
        except FatalError as error:
            raise StoppedError from error
        await self._alarms.wait_raised(NOSPACE, deadline_s=deadline_s)
        raise NoSpaceError

    def _fits_for_certain(self, cost_bytes: int) -> bool:
        return self._fits_beside(self._space.buffered_payload_bytes + self._admitted_bytes, cost_bytes)

    def _may_fit(self, cost_bytes: int) -> bool:
        return self._fits_beside(max(self._space.buffered_payload_bytes, self._admitted_bytes), cost_bytes)

    def _fits_beside(self, under_way_bytes: int, cost_bytes: int) -> bool:
        used_bytes = self._space.size_in_use_bytes + under_way_bytes
        return fits(used_bytes=used_bytes, cost_bytes=cost_bytes, quota_bytes=self._quota_bytes)
