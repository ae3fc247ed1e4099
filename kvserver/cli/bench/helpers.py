"""What runs beside the clients: the progress bar, and compaction at an interval.

Rules: the bar is for a terminal on stderr, one line, redrawn `REDRAWS_PER_S` times a second and cleared at the end; elsewhere there is
none. Compaction is etcd's benchmark's: every interval, up to a distance below the newest revision; its failures are counted among the
puts'."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, Protocol, TextIO

from kvserver.cli.bench.loads import Kind
from kvserver.cli.bench.runner import Run
from kvserver.client import ClientError
from kvserver.pb import rpc_pb2 as pb

REDRAWS_PER_S: Final = 5
PROBE_KEY: Final = b"foo"
_BAR_WIDTH: Final = 30
_CLEAR: Final = "\r\x1b[K"


def render(ended: int, total: int, elapsed_s: float) -> str:
    """`1200 / 5000 [#######.......] 24% 600/s, 6 s left`."""
    share = min(1.0, ended / total)
    filled = int(share * _BAR_WIDTH)
    rate = ended / elapsed_s if elapsed_s > 0 else 0.0
    left = f", {(total - ended) / rate:.0f} s left" if rate else ""
    return f"{ended} / {total} [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {int(share * 100)}% {rate:.0f}/s{left}"


class ProgressBar:
    """Shows how far a run is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    async def show(self, run: Run) -> None:
        """Redraw until cancelled."""
        if not self._stream.isatty():
            return
        try:
            while True:
                self._write(_CLEAR + render(run.ended, run.total, (time.monotonic_ns() - run.began_ns) / 1e9))
                await asyncio.sleep(1 / REDRAWS_PER_S)
        finally:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        """A terminal that went away is no reason to stop measuring."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


class CompactingClient(Protocol):
    """What compaction needs of a client."""

    async def get(self, key: bytes) -> pb.RangeResponse:
        """Read one key."""

    async def compact(self, revision: int) -> pb.CompactionResponse:
        """Forget the history below a revision."""


class Compactor:
    """Compacts every `interval_s`, up to `distance` revisions below the newest."""

    def __init__(self, client: CompactingClient, *, interval_s: float, distance: int) -> None:
        self._client = client
        self._interval_s = interval_s
        self._distance = distance
        self._compacted = 0

    async def keep_compacting(self, run: Run) -> None:
        """Compact until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._compact()
            except ClientError as error:
                run.tallies[Kind.WRITE].fail(f"compaction: {error}")

    async def _compact(self) -> None:
        revision = (await self._client.get(PROBE_KEY)).header.revision - self._distance
        if revision > self._compacted:
            await self._client.compact(revision)
            self._compacted = revision
