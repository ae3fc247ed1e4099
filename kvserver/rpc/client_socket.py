"""The TCP connection under a call, as the kernel knows it: how much of what was sent the client has taken, and hanging up.

Purpose: grpcio does not say how far an answer has come, and does not let a server take back one that it has sent: a stream that nobody
reads holds its answer for as long as its client likes. The connection can be found by the client's address, among this process's own
descriptors, and shut down; grpcio then sees it break, and lets go of all that it held for it.

Rules
- Only a connection whose other end is exactly that address is touched. A descriptor of our own keeps the connection that was found,
  whatever becomes of its number in between; `close` it.
- All calls of the connection end: their clients see UNAVAILABLE.

Caveats: Linux only (/proc, TCP_INFO); elsewhere, for Unix sockets, and without a free descriptor, nothing is found. A proxy in between is
the client here.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Final
from urllib.parse import unquote

__all__ = ["ClientSocket", "find_client_socket"]

_DESCRIPTORS: Final = Path("/proc/self/fd")
_TCP_INFO_BYTES: Final = 192
_BYTES_ACKED: Final = struct.Struct("@Q")
_BYTES_ACKED_OFFSET: Final = 120  # tcpi_bytes_acked in linux/tcp.h


class ClientSocket:
    """One connection of a client."""

    __slots__ = ("_socket",)

    def __init__(self, found: socket.socket) -> None:
        self._socket = found

    def taken_bytes(self) -> int | None:
        """How many bytes the client's kernel has acknowledged since the connection began; None: it is gone, or the kernel does not say."""
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return None
        if len(info) < _BYTES_ACKED_OFFSET + _BYTES_ACKED.size:
            return None
        return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0])

    def hang_up(self) -> bool:
        """End the connection, both ways; False: it had ended."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def find_client_socket(peer: str) -> ClientSocket | None:
    """The connection to `peer`, an address as grpcio writes it (`ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`)."""
    address = _address(peer)
    if address is None:
        return None
    try:
        numbers = [int(name) for name in os.listdir(_DESCRIPTORS)]
    except OSError:
        return None
    for number in numbers:
        found = _socket_at(number)
        if found is None:
            continue
        if _other_end(found) == address:
            return ClientSocket(found)
        found.close()
    return None


def _address(peer: str) -> tuple[str, int] | None:
    scheme, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if scheme not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _socket_at(number: int) -> socket.socket | None:
    """A descriptor of our own for the connection at `number`; None if that is none."""
    try:
        if not os.readlink(_DESCRIPTORS / str(number)).startswith("socket:"):
            return None
        copy = os.dup(number)
    except OSError:
        return None  # closed in between, or no descriptor is free
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _other_end(found: socket.socket) -> tuple[str, int] | None:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return None
    try:
        host, port = found.getpeername()[:2]
    except OSError:
        return None
    return str(host).removeprefix("::ffff:"), int(port)
