"""Asking the leader to do what only a leader can: promoting a learner (and, later, keeping leases alive).

Purpose: the two ends of a request between members: encoding it, answering it, and turning a refusal back into the domain error that it was.

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
        raise _error_named(refused.code) from None
    except PeerRequestError as failure:
        raise (NoLeaderError if failure.retryable else TimeoutDueToConnectionLostError) from None


async def answer(kind: int, payload: bytes, *, promote: Callable[[NodeId, float], Awaitable[None]], timeout_s: float) -> bytes:
    """Do what another member asks.

    Raises:
        PeerRequestRefusedError: the domain error that it ended in, or an unknown kind.
    """
    if kind != ForwardKind.PROMOTE_MEMBER or len(payload) != 8:
        raise PeerRequestRefusedError(PeerRequestRefusedError.UNKNOWN_KIND, f"request kind {kind} is not known to this version")
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        await promote(NodeId(int.from_bytes(payload, "big")), deadline_s)
    except RequestError as error:
        raise PeerRequestRefusedError(type(error).__name__, str(error)) from error
    return b""


def _error_named(name: str) -> RequestError:
    """The domain error of that class name; a timeout for a name that this version does not know."""
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, RequestError):
        return found()
    return RequestTimeoutError()
