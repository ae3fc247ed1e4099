"""What can go wrong between two members. None of it stops the node: a connection ends, and the link dials again.

Rules: one base, leaf classes carry fields; every text is one line that an operator can act on.
"""

from __future__ import annotations

from typing import ClassVar

from kvserver.errors import KvError
from kvserver.peer.refusal import Refusal
from kvserver.types import NodeId


class PeerError(KvError):
    """Base of the peer transport's errors."""


class FrameError(PeerError):
    """The bytes on a connection are not a frame of this protocol, or not one that may come now: the connection is closed."""


class RefusedError(PeerError):
    """A hello was answered with a refusal, or by somebody we don't accept; `reason` says why, the text is for the log."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class ConnectionClosedError(PeerError):
    """The connection ended while something was still expected from it."""


class PeerRequestError(PeerError):
    """A request to a peer has no answer. `retryable`: the peer has certainly not begun with it, so it may be sent again."""

    retryable: ClassVar[bool] = False


class PeerNotConnectedError(PeerRequestError):
    """The peer is unknown, or no connection to it is up: nothing was sent."""

    retryable = True

    def __init__(self, peer_id: NodeId) -> None:
        super().__init__(f"member {peer_id:x} is not connected")
        self.peer_id = peer_id


class PeerRequestOverflowError(PeerRequestError):
    """Too many requests to the peer, or too many bytes of them, are unanswered, here or there: this one was not looked at."""

    retryable = True

    def __init__(self, peer_id: NodeId, text: str) -> None:
        super().__init__(f"request to member {peer_id:x}: {text}")
        self.peer_id = peer_id


class PeerRequestLostError(PeerRequestError):
    """The connection ended before the answer: the outcome is unknown."""

    def __init__(self, peer_id: NodeId, text: str) -> None:
        super().__init__(f"request to member {peer_id:x} lost: {text}")
        self.peer_id = peer_id


class PeerRequestTimeoutError(PeerRequestError):
    """No answer in time: the outcome is unknown."""

    def __init__(self, peer_id: NodeId, text: str) -> None:
        super().__init__(f"request to member {peer_id:x}: {text}")
        self.peer_id = peer_id


class PeerRequestRefusedError(PeerRequestError):
    """The peer answered with an error: raised by its handler there, and by `Transport.request` here.

    `code` is one ASCII word of at most 64 characters for programs, `text` one line for people (cut to 1 KiB on the wire). The code
    `INTERNAL` is the transport's own: the peer's handler failed, its log says how, and what it had begun may still happen.
    """

    INTERNAL: ClassVar[str] = "internal"
    UNKNOWN_KIND: ClassVar[str] = "unknown_kind"

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text

    @classmethod
    def unknown_kind(cls, kind: int) -> PeerRequestRefusedError:
        """What a handler raises for a kind that it doesn't know."""
        return cls(cls.UNKNOWN_KIND, f"requests of kind {kind} are not known to this member")
