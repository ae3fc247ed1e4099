"""Listening sockets with errors that say what is wrong.

Rules: no SO_REUSEPORT: two servers on one port would share its connections without anybody noticing. SO_REUSEADDR is set, so that a restart
needs not wait for TIME_WAIT; a port that somebody listens on is still refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from kvserver.config import Url
from kvserver.errors import KvError

__all__ = ["ListenError", "bind_listener", "check_free"]

_BACKLOG: Final = 1024


class ListenError(KvError):
    """An address can't be listened on; the text names it and the reason."""


def bind_listener(url: Url) -> socket.socket:
    """A bound, listening, non-blocking socket; the caller owns it.

    Raises `ListenError`.
    """
    listener = _bind(url)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _error(url, error) from error
    listener.setblocking(False)
    return listener


def check_free(url: Url) -> None:
    """Raise `ListenError` if the address can't be bound now; for listeners that somebody else binds and whose errors say less."""
    with contextlib.closing(_bind(url)):
        pass


def _bind(url: Url) -> socket.socket:
    family = socket.AF_INET6 if ":" in url.bind_host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _error(url, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((url.bind_host, url.port))
    except OSError as error:
        listener.close()
        raise _error(url, error) from error
    return listener


def _error(url: Url, error: OSError) -> ListenError:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return ListenError(f"listen tcp {url.netloc}: {reason}")
