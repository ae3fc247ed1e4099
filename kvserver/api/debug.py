"""The Debug service: what a member says of itself to its operators, over the one port that every client knows.

Rules: answered by any member that serves clients, in any state, from what it has at hand: no quorum, no leader, no disk. The answer is the
page that HTTP shows as /debug/raft, byte for byte; it holds sizes and positions, no keys and no values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from kvserver.api.guard import Guard
from kvserver.api.protocols import Call
from kvserver.pb import debug_pb2

__all__ = ["DebugService", "DebugSource", "encode_page"]


class DebugSource(Protocol):
    """Where the pages come from."""

    def raft_page(self) -> Mapping[str, object]:
        """This member, its log window and its peers, now: values that JSON has. Called on the loop, must not block."""


class DebugService:
    """The handlers of `Debug`."""

    def __init__(self, *, guard: Guard, source: DebugSource) -> None:
        self._guard = guard
        self._source = source

    async def memory(self, request: debug_pb2.MemoryRequest, call: Call) -> debug_pb2.MemoryResponse:
        """This member's page."""
        self._guard.admit(call, for_learner=True)
        return debug_pb2.MemoryResponse(json=encode_page(self._source.raft_page()))


def encode_page(page: Mapping[str, object]) -> bytes:
    """The page as one line of JSON, in UTF-8."""
    return json.dumps(page, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
