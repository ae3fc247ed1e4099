"""One request that is being written, slice by slice: what its caller drives.

Rules: between two slices the tables may be read, and what is written may be committed; nothing else may be written but by compaction.
After the last slice the revision has moved. A request that is let go of (the store is closed or replaced) leaves what unfinished.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from google.protobuf.message import Message

from kvserver.mvcc.write import WriteTxn

Steps = Generator[None, None, Message]


class Writing:
    """A request on its way into the tables.

    Args:
        steps: what writes; yields between two slices.
        on_pause: told after each slice but the last.
        on_end: told after the last, with nothing left to write.
    """

    __slots__ = ("_on_end", "_on_pause", "_steps", "_txn")

    def __init__(self, txn: WriteTxn, steps: Steps, *, on_pause: Callable[[WriteTxn], None], on_end: Callable[[WriteTxn], None]) -> None:
        self._txn = txn
        self._steps = steps
        self._on_pause = on_pause
        self._on_end = on_end

    def run_slice(self) -> Message | None:
        """Write the next slice; the answer with the last one, None before. The first one raises what the request is refused with."""
        try:
            next(self._steps)
        except StopIteration as end:
            answer: Message = end.value
            self._on_end(self._txn)
            return answer
        self._on_pause(self._txn)
        return None

    def run(self) -> Message:
        """Write all of it at once."""
        while True:
            answer = self.run_slice()
            if answer is not None:
                return answer
