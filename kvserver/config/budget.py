"""One figure for the memory of a member, and the limits that follow from it (`--memory-budget`).

Purpose: `derive` splits a budget into the limits of the parts that hold bytes. A pure function: the parser applies it to what was not given
as a flag of its own; docs/memory.md shows the shares.

    part                          share of what is left after BASE_BYTES     the limit counts
    log window                    what the others leave (8/32 at most,       twice: a snapshot on its way doubles it
                                  unless they reach their maxima)
    writes of clients             5/32, at most 256 MiB                      once: the request, or the entry made from it
    other requests                a quarter of those, four largest at least  once
    answers                       3/32, at most 256 MiB                      once (the gate counts both forms of an answer)
    events that wait for watchers 1/32, at most 16 MiB                       once
    uncommitted tail              3/32, at most 256 MiB                      once
    store's write buffer          4/32, at most 128 MiB                      twice: the pages that it is written to
    queues to the peers           6/32, at most 128 MiB each                 once for each peer
    entries read back from disk   2/32, at most 8 MiB or a largest request   once

Rules: bytes; nothing is rounded up. A share that reaches its maximum leaves the rest to the log window, the one part in which more is
always worth something.

Invariants (tests/kvserver/config/test_budget.py): the parts add up to the budget, but for a byte per part and peer; no part shrinks when
the budget grows; every part can hold a largest request (a watcher's stream takes one message of any size).

Caveats: the budget is that of anonymous memory. Pages of the store (memory-mapped) and of the WAL are the kernel's, and come and go with
what is free. An answer that is larger than all of its part goes alone, and exceeds the budget (docs/memory.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvserver.config.errors import ConfigError

__all__ = ["BASE_BYTES", "LEAST_PEERS", "MAX_BUDGET_BYTES", "Budget", "derive", "least_budget_bytes", "other_request_bytes"]

_MIB: Final = 1 << 20
BASE_BYTES: Final = 48 * _MIB
"""The interpreter, the libraries, what belongs to connections and what the allocator keeps: 30 to 45 MB, measured."""
LEAST_PEERS: Final = 2
"""A member that starts alone may become one of three."""
MAX_BUDGET_BYTES: Final = 1 << 40

_LEAST_REST_BYTES: Final = 48 * _MIB
_REQUESTS_IN_REST: Final = 24
"""So many largest requests fit into what is divided: the smallest part then holds more than one of them."""
OTHER_REQUESTS: Final = 4
"""So many largest requests must find room that are no writes: two of what grpcio receives at most (rpc.grpc_server)."""
_REQUESTS_MAX_BYTES: Final = 256 * _MIB
_UNCOMMITTED_MAX_BYTES: Final = 256 * _MIB
_BUFFER_MAX_BYTES: Final = 64 * _MIB
_QUEUE_MAX_BYTES: Final = 128 * _MIB
_READ_CACHE_MAX_BYTES: Final = 8 * _MIB
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
    wal_read_cache_bytes: int

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
            "wal_read_cache": self.wal_read_cache_bytes,
        }

    @property
    def sum_bytes(self) -> int:
        """What all parts may hold together."""
        return sum(self.parts().values())


def other_request_bytes(inflight_bytes: int, receive_limit_bytes: int) -> int:
    """Room for requests that are no writes, beside `inflight_bytes` for writes."""
    return max(OTHER_REQUESTS * receive_limit_bytes, inflight_bytes // 4)


def least_budget_bytes(receive_limit_bytes: int, *, peers: int = LEAST_PEERS) -> int:
    """The smallest budget with which a member with so many peers works, whose clients may send messages of `receive_limit_bytes`."""
    return BASE_BYTES + max(_LEAST_REST_BYTES, _REQUESTS_IN_REST * receive_limit_bytes) * max(LEAST_PEERS, peers) // LEAST_PEERS


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
    rest_bytes = budget_bytes - BASE_BYTES
    requests_bytes = min(_REQUESTS_MAX_BYTES, rest_bytes * 5 // 32)
    answers_bytes = min(_REQUESTS_MAX_BYTES, rest_bytes * 3 // 32)
    watch_bytes = min(_WATCH_MAX_BYTES, rest_bytes // 32)
    others_bytes = other_request_bytes(requests_bytes, receive_limit_bytes)
    uncommitted_bytes = min(_UNCOMMITTED_MAX_BYTES, rest_bytes * 3 // 32)
    buffer_bytes = 2 * min(_BUFFER_MAX_BYTES, rest_bytes * 2 // 32)
    queues_bytes = min(peers * _QUEUE_MAX_BYTES, rest_bytes * 6 // 32)
    cache_bytes = min(max(_READ_CACHE_MAX_BYTES, receive_limit_bytes), rest_bytes * 2 // 32)
    others = requests_bytes + answers_bytes + watch_bytes + others_bytes + uncommitted_bytes + buffer_bytes + queues_bytes + cache_bytes
    return Budget(
        total_bytes=budget_bytes,
        peers=peers,
        log_window_bytes=(rest_bytes - others) // 2,
        inflight_bytes=requests_bytes,
        other_request_bytes=others_bytes,
        answer_bytes=answers_bytes,
        watch_bytes=watch_bytes,
        uncommitted_bytes=uncommitted_bytes,
        backend_buffer_bytes=buffer_bytes // 2,
        peer_queue_bytes=queues_bytes // peers,
        wal_read_cache_bytes=cache_bytes,
    )
