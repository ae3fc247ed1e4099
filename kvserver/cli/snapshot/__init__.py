"""snapshot save, status, restore.

Rules: `save` is a client's command and lives here. `status` and `restore` read and write the server's own files without a server; they live
in `kvserver.backup`, which is the server's side, and are loaded by name when they are asked for: kvctl without them needs no server room.
"""

from __future__ import annotations

from typing import Any, Final

import click

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import FlagOption
from kvserver.cli.group import LazyCommand, LazyGroup
from kvserver.cli.settings import GLOBAL_FLAGS

COMMANDS: Final = {
    "restore": LazyCommand(
        module="kvserver.backup.commands", attribute="restore", summary="Restores a saved snapshot to a new data directory"
    ),
    "save": LazyCommand(module="kvserver.cli.snapshot.save", attribute="save", summary="Stores a server's snapshot to a given file"),
    "status": LazyCommand(module="kvserver.backup.commands", attribute="status", summary="Shows what a saved snapshot holds"),
}


class _SnapshotGroup(LazyGroup):
    """The group; its commands take long and write files, so an interrupt is answered."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise CliError("interrupted before it was done; nothing half-made is left", ExitCode.INTERRUPTED) from None


snapshot = _SnapshotGroup(
    "snapshot",
    COMMANDS,
    params=[FlagOption(flag, is_global=True) for flag in GLOBAL_FLAGS],
    help="Manages snapshots of a server",
)
