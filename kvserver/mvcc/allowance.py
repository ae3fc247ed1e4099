"""What a read may cost before it is given up, and what it has cost.

Rules: keys are those that a range looks at, also deleted ones that it has to pass; bytes those that its answer holds while it is built:
each key value's record and a fixed overhead. A read that exceeds its bytes goes on counting, without building, so that `used_bytes` says
what it would need (or nearly: of keys that it didn't keep only the overhead). What was built is of no use then: whoever gave the allowance
checks it at the end.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KEY_OVERHEAD_BYTES", "UNLIMITED", "Allowance", "RangeTooLargeError"]

KEY_OVERHEAD_BYTES: Final = 384
"""What a key in an answer costs beside its record: the message, its fields, and what is known of it while the range is scanned (CPython
3.11 and upb, rather too much than too little)."""

UNLIMITED: Final = 1 << 62


class RangeTooLargeError(Exception):
    """A read exceeds its allowance: give it more, or run it where it disturbs nobody. Never leaves the store.

    `needed_bytes` is what it costs, None if it was given up before that was known.
    """

    def __init__(self, needed_bytes: int | None) -> None:
        super().__init__(f"the answer needs {needed_bytes} bytes" if needed_bytes is not None else "the range has too many keys")
        self.needed_bytes = needed_bytes


class Allowance:
    """The keys and bytes of one read; `used_bytes` is what it has cost so far.

    `builds=False` only measures: what it would cost is counted as exactly (up to the limit), and no answer is built.
    """

    __slots__ = ("builds", "keys", "limit_bytes", "used_bytes")

    def __init__(self, *, keys: int = UNLIMITED, limit_bytes: int = UNLIMITED, builds: bool = True) -> None:
        self.keys = keys
        self.limit_bytes = limit_bytes
        self.builds = builds
        self.used_bytes = 0

    @property
    def is_exceeded(self) -> bool:
        """The answer is larger than allowed."""
        return self.used_bytes > self.limit_bytes

    def touch_key(self) -> None:
        """A range looks at one more key. Raises RangeTooLargeError."""
        self.keys -= 1
        if self.keys < 0:
            raise RangeTooLargeError(None)

    def charge(self, size_bytes: int) -> bool:
        """So many bytes more; says whether they may be built."""
        self.used_bytes += size_bytes
        return self.used_bytes <= self.limit_bytes

    def check(self) -> None:
        """The read is at its end. Raises RangeTooLargeError if it has cost too much."""
        if self.is_exceeded:
            raise RangeTooLargeError(self.used_bytes)
