"""What a call through the client library can fail with.

Rules: one base, `ClientError`. A `ServerError` is an answer of the cluster; the others say that there was none. `str(error)` is what a
person should read; for the cluster's own refusals it is etcd's text, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kvserver.errors import KvError

UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

CODE_NAMES: Final[Mapping[int, str]] = {
    0: "OK",
    1: "Canceled",
    2: "Unknown",
    3: "InvalidArgument",
    4: "DeadlineExceeded",
    5: "NotFound",
    6: "AlreadyExists",
    7: "PermissionDenied",
    8: "ResourceExhausted",
    9: "FailedPrecondition",
    10: "Aborted",
    11: "OutOfRange",
    12: "Unimplemented",
    13: "Internal",
    14: "Unavailable",
    15: "DataLoss",
    16: "Unauthenticated",
}
"""gRPC status codes as etcd's tools spell them."""


class ClientError(KvError):
    """Base of everything that a call through the client raises on purpose."""


class InvalidEndpointError(ClientError):
    """An endpoint can't be understood, or asks for something that this version can't do."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        super().__init__(f'endpoint "{text}": {reason}')


class NoEndpointError(ClientError):
    """The configuration names no endpoint at all."""

    def __init__(self) -> None:
        super().__init__("no available endpoints")


class ConnectError(ClientError):
    """No endpoint could be reached within the dial timeout: nothing was sent. `reasons` maps each endpoint's text to what went wrong."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        each = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in reasons.items())
        super().__init__(f"cannot connect: {each}")


class CallTimeoutError(ClientError):
    """The deadline passed before the cluster answered. A mutation may or may not have happened."""

    def __init__(self) -> None:
        super().__init__("context deadline exceeded")


class ServerError(ClientError):
    """The call ended with a gRPC status other than OK.

    `code` is the numeric status, `details` the status message as received. A connection lost after sending is one too (UNAVAILABLE with a
    text that isn't the server's): whether the request had an effect is then unknown.
    """

    def __init__(self, code: int, details: str) -> None:
        self.code = code
        self.details = details
        known = details.startswith(("etcdserver: ", "auth: ", "election: "))
        super().__init__(details if known else f"rpc error: code = {CODE_NAMES.get(code, str(code))} desc = {details}")
