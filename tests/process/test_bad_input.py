"""Bad input gets a clear error and loses nothing: the node stays up, or does not start and says why (exit codes as etcd's)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvserver.pb import rpc_pb2
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess

pytestmark = pytest.mark.process

MakeNode = Callable[..., NodeProcess]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, ports: PortAllocator):
    from kvserver.testing.processes import ProcessCluster

    with ProcessCluster(tmp_path_factory.mktemp("bad-input"), size=1, ports=ports) as cluster:
        cluster.start()
        yield cluster.nodes[0]


def run_server(*flags: str, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvserver", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
        check=False,
        env=environment,
    )


def assert_refused(answer: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    said = answer.stderr + answer.stdout
    assert answer.returncode == code, said
    assert "Traceback" not in said
    for word in words:
        assert word in said


def assert_serves(node: NodeProcess) -> None:
    calls = KvCalls(node.endpoint)
    try:
        calls.put(b"still", b"alive", timeout_s=5.0)
    finally:
        calls.close()


def refusal(endpoint: str, request: rpc_pb2.PutRequest) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString, rpc_pb2.PutResponse.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            put(request, timeout=10)
    return refused.value.code(), refused.value.details()


def test_an_empty_key_is_refused(node: NodeProcess) -> None:
    assert refusal(node.endpoint, rpc_pb2.PutRequest(value=b"v")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "etcdserver: key is not provided",
    )
    assert_serves(node)


def test_a_value_over_the_request_limit_is_refused(node: NodeProcess) -> None:
    request = rpc_pb2.PutRequest(key=b"k", value=b"v" * 1_600_000)
    assert refusal(node.endpoint, request) == (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
    assert_serves(node)


def test_a_message_over_the_receive_limit_is_refused(node: NodeProcess) -> None:
    request = rpc_pb2.PutRequest(key=b"k", value=b"v" * 3_000_000)
    code, _ = refusal(node.endpoint, request)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_serves(node)


def test_http_garbage_on_the_client_port_disturbs_nobody(node: NodeProcess) -> None:
    for junk in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\0" * 4096,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512,
    ):
        with socket.create_connection(("127.0.0.1", node.client_port), timeout=5) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass  # refusing rudely is fine, too
    assert_serves(node)


def test_truncated_grpc_frames_disturb_nobody(node: NodeProcess) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\x04\0\0\0\0\0"
    headers_cut_short = b"\0\0\x40\x01\x04\0\0\0\x01" + b"\x83\x86"
    for cut in (preface[:10], preface + settings[:5], preface + settings + headers_cut_short):
        with socket.create_connection(("127.0.0.1", node.client_port), timeout=5) as connection:
            connection.sendall(cut)
    assert_serves(node)


@pytest.mark.parametrize("port", ["peer_port", "http_port"])
def test_garbage_on_the_other_ports_disturbs_nobody(node: NodeProcess, port: str) -> None:
    for junk in (b"\xff" * 64, b"GET /nothing HTTP/1.0\r\n\r\n", b"\x7f\xff\xff\xff" * 8, b""):
        with socket.create_connection(("127.0.0.1", getattr(node, port)), timeout=5) as connection:
            connection.sendall(junk)
    assert_serves(node)


def test_an_unknown_flag_exits_with_2(tmp_path: Path) -> None:
    assert_refused(run_server("--no-such-flag", cwd=tmp_path), 2, "no-such-flag")


def test_help_and_version_exit_with_0(tmp_path: Path) -> None:
    assert run_server("--help", cwd=tmp_path).returncode == 0
    version = run_server("--version", cwd=tmp_path)
    assert version.returncode == 0
    assert "kvserver" in version.stdout


@pytest.mark.parametrize("url", ["127.0.0.1:2379", "http://", "ftp://127.0.0.1:1", "http://127.0.0.1:notaport", "http://127.0.0.1:99999"])
def test_a_malformed_url_is_refused(tmp_path: Path, url: str) -> None:
    assert_refused(run_server(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", cwd=tmp_path), 2, "listen-client-urls")


def test_an_initial_cluster_without_the_member_is_refused(tmp_path: Path) -> None:
    answer = run_server(
        "--name=me",
        "--initial-cluster=other=http://127.0.0.1:12345",
        "--initial-advertise-peer-urls=http://127.0.0.1:12346",
        "--listen-peer-urls=http://127.0.0.1:12346",
        cwd=tmp_path,
    )
    assert_refused(answer, 1, "me", "initial-cluster")


def test_a_port_in_use_is_named(make_node: MakeNode, node: NodeProcess, tmp_path: Path) -> None:
    other = make_node(name="clash")
    flags = [flag for flag in other.flags if not flag.startswith(("--listen-client-urls", "--advertise-client-urls"))]
    taken = f"http://{node.endpoint}"
    answer = run_server(*flags, f"--listen-client-urls={taken}", f"--advertise-client-urls={taken}", cwd=tmp_path)
    assert_refused(answer, 1, str(node.client_port), "in use")


def test_a_second_process_on_the_same_data_directory_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    first = make_node(name="first")
    first.start()
    second = make_node(name="first", directory=first.directory)
    assert_refused(run_server(*second.flags, cwd=tmp_path), 1, "in use", str(first.data_dir))


def test_the_data_directory_of_another_cluster_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    founder = make_node(name="founder")
    founder.start()
    assert_serves(founder)
    founder.stop()
    stranger = make_node("--initial-cluster-token=elsewhere", name="stranger", directory=founder.directory)
    assert_refused(run_server(*stranger.flags, cwd=tmp_path), 1, "another cluster", str(founder.data_dir))
    founder.start()
    assert_serves(founder)


def test_a_missing_wal_beside_a_store_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    import shutil

    member = make_node(name="halved")
    member.start()
    assert_serves(member)
    member.stop()
    shutil.rmtree(member.data_dir / "member" / "wal")
    assert_refused(run_server(*member.flags, cwd=tmp_path), 1, "WAL")


def test_the_same_setting_as_flag_and_in_the_environment_is_refused(tmp_path: Path) -> None:
    import os

    answer = run_server("--name=a", cwd=tmp_path, environment={**os.environ, "ETCD_NAME": "b"})
    assert_refused(answer, 1, "ETCD_NAME")


def test_sigterm_ends_a_node_with_code_0_and_without_a_traceback(make_node: MakeNode) -> None:
    member = make_node(name="polite")
    member.start()
    assert_serves(member)
    assert member.stop() == 0
    assert "Traceback" not in member.log_path.read_text()
