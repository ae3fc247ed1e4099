"""The connection under a call: it is found by its client's address, shows what the client has taken, and can be ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from kvserver.rpc.client_socket import find_client_socket


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection, and the client's."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((request.param, 0))
        except OSError:
            pytest.skip(f"no {request.param} here")
        listener.listen()
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            ours, _ = listener.accept()
            with ours:
                yield ours, client


def peer_of(client: socket.socket) -> str:
    """As grpcio writes it."""
    host, port = client.getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_the_client_has_taken_grows_as_it_takes_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    found = find_client_socket(peer_of(client))
    assert found is not None
    before = found.taken_bytes()
    assert before is not None
    ours.sendall(bytes(1000))
    assert client.recv(1000, socket.MSG_WAITALL) == bytes(1000)
    client.sendall(b"!")
    assert ours.recv(1) == b"!"  # behind its acknowledgement
    assert found.taken_bytes() == before + 1000
    found.close()


def test_a_client_that_does_not_read_takes_nothing_more_once_its_window_is_full(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.settimeout(0.5)
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(64 << 20))
    found = find_client_socket(peer_of(client))
    assert found is not None
    before = found.taken_bytes()
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(1 << 20))
    assert found.taken_bytes() == before
    found.close()


def test_hanging_up_ends_the_connection_for_both_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    found = find_client_socket(peer_of(client))
    assert found is not None
    assert found.hang_up()
    assert client.recv(1) == b""
    assert ours.recv(1) == b""
    found.close()


def test_of_a_connection_that_has_ended_nothing_is_known(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    found = find_client_socket(peer_of(client))
    assert found is not None
    client.close()
    assert ours.recv(1) == b""
    ours.shutdown(socket.SHUT_RDWR)
    assert not found.hang_up()
    found.close()


def test_nobody_elses_connection_is_found_and_no_descriptor_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    _, client = pair
    before = open_descriptors()
    host, port = client.getsockname()[:2]
    for stranger in (
        "",
        "unix:",
        "unix:/tmp/x",
        "ipv4:127.0.0.1",
        f"ipv4:127.0.0.2:{port}",
        f"ipv4:127.0.0.1:{port ^ 1}",
        f"ipv9:{host}:1",
    ):
        assert find_client_socket(stranger) is None
    found = find_client_socket(peer_of(client))
    assert found is not None
    found.close()
    assert open_descriptors() == before
