"""The parts of the client that decide without IO: endpoints, ranges, the method table, the retry policy."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from hypothesis import given
from hypothesis import strategies as st

from kvserver import errors
from kvserver.client import ClientConfig, InvalidEndpointError, NoEndpointError, ServerError, methods, parse_endpoint, prefix_end
from kvserver.client.policy import NO_EFFECT_MESSAGES, backoff_s, changes_nothing, may_retry
from kvserver.pb import debug_pb2
from kvserver.pb import rpc_pb2 as pb


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:2379", "ipv4:127.0.0.1:2379"),
        ("http://127.0.0.1:2379", "ipv4:127.0.0.1:2379"),
        ("http://127.0.0.1:2379/path", "ipv4:127.0.0.1:2379"),
        ("[::1]:2379", "ipv6:[::1]:2379"),
        ("http://[::1]:2379/", "ipv6:[::1]:2379"),
        ("localhost:2379", "dns:///localhost:2379"),
        ("kv1:2379", "dns:///kv1:2379"),
    ],
)
def test_endpoints(text: str, target: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.text, endpoint.target) == (text, target)


@pytest.mark.parametrize(
    "text", ["", "foo", "127.0.0.1", ":2379", "http://", "http://a", "a:99999", "a:x", "https://a:1", "ftp://a:1", "unix:/a", "[::1:2379"]
)
def test_endpoints_that_cannot_be_used(text: str) -> None:
    with pytest.raises(InvalidEndpointError, match=r"^endpoint "):
        parse_endpoint(text)


def test_a_configuration_needs_an_endpoint() -> None:
    with pytest.raises(NoEndpointError):
        ClientConfig(endpoints=())


@given(st.binary(max_size=6), st.binary(max_size=8))
def test_prefix_end_bounds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix) or (end == b"\0" and key >= prefix)


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=6))
def test_every_extension_of_a_prefix_is_inside(prefix: bytes, more: bytes) -> None:
    end = prefix_end(prefix)
    assert end == b"\0" or prefix <= prefix + more < end


def test_the_method_table_agrees_with_the_service_definitions() -> None:
    table = [value for value in vars(methods).values() if isinstance(value, methods.Method)]
    assert len(table) == 25
    described_in = {"etcdserverpb": pb.DESCRIPTOR, "kvserver": debug_pb2.DESCRIPTOR}
    for method in table:
        package, _, rest = method.path.removeprefix("/").partition(".")
        service_name, _, name = rest.partition("/")
        service = described_in[package].services_by_name[service_name]
        assert isinstance(service, ServiceDescriptor)
        described = service.methods_by_name[name]
        assert described.input_type is method.request.DESCRIPTOR
        assert described.output_type is method.response.DESCRIPTOR


def test_no_method_that_changes_something_passes_for_a_read() -> None:
    reads = {method.path.rpartition("/")[2] for method in vars(methods).values() if isinstance(method, methods.Method) and method.read_only}
    leases = {"LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"}
    assert reads == {"Range", "Txn", "MemberList", "Status", "HashKV", "Alarm", "Authenticate", "Memory", "Watch"} | leases
    assert not methods.TXN.read_only


def test_only_errors_that_are_declared_harmless_free_a_mutation() -> None:
    harmless = (errors.NoLeaderError, errors.TooManyRequestsError, errors.NotCapableError)
    assert frozenset(error.message for error in harmless) == NO_EFFECT_MESSAGES
    assert may_retry(methods.PUT, ServerError(14, errors.NoLeaderError.message))
    assert not may_retry(methods.PUT, ServerError(14, errors.LeaderChangedError.message))
    assert may_retry(methods.RANGE, ServerError(14, errors.LeaderChangedError.message))
    assert not may_retry(methods.RANGE, ServerError(3, errors.EmptyKeyError.message))


def test_backoff_doubles_up_to_half_a_second() -> None:
    assert [backoff_s(attempt) for attempt in (1, 2, 3, 5, 6, 100, 10**6)] == [0.025, 0.05, 0.1, 0.4, 0.5, 0.5, 0.5]


def test_what_changes_nothing() -> None:
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))
    for write in (pb.RequestOp(request_put=pb.PutRequest()), pb.RequestOp(request_delete_range=pb.DeleteRangeRequest()), pb.RequestOp()):
        assert not changes_nothing(pb.TxnRequest(failure=[read, write]))
        assert not changes_nothing(pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(success=[write]))]))
    assert changes_nothing(pb.TxnRequest(success=[read], failure=[pb.RequestOp(request_txn=pb.TxnRequest(failure=[read]))]))
