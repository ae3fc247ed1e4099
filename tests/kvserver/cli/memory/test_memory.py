"""kvctl memory and top: what is read, what is shown, and how they end; real members stand in tests/process/test_seeing_memory.py."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from kvserver.cli.memory.asking import Answer, ask
from kvserver.cli.memory.page import PageError, parse_page
from kvserver.cli.memory.screen import fit
from kvserver.cli.memory.show import as_blocks, as_json, as_lines, as_tables, format_bytes
from kvserver.client import CallTimeoutError, ConnectError, ServerError
from kvserver.pb import debug_pb2, rpc_pb2

PAGE: dict[str, Any] = {
    "member": {"id": "a1", "name": "kv1"},
    "raft": {"role": "leader", "is_learner": False, "term": 3, "applied_index": 27},
    "window": {
        "first_index": 2,
        "last_index": 28,
        "entries": 27,
        "bytes": 237_465,
        "limits": {"entries": 100_000, "bytes": 64 << 20},
        "held_by": {"id": "b2", "name": "", "claim": "down", "entries": 20, "bytes": 205_520, "remaining_s": 586.2},
    },
    "accounted_bytes": {"log_window": 237_465, "proposals": 0, "novelty": 1},
    "process": {"rss_bytes": 60 << 20, "anonymous_bytes": 34 << 20, "file_bytes": None},
}


def changed(**window: Any) -> bytes:
    page = copy.deepcopy(PAGE)
    page["window"].update(window)
    return json.dumps(page).encode()


FINE = Answer(endpoint="a:1", memory=parse_page(changed()))
GONE = Answer(endpoint="b:1", error="cannot connect: connection refused")


def test_a_block_says_everything_in_words() -> None:
    assert as_blocks([FINE, GONE]).decode() == (
        "a:1: kv1, leader in term 3\n"
        "  memory     rss 60.0 MiB = anonymous 34.0 MiB + file ?\n"
        "  accounted  231.9 KiB: log window 231.9 KiB, novelty 1 B; 33.8 MiB are the program, its libraries and what the allocator keeps\n"
        "  window     [2 .. 27 .. 28]: 27 entries, 231.9 KiB of 64.0 MiB\n"
        "  held by    b2 (down) 200.7 KiB, 20 entries, for 586 s more at most\n"
        "\n"
        "b:1: unreachable: cannot connect: connection refused\n"
    )


def test_entries_with_several_owners_leave_no_negative_rest() -> None:
    page = json.loads(changed())
    page["process"]["anonymous_bytes"] = 1000
    assert (
        "log window 231.9 KiB, novelty 1 B\n" in as_blocks([Answer(endpoint="a:1", memory=parse_page(json.dumps(page).encode()))]).decode()
    )


def test_nobody_holds_it() -> None:
    answer = Answer(endpoint="a:1", memory=parse_page(changed(held_by=None)))
    assert "held by    nobody\n" in as_blocks([answer]).decode()


def test_tables_have_a_row_per_endpoint_and_a_row_per_owner() -> None:
    text = as_tables([FINE, GONE]).decode()
    assert "[2 .. 27 .. 28]" in text
    assert "unreachable" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if " KiB |" in line or " B |" in line][1:] == [
        "log window",
        "proposals",
        "novelty",
    ]


def test_json_has_the_page_as_it_came_and_the_error() -> None:
    listed = json.loads(as_json([FINE, GONE]))
    assert listed == [{"Endpoint": "a:1", "Memory": PAGE}, {"Endpoint": "b:1", "Error": GONE.error}]


def test_lines_are_aligned_and_hold_no_escapes() -> None:
    lines = as_lines([FINE, GONE])
    assert lines[0].index("MEMBER") == lines[1].index("kv1")
    assert lines[0].index("HELD BY") == lines[1].index("b2 (down)") == lines[2].index("cannot connect")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_048_570, "1.0 MiB"), (64 << 20, "64.0 MiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_are_in_powers_of_1024(size: int | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"[]", b"null", b"{}", b'{"raft":1}', changed(first_index="x"), changed(held_by=3), changed(limits=None)],
)
def test_what_is_no_page_is_an_error_and_no_traceback(text: bytes) -> None:
    with pytest.raises(PageError, match="no memory page"):
        parse_page(text)


class Scripted:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def memory(self, endpoint: str, *, timeout_s: float | None = None) -> bytes:
        if isinstance(self._answer, Exception):
            raise self._answer
        answer: bytes = self._answer
        return answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ConnectError({"a:1": "connection refused"}), "cannot connect: connection refused"),
        (ServerError(12, "unknown service kvserver.Debug"), "it can't tell: not a kvserver, or an older one"),
        (ServerError(14, "etcdserver: no leader"), "etcdserver: no leader"),
        (CallTimeoutError(), "context deadline exceeded"),
        (b"no page", "its answer is no memory page: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
)
async def test_every_failure_of_an_endpoint_is_a_text(answer: Any, error: str) -> None:
    client: Any = Scripted(answer)
    assert await ask(client, "a:1") == Answer(endpoint="a:1", error=error)


def test_a_frame_fits_the_terminal_and_leaves_nothing_of_the_last_one() -> None:
    assert fit(["abcdef", "g", "h"], width=3, height=3) == "\x1b[Habc\x1b[K\r\ng\x1b[K\r\n\x1b[J"


# --- the commands ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """A server that has the page, and knows itself and one that is gone as members."""
    made = grpc.server(ThreadPoolExecutor(2))
    port = made.add_insecure_port("127.0.0.1:0")
    members = rpc_pb2.MemberListResponse(
        members=[rpc_pb2.Member(clientURLs=[f"http://127.0.0.1:{port}"]), rpc_pb2.Member(clientURLs=["http://127.0.0.1:1"])]
    )

    def serve(answer: Any, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: answer, request_deserializer=request.FromString, response_serializer=type(answer).SerializeToString
        )

    page = debug_pb2.MemoryResponse(json=changed())
    made.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("kvserver.Debug", {"Memory": serve(page, debug_pb2.MemoryRequest)}),
            grpc.method_handlers_generic_handler("etcdserverpb.Cluster", {"MemberList": serve(members, rpc_pb2.MemberListRequest)}),
        )
    )
    made.start()
    yield f"127.0.0.1:{port}"
    made.stop(0)


def test_all_members_are_asked_and_the_exit_code_tells_that_one_is_gone(kvctl: Callable[..., Any], server: str) -> None:
    alone = kvctl("memory", f"--endpoints={server}")
    assert (alone.code, alone.stderr) == (0, b"")
    every = kvctl("memory", f"--endpoints={server}", "--cluster", "--dial-timeout=300ms", "-w", "json")
    assert every.code == 1
    fine, gone = json.loads(every.stdout)
    assert (fine["Endpoint"], fine["Memory"]["member"]["name"]) == (f"http://{server}", "kv1")
    assert (gone["Endpoint"], gone["Error"].partition(":")[0]) == ("http://127.0.0.1:1", "cannot connect")
    assert kvctl("top", "--once", f"--endpoints={server},127.0.0.1:1", "--dial-timeout=300ms").code == 1


def test_nobody_answers(kvctl: Callable[..., Any], unused_endpoint: str) -> None:
    for command in (["memory"], ["top", "--once"]):
        outcome = kvctl(*command, f"--endpoints={unused_endpoint}", "--dial-timeout=300ms")
        assert outcome.code == 2
        assert b"unreachable" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["memory", "x"], 128, b"accepts no arguments"),
        (["top", "x"], 128, b"accepts no arguments"),
        (["memory", "-w", "fields"], 4, b"fields not supported as output format"),
        (["top", "-w", "json"], 4, b"json not supported as output format"),
        (["top", "--interval=0s"], 128, b"must be 0.1s at least"),
        (["top", "--interval=soon"], 1, b'invalid argument "soon" for "--interval" flag'),
        (["memory", "--endpoints="], 2, b"no available endpoints"),
        (["memory", "--cluster", "--endpoints=127.0.0.1:1", "--dial-timeout=100ms"], 2, b"failed to fetch the endpoints"),
    ],
)
def test_bad_input_is_one_line(kvctl: Callable[..., Any], arguments: list[str], code: int, error: bytes) -> None:
    outcome = kvctl(*arguments)
    assert (outcome.code, outcome.stderr.count(b"\n")) == (code, 1), outcome.stderr
    assert error in outcome.stderr


@pytest.mark.etcd
def test_an_etcd_can_not_tell(kvctl: Callable[..., Any], etcd: Any) -> None:
    outcome = kvctl("memory", f"--endpoints={etcd.endpoint}")
    assert outcome.code == 2
    assert b"it can't tell: not a kvserver" in outcome.stdout


@pytest.mark.process
@pytest.mark.parametrize(("ending", "code"), [("interrupt", 0), ("reader gone", 141)])
def test_top_in_a_pipe_ends_quietly(server: str, ending: str, code: int) -> None:
    command = [sys.executable, "-m", "kvserver.cli.main", "top", f"--endpoints={server}", "--interval=100ms"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "ETCDCTL_"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    watchdog = threading.Timer(60.0, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"kvctl top")
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        else:
            process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", code)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
