"""URLs of listeners and members, and the `name=url,name=url` form of an initial cluster.

Rules: a URL here is `http://host:port` and nothing more. `https` and `unix` are recognised and refused, so that nobody believes to be
served over TLS. A listener's host is an IP address or `localhost` (read as 127.0.0.1), because a listener binds an interface, not a name;
an advertised host may be a name. Ports are 0-65535; 0 (any free port) is for tests.

Source: etcd's configuration documentation for the forms.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from kvserver.config.errors import ValueSyntaxError

__all__ = ["ClusterMember", "Url", "format_urls", "parse_initial_cluster", "parse_url", "parse_urls"]

_REFUSED_SCHEMES = {
    "https": "TLS is not supported by this version of kvserver",
    "unix": "unix sockets are not supported by this version of kvserver",
    "unixs": "unix sockets are not supported by this version of kvserver",
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Url:
    """`http://host:port`; `host` without the brackets of an IPv6 address, `port` in [0, 65535]."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.netloc}"

    @property
    def netloc(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def bind_host(self) -> str:
        """The address to bind: `localhost` is 127.0.0.1, everything else is itself."""
        return "127.0.0.1" if self.host == "localhost" else self.host

    @property
    def can_be_bound(self) -> bool:
        """Whether the host is an IP address or `localhost`."""
        if self.host == "localhost":
            return True
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMember:
    """One member of an initial cluster: its name and its peer URLs in ascending order."""

    name: str
    peer_urls: tuple[Url, ...]


def parse_url(text: str) -> Url:
    """Read `http://host:port`; a trailing slash is tolerated.

    Raises `ValueSyntaxError` with the reason.
    """
    parts = _split(text)
    if parts.scheme in _REFUSED_SCHEMES:
        raise ValueSyntaxError(f"{text!r}: {_REFUSED_SCHEMES[parts.scheme]}")
    if parts.scheme != "http" or not parts.netloc:
        raise ValueSyntaxError(f"{text!r}: URL must have the form http://host:port")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueSyntaxError(f"{text!r}: URL must not contain a path, a query or a fragment")
    if parts.username is not None or parts.password is not None:
        raise ValueSyntaxError(f"{text!r}: URL must not contain a user")
    try:
        port = parts.port
    except ValueError:
        port = None
    if port is None or not parts.hostname:
        raise ValueSyntaxError(f"{text!r}: URL must have the form http://host:port, with a port from 0 to 65535")
    return Url(host=parts.hostname, port=port)


def _split(text: str) -> SplitResult:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueSyntaxError(f"{text!r}: URL must not contain blanks or control characters")
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ValueSyntaxError(f"{text!r}: {error}") from error


def parse_urls(text: str) -> tuple[Url, ...]:
    """Read a comma-separated list of URLs, kept in the given order; an empty text is an empty tuple.

    Raises `ValueSyntaxError` for a malformed or repeated URL.
    """
    urls = tuple(parse_url(part.strip()) for part in text.split(",")) if text.strip() else ()
    for position, url in enumerate(urls):
        if url in urls[:position]:
            raise ValueSyntaxError(f"{str(url)!r} is given twice")
    return urls


def parse_initial_cluster(text: str) -> tuple[ClusterMember, ...]:
    """Read `name=url,name=url`; a name given several times is one member with several URLs; members come back in order of their names.

    Raises `ValueSyntaxError` for an empty name, a malformed URL, or a URL given twice (in one member or in two).
    """
    members: dict[str, list[Url]] = {}
    owners: dict[Url, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, address = part.partition("=")
        if not equals or not name or not address:
            raise ValueSyntaxError(f"{part!r}: expected name=http://host:port")
        url = parse_url(address)
        if url in owners:
            raise ValueSyntaxError(f"{str(url)!r} is given twice (for {owners[url]!r} and {name!r})")
        owners[url] = name
        members.setdefault(name, []).append(url)
    return tuple(ClusterMember(name=name, peer_urls=tuple(sorted(urls))) for name, urls in sorted(members.items()))


def format_urls(urls: tuple[Url, ...]) -> str:
    """The inverse of `parse_urls`."""
    return ",".join(str(url) for url in urls)
