"""Requests between members: having the leader do what only a leader can, and what members tell each other of their disks.

Purpose: the kinds, and the two ends of a request: encoding it, answering it, and turning a refusal back into the domain error that it was.

Rules: a request names its kind by number; a domain error travels as its class's name and comes back as that class; whatever else goes
wrong on the way is a timeout whose outcome is unknown, unless the peer has certainly not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum

from kvserver import errors
from kvserver.errors import NoLeaderError, RequestError, RequestTimeoutError, TimeoutDueToConnectionLostError
from kvserver.peer import PeerRequestError, PeerRequestRefusedError
from kvserver.types import NodeId
from raft.types import NO_NODE


class ForwardKind(IntEnum):
    """What is asked; numbers are part of the peer protocol."""

    PROMOTE_MEMBER = 1
    HAS_SPACE = 2
    """To a voter: does its disk have space, so that it may lead? One byte, 1 for yes (space_watch.py)."""
    NO_SPACE = 3
    """From a leader short of disk space: it did not take these forwarded writes of the member that is asked. Pairs of incarnation and
    counter, 8 bytes each, big-endian."""
    LEASE_RENEW = 4
    """To the leader: give these leases their whole TTL; it answers at once what it can (lease_desk.py)."""
    LEASE_REMAINING = 5
    """To the leader: how many seconds do these leases have left?"""
    NO_ROOM = 6
    """From a leader without room for them to wait: it did not propose these forwarded writes of the member that is asked. As NO_SPACE."""
    HANDED_BACK = 7
    """From a member that does not lead: it did not propose these forwarded writes of the member that is asked. As NO_SPACE."""
    LEASE_SETTLE = 8
    """To the leader: as LEASE_RENEW, of leases that it could not answer at once."""


SendRequest = Callable[..., Awaitable[bytes]]
"""`Transport.request`."""


async def ask_promote(request: SendRequest, leader: NodeId, target: NodeId, deadline_s: float) -> None:
    """Have `leader` promote `target`.

    Raises:
        NoLeaderError: there is none to ask.
        RequestError: what the leader answered, or a timeout.
    """
    if leader == NO_NODE:
        raise NoLeaderError
    timeout_s = min(60.0, deadline_s - asyncio.get_running_loop().time())
    if timeout_s <= 0:
        raise RequestTimeoutError
    try:
        await request(leader, ForwardKind.PROMOTE_MEMBER, target.to_bytes(8, "big"), timeout_s=timeout_s)
    except PeerRequestRefusedError as refused:
        raise error_named(refused.code) from None
    except PeerRequestError as failure:
        raise (NoLeaderError if failure.retryable else TimeoutDueToConnectionLostError) from None


async def answer_promote(payload: bytes, *, promote: Callable[[NodeId, float], Awaitable[None]], timeout_s: float) -> bytes:
    """Promote a learner because another member asks.

    Raises:
        ValueError: the payload is no member id.
        PeerRequestRefusedError: the domain error that it ended in.
    """
    if len(payload) != 8:
        raise ValueError(f"{len(payload)} bytes are no member id")
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        await promote(NodeId(int.from_bytes(payload, "big")), deadline_s)
    except RequestError as error:
        raise PeerRequestRefusedError(type(error).__name__, str(error)) from error
    return b""


def error_named(name: str) -> RequestError:
    """The domain error of that class name; a timeout for a name that this version does not know."""
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, RequestError):
        return found()
    return RequestTimeoutError()
