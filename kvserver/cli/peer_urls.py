"""Peer URLs of the member commands: what etcd's client checks before anything is sent.

Rules: pure; the texts are those of Go's net/url and of etcd, because scripts and people know them. The checks come in etcd's order: is it
a URL at all, its scheme, `host:port`, no path. A query, a fragment and a user pass, as they do in etcd; the server judges those.
Source: the documentation of Go's net/url and net packages; RFC 3986; etcdctl 3.4.23's answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kvserver.cli.golang import GoSyntaxError, quote, to_bytes

SCHEMES: Final = frozenset({"http", "https", "unix", "unixs"})

_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
_USER: Final = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_ESCAPE: Final = re.compile(r"%[0-9a-fA-F]{2}")
_HOST_ESCAPE: Final = re.compile(r"%25|%[89a-fA-F][0-9a-fA-F]")
"""In a host only "%" itself and bytes from 0x80 on may be escaped."""
_ZONE_ESCAPE: Final = re.compile(r"%2[0-24-9A-Ea-e]|%3[0-9A-Ea-e]|%[46][1-9A-Fa-f]|%[57][0-9Aa]|%5[BbDdFf]|%7[Ee]")
"""In an IPv6 zone "%", a blank, and what may stand in a host."""
_HOST_ILLEGAL: Final = re.compile(r"[^%A-Za-z0-9!$&'()*+,;=:\[\]<>\"\-_.~\u0080-\u00ff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the checks look at; `authority` without the user."""

    scheme: str
    authority: str
    path: str


def split_peer_urls(text: str) -> tuple[str, ...]:
    """The URLs of a comma-separated list, as they stand. Raises `GoSyntaxError` for the first that isn't a peer URL."""
    urls = tuple(text.split(","))
    for url in urls:
        _check(url.strip(_SPACE))
    return urls


def _check(url: str) -> None:
    parts = _parse(to_bytes(url).decode("latin-1"))
    if parts.scheme not in SCHEMES:
        raise GoSyntaxError(f"URL scheme must be http, https, unix, or unixs: {url}")
    if not _has_host_and_port(parts.authority):
        raise GoSyntaxError(f'URL address does not have the form "host:port": {url}')
    if parts.path:
        raise GoSyntaxError(f"URL must not contain a path: {url}")


def _parse(url: str) -> _Parts:
    """From here on a character is a byte, as in Go."""
    before, _, fragment = url.partition("#")
    try:
        parts = _parse_without_fragment(before)
    except GoSyntaxError as error:
        raise GoSyntaxError(f"parse {_quoted(before)}: {error}") from None
    try:
        _check_escapes(fragment)
    except GoSyntaxError as error:
        raise GoSyntaxError(f"parse {_quoted(url)}: {error}") from None
    return parts


def _parse_without_fragment(text: str) -> _Parts:
    if _CONTROL.search(text):
        raise GoSyntaxError("net/url: invalid control character in URL")
    if text.startswith(":"):
        raise GoSyntaxError("missing protocol scheme")
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    rest = (text[found.end() :] if found else text).partition("?")[0]
    if not rest.startswith("/"):
        if not scheme and ":" in rest.partition("/")[0]:
            raise GoSyntaxError("first path segment in URL cannot contain colon")
        if not scheme:
            _check_escapes(rest)
        return _Parts(scheme=scheme, authority="", path=rest if not scheme else "")
    authority = ""
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        authority, rest = _check_authority(authority), slash + path
    _check_escapes(rest)
    return _Parts(scheme=scheme, authority=authority, path=rest)


def _check_authority(text: str) -> str:
    """The part behind the user."""
    user, at, host = text.rpartition("@")
    _check_host(host)
    if at and not _USER.fullmatch(user):
        raise GoSyntaxError("net/url: invalid userinfo")
    _check_escapes(user)
    return host


def _check_host(host: str) -> None:
    head, zone = host, ""
    if host.startswith("["):
        literal, bracket, port = host.rpartition("]")
        if not bracket:
            raise GoSyntaxError("missing ']' in host")
        if "%25" in literal:
            head, mark, zone = literal.partition("%25")
            zone = mark + zone
    else:
        _, colon, digits = host.rpartition(":")
        port = colon + digits if colon else ""
    if not _PORT.fullmatch(port):
        raise GoSyntaxError(f"invalid port {_quoted(port)} after host")
    _check_tokens(head, _HOST_ESCAPE)
    _check_tokens(zone, _ZONE_ESCAPE)


def _check_tokens(text: str, escape: re.Pattern[str]) -> None:
    """Every character stands for itself or begins an allowed escape."""
    position = 0
    while position < len(text):
        if text[position] == "%":
            if not escape.match(text, position):
                raise GoSyntaxError(f"invalid URL escape {_quoted(text[position : position + 3])}")
            position += 3
        elif _HOST_ILLEGAL.match(text, position):
            raise GoSyntaxError(f"invalid character {_quoted(text[position])} in host name")
        else:
            position += 1


def _check_escapes(text: str) -> None:
    for found in re.finditer("%", text):
        if not _ESCAPE.match(text, found.start()):
            raise GoSyntaxError(f"invalid URL escape {_quoted(text[found.start() : found.start() + 3])}")


def _has_host_and_port(authority: str) -> bool:
    """Go's SplitHostPort: one colon outside brackets, brackets only round the host; either side may be empty."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        return bool(bracket) and port.startswith(":") and not set("[]:") & set(port[1:]) and "[" not in host
    return authority.count(":") == 1 and not set("[]") & set(authority)


def _quoted(text: str) -> str:
    return quote(text.encode("latin-1"))
