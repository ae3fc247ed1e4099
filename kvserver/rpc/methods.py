"""Every method of the client contract: its path on the wire, its kind and its messages.

Purpose: one table, read from the descriptors of `kvserver.pb`, that any wire binding can be built from.

Rules: messages live in a proto package of our own, paths are etcd's (`/etcdserverpb.KV/Put`), so the table knows which service stands under
which name on the wire; what etcd doesn't have stands under `kvserver.`. A method that the descriptors have is in the table whether it is
served or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvserver.api import MethodName
from kvserver.pb import debug_pb2, election_pb2, health_pb2, lock_pb2, rpc_pb2

__all__ = ["MethodKind", "MethodSpec", "method_table"]


class MethodKind(Enum):
    """Who sends a stream; the value is the label of grpc's metrics."""

    UNARY = "unary"
    CLIENT_STREAM = "client_stream"
    SERVER_STREAM = "server_stream"
    BIDI_STREAM = "bidi_stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """One method. `name` is the descriptors' (and the api's) name of it, `service` is the wire's name of its service."""

    name: MethodName
    service: str
    method: str
    kind: MethodKind
    request_class: type[Message]
    response_class: type[Message]

    @property
    def path(self) -> str:
        """The path on the wire."""
        return f"/{self.service}/{self.method}"


_WIRE_NAMES: Final[tuple[tuple[FileDescriptor, str, str], ...]] = (
    (rpc_pb2.DESCRIPTOR, "KV", "etcdserverpb.KV"),
    (rpc_pb2.DESCRIPTOR, "Watch", "etcdserverpb.Watch"),
    (rpc_pb2.DESCRIPTOR, "Lease", "etcdserverpb.Lease"),
    (rpc_pb2.DESCRIPTOR, "Cluster", "etcdserverpb.Cluster"),
    (rpc_pb2.DESCRIPTOR, "Maintenance", "etcdserverpb.Maintenance"),
    (rpc_pb2.DESCRIPTOR, "Auth", "etcdserverpb.Auth"),
    (lock_pb2.DESCRIPTOR, "Lock", "v3lockpb.Lock"),
    (election_pb2.DESCRIPTOR, "Election", "v3electionpb.Election"),
    (health_pb2.DESCRIPTOR, "Health", "grpc.health.v1.Health"),
    (debug_pb2.DESCRIPTOR, "Debug", "kvserver.Debug"),
)


def method_table() -> tuple[MethodSpec, ...]:
    """All methods of all services, in the order of the proto files."""
    return tuple(_methods())


def _methods() -> Iterator[MethodSpec]:
    for file, service, wire_name in _WIRE_NAMES:
        for method in file.services_by_name[service].methods:
            yield MethodSpec(
                name=(service, method.name),
                service=wire_name,
                method=method.name,
                kind=_kind(method),
                request_class=GetMessageClass(method.input_type),
                response_class=GetMessageClass(method.output_type),
            )


def _kind(method: MethodDescriptor) -> MethodKind:
    match (method.client_streaming, method.server_streaming):
        case (False, False):
            return MethodKind.UNARY
        case (True, False):
            return MethodKind.CLIENT_STREAM
        case (False, True):
            return MethodKind.SERVER_STREAM
        case _:
            return MethodKind.BIDI_STREAM
