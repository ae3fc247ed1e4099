"""What is wrong with a configuration, and the exit code that says so.

Rules: an error is raised, never printed here; `__main__` prints `str(error)` as one line and exits with `error.exit_code`. A line that
can't be read as flags exits with 2, a configuration that reads well but can't be used exits with 1 (etcd does the same).
"""

from __future__ import annotations

from typing import ClassVar

from kvserver.errors import KvError

__all__ = ["ConfigError", "UsageError", "ValueSyntaxError"]


class ConfigError(KvError):
    """The configuration can be read and can't be used: the text names the flags and what to do."""

    exit_code: ClassVar[int] = 1


class UsageError(ConfigError):
    """The command line can't be read: an unknown flag, a missing or malformed value."""

    exit_code: ClassVar[int] = 2


class ValueSyntaxError(KvError):
    """A value does not have the form of its kind; the parser adds the flag's name and the exit code."""
