"""What can go wrong between two members. None of it stops the node: a connection ends, and the link dials again.

Rules: one base, leaf classes carry fields; every text is one line that an operator can act on.
"""

from __future__ import annotations

from kvserver.errors import KvError
from kvserver.peer.refusal import Refusal


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
