"""kvctl watch beside etcdctl watch, on a real etcd: the same bytes, messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver.cli.errors import CliError
from kvserver.cli.watch import make_order, parse_line
from kvserver.pb import rpc_pb2 as pb

KVCTL = str(Path(sys.executable).with_name("kvctl"))
NO_FLAGS = {"prefix": False, "rev": 0, "prev_kv": False, "progress_notify": False}


@pytest.fixture(scope="module")
def endpoint(etcd: Any, etcdctl: Any) -> str:
    """An etcd with some history: revisions 2 to 5, compacted at 3."""
    for arguments in (["put", "foo", 'b"ar'], ["put", "foo", "b\nz"], ["del", "foo"], ["put", "foo", "x"], ["compaction", "3"]):
        assert etcdctl(etcd.endpoint, arguments, b"")[0] == 0
    return str(etcd.endpoint)


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ETCDCTL_", "KVCTL_"))}
    return {**clean, "ETCDCTL_API": "3", **variables}


def both(endpoint: str, look: Callable[[list[str]], Any], *arguments: str) -> tuple[Any, Any]:
    one, other = (look([tool, f"--endpoints={endpoint}", *arguments]) for tool in ("etcdctl", KVCTL))
    return one, other


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("foo", "--rev=3", "--prev-kv"), 8),
        (("foo", "--rev=3", "--prev-kv", "-w", "json"), 1),
        (("foo", "--rev=3", "--prev-kv", "-w", "fields"), 31),
        (("", "--prefix", "--rev=4", "--hex"), 6),
        (("fo", "fop", "--rev=5"), 3),
        (("foo", "--rev=3", "--", "sh", "-c", "env | grep ETCD_WATCH_ | sort"), 21),
    ],
)
def test_events_are_printed_as_etcdctl_does(endpoint: str, arguments: tuple[str, ...], count: int) -> None:
    def look(command: list[str]) -> list[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment())
        assert process.stdout is not None
        try:
            return [process.stdout.readline() for _ in range(count)]
        finally:
            process.kill()
            process.wait(10)
            process.stdout.close()

    one, other = both(endpoint, look, "watch", *arguments)
    assert other == one
    assert other[-1].endswith(b"\n")


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "variables", "stdin", "code"),
    [
        (("foo", "--rev=2"), {}, b"", 5),
        (("foo", "--rev=2", "-w", "fields"), {}, b"", 5),
        (("b", "a"), {}, b"", 5),
        (("foo", "--rev=5", "-w", "table"), {}, b"", 4),
        (("foo", "--"), {}, b"", 128),
        ((), {}, b"", 128),
        (("a", "b", "--prefix"), {}, b"", 128),
        (("a",), {"ETCDCTL_WATCH_RANGE_END": "z"}, b"", 128),
        (("a",), {"ETCDCTL_WATCH_KEY": "foo"}, b"", 128),
        (("foo", "--rev=5", "--", "false"), {}, b"", 1),
        (("foo", "--rev=5", "--", "/nonexistent"), {}, b"", 1),
        (("--rev=5", "--", "nonexistent"), {"ETCDCTL_WATCH_KEY": "foo"}, b"", 1),
        (("-i",), {}, b"watch\nnonsense\n\nwatch foo --\n", 128),
        (("-i",), {}, b"nonsense\n", 3),
    ],
)
def test_endings_are_etcdctls(endpoint: str, arguments: tuple[str, ...], variables: dict[str, str], stdin: bytes, code: int) -> None:
    def look(command: list[str]) -> tuple[int, bytes, bytes]:
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment(**variables), timeout=30, check=False)
        return done.returncode, done.stdout, done.stderr

    one, other = both(endpoint, look, "watch", *arguments)
    assert other == one
    assert other[0] == code


@pytest.mark.process
def test_watches_are_made_while_others_go_on(endpoint: str) -> None:
    command = [KVCTL, f"--endpoints={endpoint}", "watch", "-i"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"watch foo --rev 5\n")
        assert [process.stdout.readline() for _ in range(3)] == [b"PUT\n", b"foo\n", b"x\n"]
        process.stdin.write(b'watch fo --prefix --rev 5 -- sh -c "echo $ETCD_WATCH_KEY"\n')
        assert [process.stdout.readline() for _ in range(4)] == [b"PUT\n", b"foo\n", b"x\n", b'"foo"\n']
        process.stdin.write(b"progress\n")
        assert [process.stdout.readline() for _ in range(2)] == [b"progress notify: 5\n"] * 2
        process.stdin.close()
        assert process.wait(10) == 3


def test_a_line_of_i_is_a_command_line() -> None:
    order = parse_line("watch 'a b' --prefix --rev=7 --prev-kv -- sh -c 'x y'", {})
    assert order is not None
    assert order.request == pb.WatchCreateRequest(key=b"a b", range_end=b"a c", start_revision=7, prev_kv=True)
    assert order.command == ("sh", "-c", "x y")


def test_the_key_of_the_environment_may_be_kvctls() -> None:
    order = make_order((), None, NO_FLAGS, {"KVCTL_WATCH_KEY": "k", "ETCDCTL_WATCH_KEY": "e", "KVCTL_WATCH_RANGE_END": "l"})
    assert order.request == pb.WatchCreateRequest(key=b"k", range_end=b"l")


@pytest.mark.parametrize("line", ["watch --nonsense", "watch a --rev=x", "watch --help"])
def test_a_wrong_line_is_an_error(line: str) -> None:
    with pytest.raises(CliError):
        parse_line(line, {})
