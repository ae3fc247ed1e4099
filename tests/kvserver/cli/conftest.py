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
from collections.abc import Callable, Iterator
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


def start_etcd(directory: Path) -> Iterator[Etcd]:
    """Start etcd and wait for its own word that it serves; stopped and reaped when the generator ends."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd and etcdctl are not installed (Debian packages etcd-server, etcd-client)")
    server = Etcd(client_port=free_port(), peer_port=free_port())
    client_url, peer_url = f"http://{server.endpoint}", f"http://127.0.0.1:{server.peer_port}"
    command = [
        "etcd",
        "--name=n1",
        f"--data-dir={directory}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
    ]
    command += [f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={ADVERTISED}", f"--initial-cluster=n1={ADVERTISED}"]
    command += ["--logger=zap", "--log-outputs=stderr"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
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


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One etcd."""
    yield from start_etcd(tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Another one, for the other side of a comparison."""
    yield from start_etcd(tmp_path_factory.mktemp("twin"))
