"""The table of methods and the table of errors are complete."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grpc import StatusCode

from kvserver import errors
from kvserver.api import build_api
from kvserver.errors import RequestError
from kvserver.rpc.errors import GO_NAMES, STATUS_CODES, oversized_message, status_of
from kvserver.rpc.methods import MethodKind, method_table
from kvserver.storage import DamagedRowError

# Code -> messages, as the client contract has them (those that this version can answer).
CONTRACT = {
    StatusCode.INVALID_ARGUMENT: {
        "key is not provided",
        "key not found",
        "value is provided",
        "lease is provided",
        "too many operations in txn request",
        "duplicate key given in txn request",
        "invalid sort option",
        "request is too large",
    },
    StatusCode.NOT_FOUND: {"requested lease not found"},
    StatusCode.RESOURCE_EXHAUSTED: {"mvcc: database space exceeded"},
    StatusCode.FAILED_PRECONDITION: {
        "lease already exists",
        "not leader",
        "not capable",
        "rpc not supported for learner",
        "bad leader transferee",
    },
    StatusCode.OUT_OF_RANGE: {
        "mvcc: required revision has been compacted",
        "mvcc: required revision is a future revision",
        "too large lease TTL",
    },
    StatusCode.UNAVAILABLE: {
        "no leader",
        "leader changed",
        "server stopped",
        "unhealthy cluster",
        "request timed out",
        "request timed out, possibly due to previous leader failure",
        "request timed out, possibly due to connection lost",
        "request timed out, waiting for the applied index took too long",
    },
    StatusCode.UNKNOWN: {"too many requests"},
    StatusCode.DATA_LOSS: {"corrupt cluster"},
}


def leaves(error: type[RequestError]) -> Iterator[type[RequestError]]:
    """The last classes of the hierarchy in kvserver.errors; other rooms may refine them."""
    below = [subclass for subclass in error.__subclasses__() if subclass.__module__ == errors.__name__]
    if not below:
        yield error
    for subclass in below:
        yield from leaves(subclass)


LEAVES = sorted(leaves(RequestError), key=lambda leaf: leaf.__name__)


@pytest.mark.parametrize("error", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_request_error_has_a_status_and_a_message(error: type[RequestError]) -> None:
    code, message = status_of(error())
    assert code is STATUS_CODES[error]
    assert message == error.message != ""


def test_a_refined_error_is_answered_as_what_it_refines() -> None:
    damaged = DamagedRowError("db", 1, b"k", "was changed")
    assert status_of(damaged) == (StatusCode.DATA_LOSS, "etcdserver: corrupt cluster")


def test_the_table_names_leaves_only() -> None:
    assert set(STATUS_CODES) == set(LEAVES)


@pytest.mark.parametrize(("code", "messages"), CONTRACT.items(), ids=lambda value: getattr(value, "name", ""))
def test_codes_and_messages_are_those_of_the_contract(code: StatusCode, messages: set[str]) -> None:
    answered = {message for found, message in map(status_of, (leaf() for leaf in LEAVES)) if found is code}
    assert {f"etcdserver: {message}" for message in messages} <= answered


def test_oversized_message_is_gos() -> None:
    assert oversized_message(2097153, 2097152) == "grpc: received message larger than max (2097153 vs. 2097152)"


def test_codes_have_gos_names() -> None:
    assert GO_NAMES[StatusCode.OK] == "OK"
    assert GO_NAMES[StatusCode.CANCELLED] == "Canceled"
    assert GO_NAMES[StatusCode.DEADLINE_EXCEEDED] == "DeadlineExceeded"
    assert len(set(GO_NAMES.values())) == len(StatusCode)


def test_every_service_of_etcd_is_in_the_table_and_one_of_our_own() -> None:
    table = {spec.path: spec for spec in method_table()}
    assert len(table) == len(method_table())
    assert {spec.service for spec in table.values()} == {
        *(f"etcdserverpb.{name}" for name in ("KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth")),
        "v3lockpb.Lock",
        "v3electionpb.Election",
        "grpc.health.v1.Health",
        "kvserver.Debug",
    }
    assert table["/etcdserverpb.Watch/Watch"].kind is MethodKind.BIDI_STREAM
    assert table["/etcdserverpb.Lease/LeaseKeepAlive"].kind is MethodKind.BIDI_STREAM
    assert table["/etcdserverpb.Maintenance/Snapshot"].kind is MethodKind.SERVER_STREAM
    assert table["/etcdserverpb.KV/Put"].kind is MethodKind.UNARY
    assert table["/etcdserverpb.KV/Put"].request_class.DESCRIPTOR.full_name == "kvserver.pb.PutRequest"
    assert table["/v3lockpb.Lock/Lock"].response_class.DESCRIPTOR.name == "LockResponse"


def test_every_handler_of_the_api_is_in_the_table() -> None:
    nothing = object()
    api = build_api(
        proposals=nothing,  # type: ignore[arg-type]
        reads=nothing,  # type: ignore[arg-type]
        reader=nothing,  # type: ignore[arg-type]
        view=nothing,  # type: ignore[arg-type]
        reconfiguration=nothing,  # type: ignore[arg-type]
        snapshots=nothing,  # type: ignore[arg-type]
        lease_times=nothing,  # type: ignore[arg-type]
        quota=nothing,  # type: ignore[arg-type]
        answers=nothing,  # type: ignore[arg-type]
        debug=nothing,  # type: ignore[arg-type]
        hub=nothing,  # type: ignore[arg-type]
        clock=nothing,  # type: ignore[arg-type]
        random=nothing,  # type: ignore[arg-type]
        max_request_bytes=1,
        max_txn_ops=1,
        min_lease_ttl_s=2,
        request_timeout_s=1.0,
        election_timeout_s=1.0,
    )
    kinds = {spec.name: spec.kind for spec in method_table()}
    assert {kinds[name] for name in api.unary} == {MethodKind.UNARY}
    assert {kinds[name] for name in api.server_streams} == {MethodKind.SERVER_STREAM}
    assert {kinds[name] for name in api.bidi_streams} == {MethodKind.BIDI_STREAM}
