"""Looking into a data directory without changing anything: `kvserver wal` and `kvserver check`."""

from __future__ import annotations

from kvserver.inspect.command import COMMANDS, main

__all__ = ["COMMANDS", "main"]
