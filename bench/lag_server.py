"""kvserver with a fine probe of its event loop: every `PROBE_S` it notes how late the loop ran a timer.

    python bench/lag_server.py SAMPLES_FILE <kvserver flags>
    python bench/lag_server.py SAMPLES_FILE --idle              a loop with nothing but the probe, until it is killed

The file gets one line per probe: CLOCK_MONOTONIC in seconds, the lateness in milliseconds, and how much of the time since the probe began
the loop's thread was ready and had no CPU (Linux's schedstat); once a second they are written out.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

import kvserver.server
from kvserver.__main__ import run

PROBE_S: Final = 0.005
WRITE_EVERY_S: Final = 1.0


def waited_s(statistics: int) -> float:
    """How long this thread has been ready to run without a CPU, since it began; from its schedstat."""
    return int(os.pread(statistics, 128, 0).split()[1]) / 1e9


async def probe(path: Path) -> None:
    """Note the lateness of timers until cancelled."""
    samples: list[str] = []
    written_s = time.monotonic()
    statistics = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    with path.open("a") as file:
        while True:
            due_s, waited_before_s = time.monotonic() + PROBE_S, waited_s(statistics)
            await asyncio.sleep(PROBE_S)
            now_s = time.monotonic()
            late_s, waiting_s = max(0.0, now_s - due_s), waited_s(statistics) - waited_before_s
            samples.append(f"{now_s:.4f} {late_s * 1e3:.3f} {waiting_s * 1e3:.3f}\n")
            if now_s - written_s >= WRITE_EVERY_S:
                file.writelines(samples)
                file.flush()
                samples.clear()
                written_s = time.monotonic()


def main() -> int:
    """Run the server with the probe beside it, or the probe alone."""
    path, plain = Path(sys.argv[1]), kvserver.server.serve

    async def serve(*arguments: Any, **options: Any) -> int:
        task = asyncio.get_running_loop().create_task(probe(path), name="probe")
        try:
            return await plain(*arguments, **options)
        finally:
            task.cancel()

    if sys.argv[2:] == ["--idle"]:
        uvloop.run(probe(path))
    kvserver.server.serve = serve
    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
