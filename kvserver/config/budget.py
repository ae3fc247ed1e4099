"""One figure for the memory of a member, and the limits that follow from it (`--memory-budget`).

Purpose: `derive` splits a budget into the limits of the parts that hold bytes: the first two below as they are, and what is left by weight.
A pure function: the parser applies it to what was not given as a flag of its own; docs/memory.md shows the shares.

    part                          size                                         the limit counts
    other requests                four largest                                 once
    what comes from members       a largest frame and `PEER_REQUEST_BYTES`     once for each peer
                                  for each of them
    writes of clients             3 weights, at most 128 MiB                   once: the request, or the entry made from it
    uncommitted tail              members times the writes                     once
    answers                       3 weights, at most 256 MiB                   once (the gate counts both forms of an answer)
    store's write buffer          4 weights, at most 128 MiB                   twice: the pages that it is written to
    queues to the peers           2 weights, at most 128 MiB for each          once for each peer
    entries read back from disk   2 weights, at most 8 MiB or a largest        once
                                  request
    calls and connections         8 weights, at most 512 MiB                   a fifth at `CONNECTION_BYTES` each; of the rest a quarter
                                                                               calls that are served, twice as many that gRPC holds
                                                                               before, and a quarter streams, at `CALL_BYTES` each
    events that wait for watchers 1 weight, at most 16 MiB                     once
    log window                    4 weights, and what the others leave         twice: a snapshot on its way doubles it

Rules: bytes; nothing is rounded up. A share that reaches its maximum leaves the rest to the log window, the one part in which more is
always worth something.

Invariants (tests/kvserver/config/test_budget.py): the parts add up to the budget, but for a byte per part and peer; no part shrinks when
the budget grows; every part but the watchers' holds a largest request; the leader's tail can hold what the clients of all members may have
under way (each member lets in as much as its own gate for writes takes, and forwards it).

Caveats: the budget is that of anonymous memory. Pages of the store (memory-mapped) and of the WAL are the kernel's, and come and go with
what is free. An answer that is larger than all of its part goes alone, and exceeds the budget (docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvserver.config.errors import ConfigError
from kvserver.config.urls import ClusterMember

__all__ = [
    "BASE_BYTES",
    "CALL_BYTES",
    "CONNECTION_BYTES",
    "LEAST_PEERS",
    "MAX_BUDGET_BYTES",
    "PENDING_PER_REQUEST",
    "Budget",
    "calls_bytes",
    "derive",
    "least_budget_bytes",
    "other_members",
    "other_request_bytes",
    "peer_frame_bytes",
    "peer_receive_bytes",
]

_MIB: Final = 1 << 20
BASE_BYTES: Final = 40 * _MIB
"""The interpreter, the libraries and what the allocator keeps: 31 MiB at the start, measured."""
LEAST_PEERS: Final = 2
"""A member that starts alone may become one of three."""
MAX_BUDGET_BYTES: Final = 1 << 40
CALL_BYTES: Final = 22 * 1024
"""A call: 16 KiB in gRPC before its handler runs, and 6 KiB of task, coroutines and context (measured, with a small message)."""
PENDING_PER_REQUEST: Final = 2
"""gRPC may hold so many calls for each one that is served: a client exceeds its bound on streams for a moment when a burst begins."""
CONNECTION_BYTES: Final = 14 * 1024
"""A client's connection that does nothing (measured)."""
APPEND_BYTES: Final = _MIB
"""What entries of several requests make one message of raft's: as much at most, or one entry."""
PEER_REQUEST_BYTES: Final = _MIB
"""Requests of members to each other and the answers, per peer: half a MiB each way (peer.request_frames)."""
BUDGET_WINDOW_BYTES: Final = 4 * 1024
"""What a client may send ahead on one stream, with a budget."""

_LEAST_REST_BYTES: Final = 56 * _MIB
OTHER_REQUESTS: Final = 4
"""So many largest requests must find room that are no writes: two of what grpcio receives at most (rpc.grpc_server)."""
_WRITES_MAX_BYTES: Final = 128 * _MIB
_ANSWERS_MAX_BYTES: Final = 256 * _MIB
_BUFFER_MAX_BYTES: Final = 64 * _MIB
_QUEUE_MAX_BYTES: Final = 128 * _MIB
_READ_CACHE_MAX_BYTES: Final = 8 * _MIB
_CALLS_MAX_BYTES: Final = 512 * _MIB
_WATCH_MAX_BYTES: Final = 16 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits that together make `total_bytes`; `peers` is the number of other members that were counted with."""

    total_bytes: int
    peers: int
    log_window_bytes: int
    inflight_bytes: int
    other_request_bytes: int
    answer_bytes: int
    watch_bytes: int
    uncommitted_bytes: int
    backend_buffer_bytes: int
    peer_queue_bytes: int
    peer_receive_bytes: int
    wal_read_cache_bytes: int
    calls_bytes: int

    def parts(self) -> dict[str, int]:
        """What each part may hold, with its factor: what adds up to the budget."""
        return {
            "base": BASE_BYTES,
            "log_window_and_pins": 2 * self.log_window_bytes,
            "writes": self.inflight_bytes,
            "other_requests": self.other_request_bytes,
            "answers": self.answer_bytes,
            "watch": self.watch_bytes,
            "uncommitted": self.uncommitted_bytes,
            "store_buffer_and_pages": 2 * self.backend_buffer_bytes,
            "peer_queues": self.peers * self.peer_queue_bytes,
            "from_peers": self.peers * self.peer_receive_bytes,
            "wal_read_cache": self.wal_read_cache_bytes,
            "calls_and_connections": self.calls_bytes,
        }

    @property
    def sum_bytes(self) -> int:
        """What all parts may hold together."""
        return sum(self.parts().values())

    @property
    def connections(self) -> int:
        """How many clients may be connected."""
        return self.calls_bytes // 5 // CONNECTION_BYTES

    @property
    def requests(self) -> int:
        """How many calls are served at a time; gRPC may hold `PENDING_PER_REQUEST` times as many before that."""
        return self.calls_bytes // 5 // CALL_BYTES

    @property
    def streams(self) -> int:
        """How many streaming calls may be open."""
        return self.calls_bytes // 5 // CALL_BYTES


def calls_bytes(*, connections: int, requests: int, streams: int) -> int:
    """What so many connections and calls cost."""
    return connections * CONNECTION_BYTES + ((1 + PENDING_PER_REQUEST) * requests + streams) * CALL_BYTES


def other_request_bytes(receive_limit_bytes: int) -> int:
    """Room for requests that are no writes."""
    return OTHER_REQUESTS * receive_limit_bytes


def other_members(cluster: Sequence[ClusterMember]) -> int:
    """How many peers a member counts with that knows this cluster."""
    return max(LEAST_PEERS, len({member.name for member in cluster}) - 1)


def peer_frame_bytes(receive_limit_bytes: int) -> int:
    """The largest frame that a member receives from another: raft's largest message, of several entries or with a largest one."""
    return APPEND_BYTES + receive_limit_bytes


def peer_receive_bytes(receive_limit_bytes: int) -> int:
    """What one other member can make this one hold by sending."""
    return peer_frame_bytes(receive_limit_bytes) + PEER_REQUEST_BYTES


def least_budget_bytes(receive_limit_bytes: int, *, peers: int = LEAST_PEERS) -> int:
    """The smallest budget with which a member with so many peers works, whose clients may send messages of `receive_limit_bytes`."""
    peers = max(LEAST_PEERS, peers)
    fixed_bytes = other_request_bytes(receive_limit_bytes) + peers * peer_receive_bytes(receive_limit_bytes)
    weighed_bytes = -(-receive_limit_bytes * _weights(peers) // 2) + _weights(peers)  # a part of two weights holds a largest request
    return BASE_BYTES + max(_LEAST_REST_BYTES, fixed_bytes + weighed_bytes)


def _weights(peers: int) -> int:
    """All weights together: 22; what this member's clients send and, in the uncommitted tail, those of all members; the queues."""
    return 22 + 3 * (1 + peers + 1) + 2 * peers


def derive(budget_bytes: int, *, receive_limit_bytes: int, peers: int = LEAST_PEERS) -> Budget:
    """Split `budget_bytes`.

    Args:
        receive_limit_bytes: the largest message of a client.
        peers: the other members, as far as they are known; fewer than `LEAST_PEERS` count as that many.

    Raises:
        ConfigError: the budget is too small for that, or beyond `MAX_BUDGET_BYTES`.
    """
    peers = max(LEAST_PEERS, peers)
    least_bytes = least_budget_bytes(receive_limit_bytes, peers=peers)
    if budget_bytes < least_bytes:
        raise ConfigError(
            f"--memory-budget[{budget_bytes}] must be at least {least_bytes}: {BASE_BYTES} are taken before the first request, the rest is "
            f"needed for requests of up to {receive_limit_bytes} bytes (--max-request-bytes) and the queues to {peers} members"
        )
    if budget_bytes > MAX_BUDGET_BYTES:
        raise ConfigError(f"--memory-budget[{budget_bytes}] must be at most {MAX_BUDGET_BYTES}")
    others_bytes = other_request_bytes(receive_limit_bytes)
    weighed_bytes = budget_bytes - BASE_BYTES - others_bytes - peers * peer_receive_bytes(receive_limit_bytes)
    members, spilled_bytes = peers + 1, 0

    def share(weight: int, most_bytes: int) -> int:
        nonlocal spilled_bytes
        bytes_ = weighed_bytes * weight // _weights(peers)
        spilled_bytes += max(0, bytes_ - most_bytes)
        return min(bytes_, most_bytes)

    taken_bytes = share(3 * (1 + members), (1 + members) * _WRITES_MAX_BYTES)  # in, and on the leader
    writes_bytes = taken_bytes // (1 + members)
    answers_bytes = share(3, _ANSWERS_MAX_BYTES)
    buffer_bytes = share(4, 2 * _BUFFER_MAX_BYTES)
    queues_bytes = share(2 * peers, peers * _QUEUE_MAX_BYTES)
    cache_bytes = share(2, max(_READ_CACHE_MAX_BYTES, receive_limit_bytes))
    held_calls_bytes = share(8, _CALLS_MAX_BYTES)
    watch_bytes = share(1, _WATCH_MAX_BYTES)
    window_bytes = share(4, budget_bytes) + spilled_bytes
    return Budget(
        total_bytes=budget_bytes,
        peers=peers,
        log_window_bytes=window_bytes // 2,
        inflight_bytes=writes_bytes,
        other_request_bytes=others_bytes,
        answer_bytes=answers_bytes,
        watch_bytes=watch_bytes,
        uncommitted_bytes=taken_bytes - writes_bytes,
        backend_buffer_bytes=buffer_bytes // 2,
        peer_queue_bytes=queues_bytes // peers,
        peer_receive_bytes=peer_receive_bytes(receive_limit_bytes),
        wal_read_cache_bytes=cache_bytes,
        calls_bytes=held_calls_bytes,
    )
