"""Identifiers that every room of kvserver shares.

Rules: `NewType`s and small frozen values only; imports nothing but raft's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from raft.types import ConfState, Index, NodeId, Term

__all__ = ["ClusterId", "ConfState", "Index", "LeaseId", "Member", "NodeId", "Revision", "Term"]

Revision = NewType("Revision", int)
"""A main revision of the store: 1 in an empty store, plus one per mutating request."""

LeaseId = NewType("LeaseId", int)
"""A lease; 0 means "no lease"."""

ClusterId = NewType("ClusterId", int)
"""An unsigned 64-bit number derived from the initial members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of the cluster, as MemberList shows it; `client_urls` are empty until it has published itself, and so may be `name`.

    `kinds_version` is which kinds of commands it said to know when it did (commands.KINDS_VERSION); 0 if it didn't say.
    """

    id: NodeId
    name: str = ""
    peer_urls: tuple[str, ...] = ()
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False
    kinds_version: int = 0
