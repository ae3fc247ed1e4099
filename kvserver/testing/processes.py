"""A kvserver cluster of real processes on loopback ports, for tests, demos and benchmarks.

Purpose: start, SIGKILL, SIGSTOP, restart and inspect members; everything is cleaned up by process id, whatever happens.

Rules: synchronous; readiness is the server's own log line, read from its pipe (no sleeping and hoping); each member's log is kept in its
directory and quoted when it fails to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from kvserver.testing.ports import PortAllocator

READY_MESSAGE: Final = "ready to serve client requests"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0


class NodeStartError(Exception):
    """A member did not become ready; the text holds the end of its log."""


class _LogPump:
    """Copies a process's stderr to a file and notices the ready line."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.ready = threading.Event()
        self.ended = threading.Event()
        self._path = path
        self._thread = threading.Thread(target=self._pump, args=(stream,), name=f"log-{path.name}", daemon=True)
        self._thread.start()

    def _pump(self, stream: IO[bytes]) -> None:
        with self._path.open("ab") as target:
            for line in stream:
                target.write(line)
                target.flush()
                if READY_MESSAGE.encode() in line:
                    self.ready.set()
        stream.close()
        self.ended.set()
        self.ready.set()  # nobody waits for a process that is gone

    def join(self) -> None:
        self._thread.join(STOP_TIMEOUT_S)


@dataclass(slots=True, kw_only=True)
class NodeProcess:
    """One member: its flags, its directory, and the process while it runs. With `faults` (kvserver.testing.faults) its files may fail.

    `program` is what the interpreter gets in front of the flags: another module or script, which behaves like kvserver. `launcher` is a
    command that replaces itself by the one behind it (cgroup.MemoryCgroup).
    """

    name: str
    directory: Path
    client_port: int
    peer_port: int
    http_port: int
    flags: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[str] = ()
    program: Sequence[str] = ("-m", "kvserver")
    launcher: Sequence[str] = ()
    started_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None
    _log: _LogPump | None = None

    @property
    def endpoint(self) -> str:
        """host:port of the client port."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def data_dir(self) -> Path:
        """The member's data directory."""
        return self.directory / "data"

    @property
    def log_path(self) -> Path:
        """Its log, over all its lives."""
        return self.directory / "log.jsonl"

    @property
    def pid(self) -> int:
        """The running process's id.

        Raises:
            ProcessLookupError: it is not running.
        """
        if self._process is None:
            raise ProcessLookupError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """The process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait_ready: bool = True) -> None:
        """Start the process.

        Raises:
            NodeStartError: it ended or was not ready within `START_TIMEOUT_S`.
        """
        if self.is_running:
            raise RuntimeError(f"{self.name} is already running")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [*self.launcher, sys.executable, *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment},
            cwd=self.directory,
        )
        self.started_s = time.monotonic()
        assert self._process.stderr is not None
        self._log = _LogPump(self._process.stderr, self.log_path)
        if wait_ready:
            self.wait_ready()

    def _arguments(self) -> list[str]:
        if not self.faults:
            return [*self.program, *self.flags]
        return ["-m", "kvserver.testing.faulty_server", *(f"--fail={fault}" for fault in self.faults), "--", *self.flags]

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the member serves clients.

        Raises:
            NodeStartError: it ended or took longer than `timeout_s`.
        """
        assert self._log is not None
        became_ready = self._log.ready.wait(timeout_s)
        if not became_ready or self._log.ended.is_set():
            tail = self.log_path.read_text(errors="replace").splitlines()[-8:]
            what = f"is not ready after {timeout_s} s" if not became_ready else "ended before it was ready"
            raise NodeStartError(f"{self.name} {what}:\n" + "\n".join(tail))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process (SIGSTOP and SIGCONT for a stalled member)."""
        os.kill(self.pid, number)

    def wait_ended(self, timeout_s: float) -> int:
        """Wait until the process ends by itself; returns its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        process = self._process
        if process is None:
            raise ProcessLookupError(f"{self.name} is not running")
        code = process.wait(timeout_s)
        self._end(signal.SIGKILL)
        return code

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait until it is gone (SIGKILL after `STOP_TIMEOUT_S`); returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if self._log is not None:
            self._log.join()
        return code

    # --- what it shows -------------------------------------------------------------------------------------------------------------------

    def http(self, path: str, timeout_s: float = 5.0) -> bytes:
        """GET `path` from the member's HTTP port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=timeout_s) as answer:
            body: bytes = answer.read()
        return body

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        samples = {}
        for line in self.http("/metrics").decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def anonymous_bytes(self) -> int:
        """RssAnon of the process now."""
        return self._memory("RssAnon")

    def _memory(self, row: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(row + ":"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"{self.name}: no {row} in /proc")

    def log_events(self, message: str) -> list[dict[str, object]]:
        """The log lines whose `msg` is `message`."""
        if not self.log_path.exists():
            return []
        found = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            if message in line and line.startswith("{"):
                event = json.loads(line)
                if event.get("msg") == message:
                    found.append(event)
        return found


class ProcessCluster:
    """`size` members on free ports under `directory`; a context manager that leaves no process behind."""

    def __init__(self, directory: Path, *, size: int = 3, flags: Sequence[str] = (), ports: PortAllocator | None = None) -> None:
        allocator = ports or PortAllocator()
        names = [f"kv{number}" for number in range(1, size + 1)]
        triples = {name: (allocator.next_port(), allocator.next_port(), allocator.next_port()) for name in names}
        initial = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer, _) in triples.items())
        self.nodes = [
            NodeProcess(
                name=name,
                directory=directory / name,
                client_port=client,
                peer_port=peer,
                http_port=http,
                flags=[*member_flags(name, directory / name / "data", client, peer, http, initial), *flags],
            )
            for name, (client, peer, http) in triples.items()
        ]

    @property
    def endpoints(self) -> str:
        """All client endpoints, comma separated."""
        return ",".join(node.endpoint for node in self.nodes)

    def start(self) -> None:
        """Start all members and wait until each is ready."""
        for node in self.nodes:
            node.start(wait_ready=False)
        for node in self.nodes:
            node.wait_ready()

    def leader(self) -> NodeProcess:
        """The member that leads now, by its own metric.

        Raises:
            LookupError: none says so.
        """
        for node in self.nodes:
            if not node.is_running:
                continue
            try:
                leads = node.metrics().get("etcd_server_is_leader") == 1.0
            except OSError:
                continue  # starting, or stopped by a signal: it can't say
            if leads:
                return node
        raise LookupError("no member leads")

    def stop(self) -> None:
        """Stop every member that runs."""
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> ProcessCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self.nodes:
            node.kill()


def member_flags(name: str, data_dir: Path, client_port: int, peer_port: int, http_port: int, initial_cluster: str) -> list[str]:
    """The flags of one member on loopback."""
    return [
        f"--name={name}",
        f"--data-dir={data_dir}",
        f"--listen-client-urls=http://127.0.0.1:{client_port}",
        f"--advertise-client-urls=http://127.0.0.1:{client_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
        f"--listen-client-http-urls=http://127.0.0.1:{http_port}",
        f"--initial-cluster={initial_cluster}",
    ]
