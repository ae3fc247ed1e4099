"""version: needs no server, and must be fast."""

from __future__ import annotations

import sys
from typing import Final

from kvserver.cli.command import make_command
from kvserver.version import __version__

API_VERSION: Final = "3.6"
"""The etcd API whose messages this client speaks."""


def _version(arguments: tuple[str, ...]) -> None:
    del arguments  # ignored, as in etcdctl
    sys.stdout.write(f"kvctl version: {__version__}\nAPI version: {API_VERSION}\n")
    sys.stdout.flush()


version = make_command("version", summary="Prints the version of kvctl", run=_version)
