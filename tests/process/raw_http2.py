"""A gRPC client in raw HTTP/2 that asks and then reads nothing: no library would do that for a test."""

from __future__ import annotations

import socket

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_HEADER_FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"x"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


def ask_and_read_nothing(port: int, path: str, request: bytes) -> socket.socket:
    """Send the call on a connection of its own, whose windows are never widened; whoever calls closes it."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    fields = b"".join(_literal(name, value) for name, value in (*_HEADER_FIELDS, (b":path", path.encode())))
    message = b"\0" + len(request).to_bytes(4, "big") + request
    connection.sendall(
        _PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, _END_HEADERS, 1, fields) + _frame(_DATA, _END_STREAM, 1, message)
    )
    return connection


def is_ended(connection: socket.socket, timeout_s: float) -> bool:
    """Whether the server ends the connection in time; reads what it had sent."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field, literal and never indexed (RFC 7541, 6.2.3); both are shorter than 127 bytes."""
    return b"\x10" + bytes((len(name),)) + name + bytes((len(value),)) + value
