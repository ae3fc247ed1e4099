"""How many files this process may have open, and who may have how many of them.

Purpose: a connection is a file descriptor. A client that opens more of them than the process may have would take those away from the
write-ahead log, the store and the other members; so what comes from outside is bounded, and the bounds leave a reserve.

Rules
- `raise_limit` sets the soft limit to the hard one, once, at the start: nothing in this process uses select(2), for which the soft limit
  exists.
- `divide` is a pure function: an eighth each for the HTTP port and for connections from other members (256 at most), `OWN_FILES` for the
  process itself, and the rest for clients, up to what was asked for.

Source: getrlimit(2); systemd's and Go's handling of RLIMIT_NOFILE.
Caveat: where there is no limit at all the kernel's own (fs.nr_open) is in force; `MOST_FILES` stands for it.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

from kvserver.errors import KvError

OWN_FILES: Final = 96
"""The interpreter, loop and gRPC's pollers, WAL, store, snapshots, log files, connections to other members, and those just accepted and
about to be closed: 50 to 60 are open in a member of three at work."""
LEAST_FILES: Final = 160
MOST_FILES: Final = 1 << 20
_MOST_OF_A_KIND: Final = 256


class TooFewFilesError(KvError):
    """The process may open too few files to be a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFiles:
    """How many connections there may be, by where they come from; `limit` is what the process may have open at all."""

    limit: int
    clients: int
    http: int
    peers: int


def raise_limit() -> int:
    """Let this process open as many files as it may let itself; returns how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return min(MOST_FILES, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the kernel's own limit is lower: what there is must do
        return soft
    return wanted


def divide(limit: int, *, max_connections: int) -> OpenFiles:
    """Who may have how many of `limit` files; clients at most `max_connections`.

    Raises:
        TooFewFilesError: `limit` is below `LEAST_FILES`.
    """
    if limit < LEAST_FILES:
        raise TooFewFilesError(f"this process may open {limit} files, and {LEAST_FILES} are the least that it needs: raise ulimit -n")
    each = min(_MOST_OF_A_KIND, limit // 8)
    return OpenFiles(limit=limit, clients=min(max_connections, limit - OWN_FILES - 2 * each), http=each, peers=each)
