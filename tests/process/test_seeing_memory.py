"""What operators see of real members: who holds the log window and by how much, on the page, through kvctl, and live."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvserver.testing.load import KvCalls
from kvserver.testing.processes import NodeProcess, ProcessCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WAIT_S = 60.0
CAP_BYTES = 1 << 20
VALUE_BYTES = 10_000


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvserver.cli.main", *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_"))}


def kvctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False, env=environment())


def page(node: NodeProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.http("/debug/raft"))
    return found


def peer_of(of: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(peer for peer in of["peers"] if peer["name"] == name)
    return found


def wait_page(node: NodeProcess, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """The first page on which `holds`."""
    until_s = time.monotonic() + WAIT_S
    while not holds(found := page(node)):
        assert time.monotonic() < until_s, f"{what}: {json.dumps(found, indent=1)}"
        time.sleep(0.05)
    return found


def fill(node: NodeProcess, count: int, size_bytes: int = VALUE_BYTES) -> None:
    calls = KvCalls(node.endpoint)
    try:
        for number in range(count):
            calls.put(b"key/%d" % number, os.urandom(size_bytes), timeout_s=30.0)
    finally:
        calls.close()


@contextmanager
def killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


def everybody_is_up_to_date(of: dict[str, Any]) -> bool:
    return len(of["peers"]) == 2 and all(peer["lag_entries"] == 0 and peer["state"] == "replicate" for peer in of["peers"])


def test_a_stopped_member_is_named_as_the_holder_with_the_right_amount_until_the_cap_is_passed(make_cluster) -> None:
    cluster: ProcessCluster = make_cluster(flags=(f"--log-window-bytes={CAP_BYTES}", "--log-peer-grace=1s"))
    cluster.start()
    leader = cluster.leader()
    stopped, other = (node for node in cluster.nodes if node is not leader)
    fill(leader, 3)
    before = wait_page(leader, everybody_is_up_to_date, "the members don't get up to date")
    stopped.send_signal(signal.SIGSTOP)

    fill(leader, 20)
    found = wait_page(leader, lambda of: of["window"]["held"]["entries"] >= 20, "what the stopped member needs isn't held")
    held, peer = found["window"]["held_by"], peer_of(found, stopped.name)
    assert (held["name"], held["id"]) == (stopped.name, peer["id"])
    assert held["claim"] in ("active", "down")
    assert peer["match_index"] == before["raft"]["last_index"]
    assert held["entries"] == peer["lag_entries"] == found["raft"]["last_index"] - before["raft"]["last_index"]
    assert 20 * VALUE_BYTES < held["bytes"] == peer["lag_bytes"] < 20 * (VALUE_BYTES + 500)
    assert (peer["hold"]["entries"], peer["hold"]["bytes"]) == (held["entries"], held["bytes"])
    assert found["accounted_bytes"]["log_window"] == found["window"]["bytes"] >= held["bytes"]
    metrics = leader.metrics()
    assert metrics[f'kvserver_peer_held_bytes{{To="{peer["id"]}"}}'] == held["bytes"]
    assert not [name for name in other.metrics() if name.startswith(("kvserver_peer_lag_", "kvserver_peer_held_"))]

    followers = wait_page(other, lambda of: of["window"]["held"]["entries"] > 0, "the follower doesn't keep the leader's floor")
    assert followers["window"]["held_by"] == {
        "claim": "leader_floor",
        **followers["raft"]["leader"],
        **followers["window"]["held"],
        "remaining_s": None,
    }
    asked = kvctl("memory", f"--endpoints={leader.endpoint}", "--cluster")
    assert asked.returncode == 1, "one member does not answer"
    amount = f"{held['bytes'] / 1024:.1f} KiB, {held['entries']} entries"
    assert re.search(rf"held by +{stopped.name} \((active|down)\) {amount}", asked.stdout), asked.stdout
    assert f"{stopped.endpoint}: unreachable: " in asked.stdout
    listed = json.loads(kvctl("memory", f"--endpoints={cluster.endpoints}", "-w", "json").stdout)
    assert [each["Endpoint"] for each in listed] == [node.endpoint for node in cluster.nodes]
    by_name = {each["Memory"]["member"]["name"]: each["Memory"] for each in listed if "Memory" in each}
    assert by_name.keys() == {leader.name, other.name}
    assert by_name[leader.name]["window"]["held_by"]["name"] == stopped.name

    fill(leader, 2 * CAP_BYTES // VALUE_BYTES)
    found = wait_page(leader, lambda of: peer_of(of, stopped.name)["hold"]["claim"] == "disk", "the claim doesn't end")
    assert (found["window"]["held_by"] or {}).get("name") != stopped.name
    assert (peer_of(found, stopped.name)["hold"]["entries"], peer_of(found, stopped.name)["hold"]["bytes"]) == (0, 0)
    assert found["window"]["bytes"] < CAP_BYTES + 2 * VALUE_BYTES
    wait_page(
        leader, lambda of: of["window"]["held"]["entries"] == 0 and of["window"]["held_by"] is None, "somebody still holds the window"
    )
    assert re.search("held by +nobody", kvctl("memory", f"--endpoints={leader.endpoint}").stdout)


def test_a_single_member_holds_only_the_slack_and_top_shows_it_live(make_cluster) -> None:
    cluster: ProcessCluster = make_cluster(size=1)
    cluster.start()
    (node,) = cluster.nodes
    fill(node, 250, 1000)
    found = wait_page(node, lambda of: of["window"]["unsafe"]["entries"] == 0, "the last entries don't become durable")
    window = found["window"]
    assert window["held"] == {"entries": 0, "bytes": 0}
    assert window["held_by"] is None
    assert (window["slack"]["entries"], window["slack"]["bytes"]) == (window["entries"], window["bytes"])
    assert window["entries"] < window["slack_limits"]["entries"]
    assert window["bytes"] < window["slack_limits"]["bytes"]
    assert found["compactions"]["single"] >= 2
    assert found["process"]["anonymous_bytes"] > 10 << 20

    asked = kvctl("memory", f"--endpoints={node.endpoint}", "-w", "table")
    assert asked.returncode == 0, asked.stderr
    assert "nobody" in asked.stdout
    once = kvctl("top", f"--endpoints={node.endpoint}", "--once")
    assert (once.returncode, once.stderr) == (0, "")
    assert once.stdout.startswith("ENDPOINT")
    assert "\x1b" not in once.stdout

    live = [f"--endpoints={node.endpoint}", "--interval=200ms"]
    piped = subprocess.Popen(command("top", *live), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment())
    with killed_at_the_end(piped):
        assert piped.stdout is not None
        text = b""
        while text.count(b"kvctl top") < 2:
            text += piped.stdout.readline()
        piped.send_signal(signal.SIGINT)
        assert piped.wait(WAIT_S) == 0
        assert b"\x1b" not in text
    screen = on_a_terminal(command("top", *live), until=node.name.encode(), then=b"q")
    assert screen.startswith(b"\x1b[?1049h")
    assert screen.endswith(b"\x1b[?1049l")


def on_a_terminal(arguments: list[str], *, until: bytes, then: bytes) -> bytes:
    """Run a command on a terminal, type `then` once it has shown `until`; everything that it wrote, after it ended with 0."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    shown, has_typed, until_s = b"", False, time.monotonic() + WAIT_S
    with killed_at_the_end(process):
        while time.monotonic() < until_s:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:
                    break  # the other side is closed: the process has ended
            if until in shown and not has_typed:
                os.write(ours, then)
                has_typed = True
        assert process.wait(WAIT_S) == 0, shown
    os.close(ours)
    return shown
