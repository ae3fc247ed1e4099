"""Free loopback ports for servers that a test starts.

Rules: below 32768, so that an outgoing connection's ephemeral port can't take one between the look and the bind; a port is handed out
once per process.
"""

from __future__ import annotations

import random
import socket
from typing import Final

_LOWEST: Final = 12_000
_HIGHEST: Final = 32_000
_ATTEMPTS: Final = 2_000


class PortAllocator:
    """Hands out ports that nobody listens on."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()
        self._taken: set[int] = set()

    def next_port(self) -> int:
        """A port on 127.0.0.1 that can be bound now.

        Raises:
            OSError: none was found.
        """
        for _ in range(_ATTEMPTS):
            port = self._random.randrange(_LOWEST, _HIGHEST)
            if port in self._taken:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            self._taken.add(port)
            return port
        raise OSError("no free loopback port found")
