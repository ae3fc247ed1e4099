"""Fixtures for kvctl: running it in this process, and real etcd servers to run it against."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvserver.cli.main import run

READY = b"serving client traffic"
ADVERTISED = "http://127.0.0.1:2380"
"""The same for every etcd here, because ids are made from it; a single member never dials itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command line did."""

    code: int
    stdout: bytes
    stderr: bytes


Kvctl = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flag comes from the environment of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("ETCDCTL_", "KVCTL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def kvctl(monkeypatch: pytest.MonkeyPatch) -> Kvctl:
    """Run kvctl in this process: `kvctl("get", "k", stdin=b"")`."""

    def call(*arguments: str, stdin: bytes = b"") -> Outcome:
        out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            code = run(arguments)
            out.flush()
            err.flush()
        return Outcome(code=code, stdout=out.buffer.getvalue(), stderr=err.buffer.getvalue())  # type: ignore[attr-defined]

    return call


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """A running etcd with one member."""

    client_port: int
    peer_port: int

    @property
    def endpoint(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.client_port}"


def free_port() -> int:
    """A port that nobody listens on, below the range that the kernel hands out by itself."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture
def unused_endpoint() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def etcdctl() -> Callable[[str, list[str], bytes], tuple[int, bytes, bytes]]:
    """Run etcdctl: `etcdctl(endpoint, arguments, stdin)` gives exit code, stdout and stderr."""

    def call(endpoint: str, arguments: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")} | {"ETCDCTL_API": "3"}
        command = ["etcdctl", f"--endpoints={endpoint}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=30, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


def start_etcd(
    directory: Path, *, token: str = "etcd-cluster", ports: tuple[int, int] | None = None, joining: Mapping[str, str] | None = None
) -> Iterator[Etcd]:
    """Start etcd and wait for its own word that it serves; stopped and reaped when the generator ends.

    With `ports` (client, peer) it advertises its real peer URL. `joining`: the environment that `member add` printed.
    """
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd and etcdctl are not installed (Debian packages etcd-server, etcd-client)")
    client_port, peer_port = ports or (free_port(), free_port())
    server = Etcd(client_port=client_port, peer_port=peer_port)
    client_url, peer_url = f"http://{server.endpoint}", f"http://127.0.0.1:{server.peer_port}"
    command = [
        "etcd",
        f"--data-dir={directory}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
    ]
    command += [f"--listen-peer-urls={peer_url}", "--logger=zap", "--log-outputs=stderr"]
    if ports is not None:
        command.append("--strict-reconfig-check=false")  # else it wants 5 s of connection to every voter before each addition
    if joining is None:
        advertised = ADVERTISED if ports is None else peer_url
        command += ["--name=n1", f"--initial-advertise-peer-urls={advertised}", f"--initial-cluster=n1={advertised}"]
        command.append(f"--initial-cluster-token={token}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")} | dict(joining or {})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if READY in line:
                break
        else:
            raise AssertionError(f"etcd ended before it served: {process.wait(10)}")
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield server
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


@pytest.fixture(scope="session")
def launch() -> Callable[..., AbstractContextManager[Etcd]]:
    """`start_etcd` as a context manager."""
    return contextmanager(start_etcd)


@pytest.fixture
def three_pairs_of_ports() -> list[tuple[int, int]]:
    """Client and peer port of each of three members."""
    return [(free_port(), free_port()) for _ in range(3)]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One etcd."""
    yield from start_etcd(tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Another one, for the other side of a comparison."""
    yield from start_etcd(tmp_path_factory.mktemp("twin"))
