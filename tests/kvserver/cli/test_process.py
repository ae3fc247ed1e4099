"""kvctl as a process: how fast it starts, how it ends, and that nothing but its own words reaches the terminal."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KVCTL = [sys.executable, "-m", "kvserver.cli.main"]


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_", "PYTHONUNBUFFERED"))}
    return kept | extra


def run(*arguments: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*KVCTL, *arguments], input=stdin, capture_output=True, env=environment(**extra), timeout=60, check=False)


def test_version() -> None:
    done = run("version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0].startswith(b"kvctl version: ")
    assert done.stdout.splitlines()[1] == b"API version: 3.6"


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["help"]])
def test_help_and_version_import_neither_grpc_nor_protobuf(arguments: list[str]) -> None:
    """Starting fast, said in a way that a loaded machine can't blur."""
    program = (
        "import sys\n"
        "from kvserver.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "heavy = [name for name in ('grpc', 'google.protobuf', 'rich', 'asyncio') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_costs_less_than_a_quarter_second_of_cpu_at_its_best() -> None:
    """CPU time instead of wall time, and the best of five, so that a busy machine says the same."""
    costs_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs_s) < 0.25


def test_no_command_shows_help_and_succeeds() -> None:
    assert run().stdout == run("--help").stdout == run("help").stdout


def test_connection_refused_is_exit_code_2_and_one_line(unused_endpoint: str) -> None:
    endpoint = unused_endpoint
    done = run(f"--endpoints={endpoint}", "--dial-timeout=300ms", "get", "k")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == f"Error: cannot connect: {endpoint}: connection refused\n".encode()


def test_a_port_that_is_not_grpc_says_so_and_does_not_hang(unused_endpoint: str) -> None:
    host, _, port = unused_endpoint.partition(":")
    with socket.create_server((host, int(port))):
        endpoint = unused_endpoint
        done = run(f"--endpoints={endpoint}", "--dial-timeout=400ms", "get", "k")
    assert done.returncode == 2
    said = done.stderr.decode().removeprefix(f"Error: cannot connect: {endpoint}: ")
    assert said in ("timed out\n", "accepts connections but does not answer: it hangs or is overloaded\n")


def test_no_endpoints_is_exit_code_2() -> None:
    done = run("--endpoints=", "get", "k")
    assert (done.returncode, done.stderr) == (2, b"Error: etcdclient: no available endpoints\n")


def test_interrupt_ends_quietly_with_130() -> None:
    with subprocess.Popen(
        [*KVCTL, "put", "k"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        wait_until_it_reads(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


def test_sigterm_ends_quietly_with_143() -> None:
    with subprocess.Popen(
        [*KVCTL, "put", "k"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        wait_until_it_reads(process.pid)
        process.terminate()
        assert process.wait(20) == 143
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_removes_the_part_of_a_snapshot(unused_endpoint: str, tmp_path: Path, ignored: bool) -> None:
    """Also in the background of a shell, where SIGINT is ignored."""
    host, _, port = unused_endpoint.partition(":")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    try:
        with (
            socket.create_server((host, int(port))),
            subprocess.Popen(
                [*KVCTL, f"--endpoints={unused_endpoint}", "--dial-timeout=60s", "snapshot", "save", str(tmp_path / "f")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
            ) as process,
        ):
            deadline = time.monotonic() + 20
            while not (tmp_path / "f.part").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert (tmp_path / "f.part").exists()
            process.terminate()
            assert process.wait(20) == 143
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    assert os.listdir(tmp_path) == []


def wait_until_it_reads(pid: int) -> None:
    """Until the main thread sleeps in a read of standard input (system call 0 on x86-64, 63 on arm64)."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/syscall") as file:
            fields = file.read().split()
        if fields[0] in ("0", "63") and fields[1] == "0x0":
            return
        os.sched_yield()
    raise AssertionError("kvctl never read its input")


@pytest.mark.etcd
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_large_values_arrive_whole_and_a_closed_pipe_is_quiet(etcd: Any, unbuffered: str) -> None:
    """PYTHONUNBUFFERED makes stdout a bare file that takes only a part of a large write."""
    endpoint = f"--endpoints={etcd.endpoint}"
    value = bytes(range(256)) * 4000
    assert run(endpoint, "put", "large", stdin=value).stdout == b"OK\n"
    extra = {"PYTHONUNBUFFERED": unbuffered} if unbuffered else {}
    assert run(endpoint, "get", "large", "--print-value-only", **extra).stdout == value + b"\n"
    command = [*KVCTL, endpoint, "get", "large"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**extra)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"large"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""


@pytest.mark.etcd
def test_a_full_disk_is_an_error_of_one_line(etcd: Any) -> None:
    endpoint = f"--endpoints={etcd.endpoint}"
    assert run(endpoint, "put", "k", "v").returncode == 0
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*KVCTL, endpoint, "get", "k"], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"Error: no space left on device\n")


@pytest.mark.etcd
def test_arguments_that_are_not_utf8_are_bytes(etcd: Any) -> None:
    command = [*KVCTL, f"--endpoints={etcd.endpoint}"]
    done = subprocess.run(
        [*map(os.fsencode, command), b"put", b"\xff\xfe", b"\x80"], capture_output=True, env=environment(), timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(
        [*map(os.fsencode, command), b"get", b"\xff\xfe"], capture_output=True, env=environment(), timeout=60, check=False
    )
    assert done.stdout == b"\xff\xfe\n\x80\n"


@pytest.mark.etcd
def test_the_next_endpoint_serves_when_the_first_is_down(etcd: Any, unused_endpoint: str) -> None:
    dead = unused_endpoint
    both = f"--endpoints={dead},{etcd.endpoint}"
    assert run(both, "put", "failover", "1").stdout == b"OK\n"
    assert run(both, "get", "failover").stdout == b"failover\n1\n"
    status = run(both, "--dial-timeout=200ms", "endpoint", "status")
    assert status.returncode == 1
    assert status.stdout.startswith(etcd.endpoint.encode())
    assert status.stderr == f"Failed to get the status of endpoint {dead} (cannot connect: connection refused)\n".encode()


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["help", "put"], b"Usage: kvctl put [flags] <key>"),
        (["--endpoints=x:1", "help", "put"], b"Usage: kvctl put [flags] <key>"),
        (["--endpoints", "x:1", "--hex", "help", "member", "add"], b"Usage: kvctl member add [flags]"),
        (["member", "help", "add"], b"Usage: kvctl member add [flags]"),
        (["member", "help"], b"Usage: kvctl member [flags]"),
        (["--hex", "help"], b"Usage: kvctl [flags] [COMMAND]"),
    ],
)
def test_help_is_a_command_at_every_level_and_behind_flags(arguments: list[str], usage: bytes) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(usage)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_snapshot_that_is_interrupted_says_so_in_one_line(unused_endpoint: str, tmp_path: Path, number: signal.Signals) -> None:
    host, _, port = unused_endpoint.partition(":")
    target = str(tmp_path / "f")
    command = [*KVCTL, f"--endpoints={unused_endpoint}", "--dial-timeout=60s", "snapshot", "save", target]
    with (
        socket.create_server((host, int(port))),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not (tmp_path / "f.part").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            said = process.communicate(timeout=20)[1].decode().splitlines()
        finally:
            process.kill()
    assert process.returncode == (130 if number is signal.SIGINT else 143)
    assert [line for line in said if not line.startswith("{")] == ["Error: interrupted before it was done; nothing half-made is left"]
    assert os.listdir(tmp_path) == []


def test_snapshot_restore_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """The interrupt comes while the content is copied."""
    program = (
        "import signal, sys\n"
        "from kvserver.backup import restoring\n"
        "def copy(*arguments):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "restoring._copy = copy\n"
        "from kvserver.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    (tmp_path / "snapshot").write_bytes(bytes(512))
    arguments = ["snapshot", "restore", str(tmp_path / "snapshot"), f"--data-dir={tmp_path}/data"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, env=environment(), timeout=60, check=False)
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("{")]
    assert (done.returncode, said) == (130, ["Error: interrupted before it was done; nothing half-made is left"])
    assert os.listdir(tmp_path) == ["snapshot"]
