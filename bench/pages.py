"""A member's own word on its memory: the page /debug/raft, read once or over time.

Purpose: what the log window held while nobody but the member could know. `page` and `metrics` read once; `WindowWatch` reads the page each
`INTERVAL_S` on a thread of its own.

Rules: a member that does not answer (it is down, or starting) gives None, and no look. Monotonic seconds, bytes.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

INTERVAL_S: Final = 0.2
TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The log window at one moment."""

    at_s: float
    entries: int
    size_bytes: int


def _get(port: int, path: str) -> bytes | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):  # down, starting, or cut off while it ended
        return None
    finally:
        connection.close()


def page(port: int) -> dict[str, Any] | None:
    """/debug/raft of the member with that HTTP port; None when it does not answer."""
    text = _get(port, "/debug/raft")
    return None if text is None else json.loads(text)


def metrics(port: int) -> dict[str, float]:
    """Every sample of /metrics, those of one name added up over their labels.

    Raises:
        RuntimeError: the member does not answer.
    """
    text = _get(port, "/metrics")
    if text is None:
        raise RuntimeError(f"no metrics on port {port}")
    samples: dict[str, float] = {}
    for line in text.decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            samples[name] = samples.get(name, 0.0) + float(value)
    return samples


def largest(looks: Sequence[Look], from_s: float, to_s: float) -> Look | None:
    """The look with the most bytes in the closed [from_s, to_s]; None without any."""
    return max((each for each in looks if from_s <= each.at_s <= to_s), key=lambda each: each.size_bytes, default=None)


class WindowWatch:
    """Looks at one member's window until its block is left."""

    def __init__(self, port: int, interval_s: float = INTERVAL_S) -> None:
        self.looks: list[Look] = []
        self._port = port
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="window-watch")

    def __enter__(self) -> WindowWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            shown = page(self._port)
            if shown is not None:
                window = shown["window"]
                self.looks.append(Look(at_s=time.monotonic(), entries=window["entries"], size_bytes=window["bytes"]))
