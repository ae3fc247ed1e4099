"""How a simulated member serves entries below memory: the node's own `LogHistory` and `LogStorage` over the real log of `file_wal`.

Rules: on the seeds that have a real log and retain something of it. Reads happen some time after they were asked for, and are heard of some
time later, so that compaction, releases, elections and snapshots come in between; the floor follows a release late. Events of an earlier
life never arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from kvserver.logs import Logger, StreamOutput
from kvserver.metrics import Metrics
from kvserver.node.log_history import LogHistory
from kvserver.node.log_storage import LogStorage
from kvserver.node.log_window import LogWindow
from kvserver.node.term_runs import TermRuns
from kvserver.testing.sim.file_wal import FileWal
from kvserver.testing.sim.kernel import US_PER_S, Action, ViolationError

_BLOCK_BYTES: Final = 4_096
_CACHE_BYTES: Final = 16_384
_MAX_DELAY_US: Final = 400_000


class Owner(Protocol):
    """The member, as far as its reading goes."""

    def after(self, delay_us: int, action: Action, *arguments: object) -> None: ...
    def between(self, low_us: int, high_us: int) -> int: ...
    def now_s(self) -> float: ...


class _Thread:
    """Reads are done later, one at a time, and heard of later still."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def submit(self, work: Callable[[], object], done: Callable[[Any, BaseException | None], None]) -> None:
        """As `Worker.submit`."""
        self._owner.after(self._owner.between(100, _MAX_DELAY_US), self._run, work, done)

    def _run(self, work: Callable[[], object], done: Callable[[Any, BaseException | None], None]) -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as failure:  # noqa: BLE001 - as Worker does
            error = failure
        self._owner.after(self._owner.between(100, _MAX_DELAY_US), done, result, error)


class _Timer:
    __slots__ = ("_is_cancelled",)

    def __init__(self) -> None:
        self._is_cancelled = False

    def cancel(self) -> None:
        """Don't call."""
        self._is_cancelled = True

    def run(self, callback: Callable[[], None]) -> None:
        """It is time."""
        if not self._is_cancelled:
            callback()


class _Clock:
    """The member's clock, as a loop's."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def time(self) -> float:
        """Seconds."""
        return self._owner.now_s()

    def call_later(self, delay: float, callback: Callable[[], None], /) -> _Timer:
        """As a loop's."""
        timer = _Timer()
        self._owner.after(int(delay * US_PER_S) + 1, timer.run, callback)  # never at once: time would stand still
        return timer


class _Alarm:
    """Takes the history's lines: it logs nothing but damage, of which there is none here."""

    def write(self, text: str) -> int:
        """One line."""
        raise ViolationError("serving from the WAL", text.strip())

    def flush(self) -> None:
        """Nothing is kept."""


def make_storage(owner: Owner, wal: FileWal, window: LogWindow, on_ready: Callable[[], None], on_read: Callable[[], None]) -> LogStorage:
    """Raft's storage over `window` and the log that `wal` has opened. `on_read` is told of each answer of the disk."""

    def ready() -> None:
        on_read()
        on_ready()

    def fail(error: Exception) -> None:
        raise ViolationError("serving from the WAL", repr(error)) from error

    real = wal.real
    history = LogHistory(
        first_index=real.first_index,
        terms=TermRuns(real.term_runs()),
        reader=real.history(wal.files),
        worker=_Thread(owner),
        clock=_Clock(owner),
        cache_bytes=_CACHE_BYTES,
        block_bytes=_BLOCK_BYTES,
        metrics=Metrics(version="simulated"),
        log=Logger(StreamOutput([_Alarm()])),  # type: ignore[list-item]
        on_ready=ready,
        on_fatal=fail,
    )
    return LogStorage(window, history)
