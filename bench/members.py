"""Members of either system, as processes on loopback: the same flags, the same life, the same clean-up.

Purpose: what a comparison needs in order to be fair. kvserver takes etcd's flags, so one class starts both; what differs is a value
(`System`).

Rules: synchronous; a member counts as ready when it answers a linearizable read, whichever system it is; every wait ends with the run's
deadline; whoever leaves the cluster's block leaves no process behind (they are ended by their ids); environment variables that configure
either system are not passed on.

Caveats: one machine plays all members, so three nodes share its cores and its disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import grpc

from bench.proxy import Link, ProxyProcess
from bench.signals import deferred
from kvserver.pb import rpc_pb2
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator

POLL_S: Final = 0.05
QUOTA_BYTES: Final = 8 << 30  # the largest that etcd takes without a warning; 5,000 x 1 MB must fit


class OutOfTimeError(Exception):
    """The run's time is over; the text says what it was waiting for."""


class Deadline:
    """The end of one run, in monotonic seconds."""

    def __init__(self, seconds: float) -> None:
        self._at_s = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at_s - time.monotonic())

    def check(self, waiting_for: str) -> None:
        """Raises OutOfTimeError when the time is over."""
        if not self.left_s():
            raise OutOfTimeError(f"out of time while waiting for {waiting_for}")


class System(Protocol):
    """What the comparison has to know about a system; everything else is the same for all."""

    @property
    def name(self) -> str:
        """As --systems and the tables call it."""
        ...

    @property
    def command(self) -> Sequence[str]:
        """The program, and its flags beyond the shared ones."""
        ...

    @property
    def version_command(self) -> Sequence[str]:
        """The command that prints the version."""
        ...

    @property
    def snapshot_mark(self) -> bytes:
        """What a member's log says once for each snapshot that it received from its leader."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A `System` by its values."""

    name: str
    command: tuple[str, ...]
    version_command: tuple[str, ...]
    snapshot_mark: bytes


KVSERVER: Final = Program(
    name="kvserver",
    command=(sys.executable, "-m", "kvserver"),
    version_command=(sys.executable, "-m", "kvserver", "--version"),
    snapshot_mark=b'"msg":"applied snapshot"',
)
ETCD: Final = Program(
    name="etcd",
    command=("etcd", "--logger=zap", "--log-outputs=stderr"),
    version_command=("etcd", "--version"),
    snapshot_mark=b"saved database snapshot",
)
SYSTEMS: Final[dict[str, System]] = {each.name: each for each in (KVSERVER, ETCD)}


def version(system: System) -> str | None:
    """The first line of `--version`, or None when the program is not installed."""
    if shutil.which(system.command[0]) is None:
        return None
    shown = subprocess.run(system.version_command, capture_output=True, text=True, timeout=30, check=True).stdout
    return shown.splitlines()[0]


@dataclass(slots=True, kw_only=True)
class Member:
    """One member: how it is started, where it lives, and its process while it runs."""

    system: System
    name: str
    directory: Path
    client_port: int
    peer_port: int
    flags: Sequence[str]
    http_port: int | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int | None:
        """The running process's id; None while there is none."""
        process = self._process  # the sampler's thread asks, too
        return None if process is None or process.poll() is not None else process.pid

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "KVSERVER_"))}
        with self._log_path.open("ab") as log, deferred():
            self._process = subprocess.Popen(
                [*self.system.command, *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment,
            )

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until a linearizable read succeeds.

        Raises:
            OutOfTimeError: the deadline passed.
            RuntimeError: the process ended; the text holds the end of its log.
        """
        calls = KvCalls(self.endpoint)
        try:
            while True:
                try:
                    calls.range(rpc_pb2.RangeRequest(key=b"bench/none"), timeout_s=2.0)
                    return
                except grpc.RpcError:
                    if self.pid is None:
                        raise RuntimeError(f"{self.name} ended before it was ready:\n{self._log_tail()}") from None
                    deadline.check(f"{self.name} to be ready")
                    time.sleep(POLL_S)
        finally:
            calls.close()

    def revision(self) -> int | None:
        """The revision that this member has applied (a serializable read); None while it does not answer."""
        calls = KvCalls(self.endpoint)
        try:
            return calls.range(rpc_pb2.RangeRequest(key=b"bench/none", serializable=True), timeout_s=1.0).header.revision
        except grpc.RpcError:
            return None
        finally:
            calls.close()

    def snapshots_received(self) -> int:
        """Snapshots that this member received from a leader, over all its lives, by its log."""
        return self._log_path.read_bytes().count(self.system.snapshot_mark)

    def ready_count(self) -> int:
        """How often this member said that it serves clients (kvserver's words), over all its lives, by its log."""
        return self._log_path.read_bytes().count(b'"msg":"ready to serve client requests"')

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process.

        Raises:
            RuntimeError: it does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run:\n{self._log_tail()}")
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL (a stopped process too), and wait until it is gone. Nothing when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @property
    def _log_path(self) -> Path:
        return self.directory / "log"

    def _log_tail(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-8:])


class Cluster:
    """`size` members of one system under `directory`; with `is_proxied`, all traffic between them passes a relay that can throttle.

    Each gets the `flags` beside the shared ones and, with `has_http`, a port for /metrics (and kvserver's /debug/raft).
    """

    def __init__(
        self,
        system: System,
        directory: Path,
        *,
        size: int,
        ports: PortAllocator,
        is_proxied: bool = False,
        flags: Sequence[str] = (),
        has_http: bool = False,
    ) -> None:
        self.proxy: ProxyProcess | None = None
        names = [f"m{number}" for number in range(1, size + 1)]
        peers = {name: ports.next_port() for name in names}
        advertised = {name: ports.next_port() for name in names} if is_proxied else peers
        self._links = [Link(listen_port=advertised[name], target_port=peers[name]) for name in names] if is_proxied else []
        initial = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in advertised.items())
        self.members = [
            _member(system, name, directory / name, ports.next_port(), peers[name], advertised[name], initial) for name in names
        ]
        for member in self.members:
            member.http_port = ports.next_port() if has_http else None
            http = [f"--listen-metrics-urls=http://127.0.0.1:{member.http_port}"] if has_http else []
            member.flags = [*member.flags, *http, *flags]

    def start(self, deadline: Deadline) -> None:
        """Start all members and wait until each is ready.

        Raises:
            OutOfTimeError, RuntimeError: as `Member.wait_ready`.
        """
        if self._links:
            self.proxy = ProxyProcess(self._links)
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait_ready(deadline)

    def leader(self, deadline: Deadline) -> Member:
        """The member that leads, by its own word.

        Raises:
            OutOfTimeError: nobody said so until the deadline.
        """
        while True:
            for member in self.members:
                if _leads(member):
                    return member
            deadline.check("a leader")
            time.sleep(POLL_S)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in self.members:
            member.kill()
        if self.proxy is not None:
            self.proxy.stop()


def _member(system: System, name: str, directory: Path, client_port: int, peer_port: int, advertised_port: int, initial: str) -> Member:
    flags = [
        f"--name={name}",
        f"--data-dir={directory / 'data'}",
        f"--listen-client-urls=http://127.0.0.1:{client_port}",
        f"--advertise-client-urls=http://127.0.0.1:{client_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{advertised_port}",
        f"--initial-cluster={initial}",
        f"--quota-backend-bytes={QUOTA_BYTES}",
    ]
    return Member(system=system, name=name, directory=directory, client_port=client_port, peer_port=peer_port, flags=flags)


def _leads(member: Member) -> bool:
    calls = KvCalls(member.endpoint)
    try:
        status = calls.status(timeout_s=2.0)
    except grpc.RpcError:
        return False
    finally:
        calls.close()
    return bool(status.leader) and status.leader == status.header.member_id
