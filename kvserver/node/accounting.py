"""Whose bytes these are: the memory of one member by owner, as far as the member itself counts it.

Rules: counted when asked, on the loop, from figures that the owners keep anyway; nothing is walked but what is under way. Every owner has a
bound (docs/memory.md). The same bytes object may stand in several places (a proposal, the unstable tail, the log window and a peer's queue
share the data of one entry), and each owner counts what it holds on to: the sum is an upper bound of what they cost together.

Caveat: the interpreter, libraries, sockets and the C allocator's own memory have no owner here: RSS is more than the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvserver.node.node import Node

WAITING_READ_BYTES: Final = 2 * 1024
"""What a read that waits for its round costs: future, timer, coroutine frames and the request (CPython 3.11, measured: 1,850); what grpcio
holds for its call is not in it."""

LEASE_BYTES: Final = 300
"""What the leader keeps of one lease: its deadline, and its place in the heap (CPython 3.11, measured: 235)."""

OWNERS: Final = (
    "log_window",
    "wal_read_cache",
    "unstable_tail",
    "proposals",
    "applying",
    "store_buffer",
    "peer_queues",
    "snapshot_transfers",
    "reads_waiting",
    "held_appends",
    "held_proposals",
    "leases",
    "watch",
    "requests",
    "answers",
    "calls",
)
"""Every owner, in the order in which they are shown. The last three belong to rooms above, which tell the node (`Node.holders`)."""


def accounted_bytes(node: Node) -> dict[str, int]:
    """Bytes by owner, now: one figure for each of `OWNERS`."""
    figures = (
        node.window.size_bytes,
        node.read_cache_bytes,
        node.driver.raw.unstable_bytes,
        node.proposals.pending_bytes,
        node.apply_queue.queued_bytes,
        node.store.buffered_bytes,
        sum(peer_queues(node).values()),
        node.transport.snapshot_buffer_bytes,
        node.reads.waiting_count * WAITING_READ_BYTES,
        node.inflow.held_bytes,
        node.forwarded.held_bytes,
        node.leases.keeper.known_count * LEASE_BYTES,
        node.watch.held_bytes,
        _told(node.holders, "requests"),
        _told(node.holders, "answers"),
        _told(node.holders, "calls"),
    )
    return dict(zip(OWNERS, figures, strict=True))


def _told(holders: Mapping[str, Callable[[], int]], owner: str) -> int:
    figure = holders.get(owner)
    return 0 if figure is None else figure()


def peer_queues(node: Node) -> dict[int, int]:
    """Bytes that wait to be sent, by peer."""
    return {peer: node.transport.stats(peer).queued_bytes for peer in node.transport.peers}
