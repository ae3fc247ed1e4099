"""kvserver with one real mistake in it, for runs that must end in violations.

    python tests/chaos/planted_server.py MISTAKE <flags of kvserver>

Rules: every mistake is a function in `MISTAKES` that patches this process before the server starts; everything else is the product. A
mistake reaches as little as the name says.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_SECTOR_BYTES: Final = 512
_LOST_SECTORS: Final = 8


def commit_without_quorum(_: list[str]) -> None:
    """The leader takes what it holds itself for committed: acknowledged before a quorum has it."""
    import raft.tracker

    raft.tracker.majority_index = max  # type: ignore[assignment]


def read_without_index(_: list[str]) -> None:
    """Linearizable reads are served as serializable ones."""
    from kvserver.node.reads import Reads

    async def at_once(self: Reads, deadline_s: float) -> None:
        del self, deadline_s

    Reads.wait_linearizable = at_once  # type: ignore[method-assign]


def leader_reads_unconfirmed(_: list[str]) -> None:
    """Whoever believes to lead answers linearizable reads without asking a quorum whether it still does."""
    from kvserver.node.reads import Reads

    confirmed = Reads.wait_linearizable

    async def trusting(self: Reads, deadline_s: float) -> None:
        sink: Any = self._sink
        if not sink.is_leader:
            await confirmed(self, deadline_s)

    Reads.wait_linearizable = trusting  # type: ignore[method-assign]


def lose_log_tail(flags: list[str]) -> None:
    """A start finds the last sectors of the log empty, as after a disk that acknowledged an fsync and lost it."""
    data_dir = next(flag.split("=", 1)[1] for flag in flags if flag.startswith("--data-dir="))
    segments = sorted(Path(data_dir, "member", "wal").glob("*.wal"))
    if not segments:
        return
    data = bytearray(segments[-1].read_bytes())
    used = len(data.rstrip(b"\0"))
    start = max(4, used // _SECTOR_BYTES + 1 - _LOST_SECTORS) * _SECTOR_BYTES
    if start < used:
        data[start:used] = bytes(used - start)
        segments[-1].write_bytes(bytes(data))


def apply_twice(_: list[str]) -> None:
    """Now and then a put is applied two times, by all members alike."""
    from kvserver.mvcc import Mvcc

    once = Mvcc.put

    def twice(self: Mvcc, request: Any) -> Any:
        answer = once(self, request)
        return once(self, request) if answer.header.revision % 97 == 0 else answer

    Mvcc.put = twice  # type: ignore[method-assign]


def replay_one_entry_too_many(_: list[str]) -> None:
    """After a start the last applied entry is applied again, if there is one behind the founding ones."""
    from kvserver.apply.store import Store

    load = Store._load

    def one_less(self: Any) -> None:
        load(self)
        if self._index > 20:
            self._index -= 1
            self._opened_index -= 1

    Store._load = one_less  # type: ignore[method-assign]


def skip_an_entry_at_start(_: list[str]) -> None:
    """The first command that is applied after a start has no effect, unless it is among the first ever."""
    from kvserver.apply import Applier

    apply_slice = Applier.apply_slice
    count = itertools.count()

    def skipping(self: Applier, index: Any, term: Any, data: bytes) -> Any:
        return apply_slice(self, index, term, b"" if data and index > 20 and next(count) == 0 else data)

    Applier.apply_slice = skipping  # type: ignore[method-assign]


def compares_hold(_: list[str]) -> None:
    """Every compare of a transaction is true."""
    import kvserver.mvcc.write

    kvserver.mvcc.write.holds = lambda *_: True  # type: ignore[attr-defined]


def forget_versions(_: list[str]) -> None:
    """A put of a key that was deleted goes on counting its version where it had ended."""
    from kvserver.mvcc.write import WriteTxn

    store = WriteTxn._store

    def counting(self: Any, key: bytes, old: Any, value: bytes, lease: int) -> None:
        store(self, key, old if old is None or old.version else old._replace(version=1, create_revision=2), value, lease)

    WriteTxn._store = counting  # type: ignore[method-assign]


MISTAKES: Final[dict[str, Callable[[list[str]], None]]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        commit_without_quorum,
        read_without_index,
        leader_reads_unconfirmed,
        lose_log_tail,
        apply_twice,
        replay_one_entry_too_many,
        skip_an_entry_at_start,
        compares_hold,
        forget_versions,
    )
}


def main(arguments: list[str]) -> int:
    """Plant the mistake and run the server; returns its exit code."""
    from kvserver.__main__ import run

    mistake, *flags = arguments
    MISTAKES[mistake](flags)
    return run(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
