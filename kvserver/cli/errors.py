"""How kvctl ends: exit codes and the one error that carries one.

Rules: the codes are etcdctl's. Nothing but `main` ends the process; everything else raises `CliError` with a text for people.
"""

from __future__ import annotations

from enum import IntEnum

from kvserver.errors import KvError


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    ERROR = 1
    BAD_CONNECTION = 2
    INVALID_INPUT = 3
    BAD_FEATURE = 4
    TRANSFER_FAILED = 5
    BAD_ARGUMENTS = 128
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class CliError(KvError):
    """The command can't go on; `text` goes to stderr behind "Error: ", `code` to the shell. An empty text says nothing."""

    def __init__(self, text: str, code: ExitCode = ExitCode.ERROR) -> None:
        self.text = text
        self.code = code
        super().__init__(text)
