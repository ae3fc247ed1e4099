"""The command lines of bench: what is refused before anything is sent, and runs against kvserver and etcd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import ProcessCluster

KVCTL = [sys.executable, "-m", "kvserver.cli.main"]


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("put k", 128, "bench put command accepts no arguments"),
        ("mixed k", 128, "bench mixed command accepts no arguments"),
        ("range", 128, "bench range command needs a key and an optional range_end"),
        ("range a b c", 128, "bench range command needs a key and an optional range_end"),
        ("put --total=0", 1, 'invalid argument "0" for "--total" flag: must be positive'),
        ("put --clients=-1", 1, 'invalid argument "-1" for "--clients" flag: must be positive'),
        ("put --conns=0", 1, 'invalid argument "0" for "--conns" flag: must be positive'),
        ("put --rate=-1", 1, 'invalid argument "-1" for "--rate" flag: must not be negative'),
        ("put --val-size=-1", 1, 'invalid argument "-1" for "--val-size" flag: must not be negative'),
        ("put --key-size=0", 1, 'invalid argument "0" for "--key-size" flag: must be positive'),
        ("put --key-space-size=0", 1, 'invalid argument "0" for "--key-space-size" flag: must be positive'),
        ("put --key-size=1 --key-space-size=65", 1, "65 different keys need --key-size=2 at least"),
        ("put --compact-interval=soon", 1, 'invalid argument "soon" for "--compact-interval" flag: time: invalid duration "soon"'),
        ("range k --consistency=x", 4, 'unknown consistency flag "x"'),
        ("mixed --rd-wr-ratio=-1", 1, 'invalid argument "-1" for "--rd-wr-ratio" flag: must be a number that isn\'t negative'),
        ("mixed --rd-wr-ratio=nan", 1, 'invalid argument "nan" for "--rd-wr-ratio" flag: must be a number that isn\'t negative'),
        ("mixed --rd-wr-ratio=much", 1, 'invalid argument "much" for "--rd-wr-ratio" flag: must be a number that isn\'t negative'),
        ("put -w table", 4, "unsupported output format"),
        ("put --total=x", 1, 'invalid argument "x" for "--total" flag: strconv.ParseInt: parsing "x": invalid syntax'),
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(kvctl: Any, line: str, code: int, text: str) -> None:
    outcome = kvctl("bench", *line.split())
    assert (outcome.code, outcome.stdout, outcome.stderr.decode()) == (code, b"", f"Error: {text}\n")


def test_every_endpoint_that_is_used_must_be_there(kvctl: Any, unused_endpoint: str) -> None:
    outcome = kvctl(f"--endpoints={unused_endpoint}", "--dial-timeout=300ms", "bench", "put")
    assert (outcome.code, outcome.stdout) == (2, b"")
    assert outcome.stderr.decode() == f"Error: cannot connect: {unused_endpoint}: connection refused\n"


@pytest.fixture(scope="module")
def kvserver_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ProcessCluster(tmp_path_factory.mktemp("bench"), size=1, ports=PortAllocator()) as cluster:
        cluster.start()
        yield cluster.nodes[0].endpoint


@pytest.fixture(
    params=[
        pytest.param("kvserver_endpoint", marks=pytest.mark.process),
        pytest.param("etcd", marks=pytest.mark.etcd),
    ]
)
def endpoint(request: pytest.FixtureRequest) -> str:
    """A server of either make."""
    server = request.getfixturevalue(request.param)
    return f"--endpoints={server if isinstance(server, str) else server.endpoint}"


def revision(kvctl: Any, endpoint: str) -> int:
    found: int = json.loads(kvctl(endpoint, "get", "nosuch", "-w", "json").stdout)["header"]["revision"]
    return found


def test_puts_are_made_as_many_as_reported(kvctl: Any, endpoint: str) -> None:
    before = revision(kvctl, endpoint)
    outcome = kvctl(
        endpoint,
        "bench",
        "put",
        "--total=200",
        "--clients=10",
        "--conns=3",
        "--key-space-size=50",
        "--sequential-keys",
        "--val-size=100",
        "--json",
    )
    assert outcome.code == 0
    document = json.loads(outcome.stdout)
    assert document["requests"]["put"]["succeeded"] == 200
    assert document["options"]["endpoints"] == [endpoint.partition("=")[2]]
    assert revision(kvctl, endpoint) == before + 200
    kvs = json.loads(kvctl(endpoint, "get", "", "--prefix", "-w", "json").stdout)["kvs"]
    written = [each for each in kvs if each["mod_revision"] > before]
    assert (len(written), {each["version"] for each in written}) == (50, {4})


def test_the_text_has_etcds_sections(kvctl: Any, endpoint: str) -> None:
    outcome = kvctl(endpoint, "bench", "put", "--total=30")
    assert outcome.code == 0
    sections = [line for line in outcome.stdout.decode().splitlines() if line.endswith(":")]
    assert sections == ["Summary:", "Response time histogram:", "Latency distribution:"]


@pytest.mark.parametrize("consistency", ["l", "s"])
def test_ranges(kvctl: Any, endpoint: str, consistency: str) -> None:
    outcome = kvctl(endpoint, "bench", "range", "a", "z", f"--consistency={consistency}", "--limit=5", "--total=20", "-w", "json")
    assert (outcome.code, json.loads(outcome.stdout)["requests"]["range"]["succeeded"]) == (0, 20)


def test_a_mixed_run_reports_reads_and_writes_to_the_terminal_and_to_a_file(kvctl: Any, endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    before = revision(kvctl, endpoint)
    outcome = kvctl(endpoint, "bench", "mixed", "--total=60", "--clients=4", "--rd-wr-ratio=2", f"--json={file}")
    assert outcome.code == 0
    parts = json.loads(file.read_text())["requests"]
    assert list(parts) == ["range", "put"]
    assert parts["range"]["succeeded"] + parts["put"]["succeeded"] == 60
    assert revision(kvctl, endpoint) == before + parts["put"]["succeeded"]
    assert f"Total put requests: {parts['put']['succeeded']}\n" in outcome.stdout.decode()


def test_a_rate_is_kept(kvctl: Any, endpoint: str) -> None:
    outcome = kvctl(endpoint, "bench", "put", "--total=20", "--clients=5", "--rate=40", "--json")
    document = json.loads(outcome.stdout)
    assert (outcome.code, document["requests"]["put"]["succeeded"]) == (0, 20)
    assert document["elapsed_s"] >= 19 / 40
    assert document["late_starts"]["max_s"] >= 0


def test_compaction_runs_beside_the_puts(kvctl: Any, endpoint: str) -> None:
    outcome = kvctl(endpoint, "bench", "put", "--total=40", "--rate=80", "--compact-interval=100ms", "--compact-index-delta=1")
    assert outcome.code == 0
    assert b"compacted" in kvctl(endpoint, "get", "k", "--rev=2").stderr


def test_failed_requests_are_reported_and_the_exit_code_says_so(kvctl: Any, endpoint: str) -> None:
    outcome = kvctl(endpoint, "bench", "range", "", "--total=7")
    assert (outcome.code, outcome.stderr) == (1, b"Error: 7 of 7 requests failed\n")
    assert outcome.stdout.decode().endswith("Error distribution:\n  [7]\tetcdserver: key is not provided\n")


def test_a_report_that_cannot_be_written_is_said_before_the_load(kvctl: Any, endpoint: str, tmp_path: Path) -> None:
    before = revision(kvctl, endpoint)
    path = tmp_path / "nosuch" / "file"
    outcome = kvctl(endpoint, "bench", "put", "--total=5", f"--json={path}")
    assert (outcome.code, outcome.stdout) == (1, b"")
    assert outcome.stderr.decode() == f"Error: could not write the report to {path}: no such file or directory\n"
    assert revision(kvctl, endpoint) == before


def test_a_full_disk_under_the_file_does_not_keep_the_text_back(kvctl: Any, endpoint: str) -> None:
    outcome = kvctl(endpoint, "bench", "put", "--total=5", "--json=/dev/full")
    assert outcome.stdout.decode().startswith("\nSummary:\n")
    assert (outcome.code, outcome.stderr) == (1, b"Error: could not write the report to /dev/full: no space left on device\n")


def test_an_interrupt_prints_the_report_so_far(kvctl: Any, endpoint: str) -> None:
    before = revision(kvctl, endpoint)
    command = [*KVCTL, endpoint, "bench", "put", "--total=1000000", "--clients=3", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        try:
            while revision(kvctl, endpoint) < before + 20:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    document = json.loads(out)
    part = document["requests"]["put"]
    assert document["interrupted"]
    assert (part["failed"], part["errors"]) == (0, {})
    assert part["succeeded"] >= 15
    assert document["unsent"] == 1_000_000 - part["succeeded"] - part["unanswered"]
    assert b"Traceback" not in err
    assert part["succeeded"] <= revision(kvctl, endpoint) - before <= part["succeeded"] + part["unanswered"]
