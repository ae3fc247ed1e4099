"""The few HTTP answers that the peer port gives: GET of a known path, one request per connection. Sans-IO.

Rules: the head is bounded; a body is not read; the connection closes behind the answer. What is known is asked of `PeerPages`.
Source: etcd's peer port answers /version and /members, which clients and joining members read.
"""

from __future__ import annotations

import json
from typing import Final, Protocol

MAX_HEAD_SIZE_BYTES: Final = 8 * 1024
_METHODS: Final = (b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ")
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large"}


class PeerPages(Protocol):
    """What the node shows on the peer port."""

    def page(self, path: str) -> object | None:
        """The JSON-able content of `path` (without query), or None if there is no such page. On the loop; must not block."""


def looks_like_http(first_bytes: bytes) -> bool:
    """Whether a connection that begins so speaks HTTP; needs four bytes. No frame within the bound begins so."""
    return first_bytes[:4] in _METHODS


def answer(head: bytes, pages: PeerPages) -> bytes | None:
    """The whole response to what has arrived, or None while the head is incomplete."""
    if b"\r\n\r\n" not in head:
        return _response(431, {"message": "request head too large"}) if len(head) > MAX_HEAD_SIZE_BYTES else None
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _response(400, {"message": "malformed request line"})
    if words[0] not in (b"GET", b"HEAD"):
        return _response(405, {"message": "only GET is answered on the peer port"})
    path = words[1].split(b"?", 1)[0].decode("ascii", "replace")
    content = pages.page(path)
    status, body = (404, {"message": "no such page"}) if content is None else (200, content)
    return _response(status, body, with_body=words[0] == b"GET")


def _response(status: int, content: object, *, with_body: bool = True) -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode() + b"\n"
    lines = (
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
    return head.encode() + (body if with_body else b"")
