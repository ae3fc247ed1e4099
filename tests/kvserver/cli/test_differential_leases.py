"""kvctl lease beside etcdctl lease: the same command lines on the same etcd 3.4, whose leases have ids that the test chose.

Masked: the seconds that a lease has left. Not compared: the order of several attached keys and of leases (etcd has none, or its own), and
ids that the server draws.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from kvserver.client import Client, ClientConfig, methods, parse_endpoint
from kvserver.pb import rpc_pb2 as pb

pytestmark = pytest.mark.etcd

FORMATS = ("simple", "json", "fields", "protobuf")
LEASE = 0x7A
ASKING = [
    *(f"lease timetolive 7a -w {form}" for form in FORMATS),
    *(f"lease timetolive --keys 7a -w {form}" for form in FORMATS),
    *(f"lease timetolive 7b --keys -w {form}" for form in FORMATS),
    *(f"lease keep-alive --once 7a -w {form}" for form in FORMATS),
    *(f"lease keep-alive 7b -w {form}" for form in FORMATS),
    *(f"lease list -w {form}" for form in FORMATS),
    "lease list x",
    "lease timetolive 0",
    "lease timetolive 7A",
]
REFUSED = [
    *(f"lease {command} 7b -w {form}" for command in ("revoke", "keep-alive --once") for form in FORMATS),
    "lease grant",
    "lease grant x",
    "lease grant 1 2",
    "lease grant 9000000001",
    "lease grant 99999999999999999999",
    "lease grant 5 -w table",
    "lease grant 5 -w xyz",
    *(f"lease {command}{rest}" for command in ("revoke", "timetolive", "keep-alive") for rest in ("", " zz", " 1 2")),
    "lease revoke 0",
    "lease keep-alive --once 0",
    "lease list -w table",
    "lease timetolive 7a -w table",
    "put a 1 --lease=7b",
    "--endpoints= lease list",
]


def with_client(endpoint: str, *requests: tuple[Any, Any]) -> None:
    async def work() -> None:
        async with Client(ClientConfig(endpoints=(parse_endpoint(endpoint),))) as client:
            for method, request in requests:
                await client.call(method, request)

    asyncio.run(work())


def masked(code: int, out: bytes, err: bytes) -> tuple[int, bytes, bytes]:
    own_words = b"".join(each for each in err.splitlines(keepends=True) if not each.startswith(b'{"level"'))
    left = re.sub(rb'(remaining\(|"ttl":|"GrantedTTL" : |"TTL" : )(99|100)\b', rb"\1LEFT", out)
    return code, left, own_words


@pytest.mark.parametrize("keys", [0, 1])
def test_asking_about_leases_prints_what_etcdctl_prints(etcd: Any, etcdctl: Any, kvctl: Any, keys: int) -> None:
    attached = [(methods.PUT, pb.PutRequest(key=b'k"\xff', value=b"v", lease=LEASE))] * keys
    with_client(etcd.endpoint, (methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=LEASE, TTL=100)), *attached)
    try:
        for line in ASKING:
            found = kvctl(f"--endpoints={etcd.endpoint}", *line.split())
            assert masked(found.code, found.stdout, found.stderr) == masked(*etcdctl(etcd.endpoint, line.split(), b"")), line
    finally:
        with_client(etcd.endpoint, (methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=LEASE)))


def test_lists_without_leases_print_what_etcdctl_prints(etcd: Any, etcdctl: Any, kvctl: Any) -> None:
    for form in FORMATS:
        found = kvctl(f"--endpoints={etcd.endpoint}", "lease", "list", "-w", form)
        assert masked(found.code, found.stdout, found.stderr) == masked(*etcdctl(etcd.endpoint, ["lease", "list", "-w", form], b"")), form


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_is_refused_alike(etcd: Any, etcdctl: Any, kvctl: Any, line: str) -> None:
    found = kvctl(f"--endpoints={etcd.endpoint}", *line.split())
    assert masked(found.code, found.stdout, found.stderr) == masked(*etcdctl(etcd.endpoint, line.split(), b""))


@pytest.mark.parametrize("form", ["simple", "json", "fields"])
def test_revoking_prints_what_etcdctl_prints(etcd: Any, etcdctl: Any, kvctl: Any, form: str) -> None:
    outcomes = []
    for call in (etcdctl, lambda endpoint, words, stdin: tuple(vars_of(kvctl(f"--endpoints={endpoint}", *words)))):
        with_client(etcd.endpoint, (methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=LEASE, TTL=100)))
        outcomes.append(masked(*call(etcd.endpoint, ["lease", "revoke", "7a", "-w", form], b"")))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == 0


def vars_of(outcome: Any) -> tuple[int, bytes, bytes]:
    return outcome.code, outcome.stdout, outcome.stderr


@pytest.mark.parametrize("form", FORMATS)
def test_granting_prints_what_etcdctl_prints_but_for_the_id(etcd: Any, etcdctl: Any, kvctl: Any, form: str) -> None:
    for ttl in ("-3", "0", "2", "100"):
        words = ["lease", "grant", "-w", form, "--", ttl]
        theirs, ours = etcdctl(etcd.endpoint, words, b""), vars_of(kvctl(f"--endpoints={etcd.endpoint}", *words))
        assert len(ours[1]) == len(theirs[1]), ttl
        assert no_ids(ours) == no_ids(theirs), ttl
    with_client(etcd.endpoint, *((methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease)) for lease in all_leases(etcd.endpoint)))


def no_ids(outcome: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
    code, out, err = masked(*outcome)
    return code, re.sub(rb'lease [0-9a-f]{16}|"ID" ?: ?\d+', b"ID", out), err


def all_leases(endpoint: str) -> list[int]:
    async def work() -> list[int]:
        async with Client(ClientConfig(endpoints=(parse_endpoint(endpoint),))) as client:
            return [each.ID for each in (await client.leases()).leases]

    return asyncio.run(work())


def test_keep_alive_goes_on_until_the_lease_is_revoked(etcd: Any) -> None:
    with_client(etcd.endpoint, (methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=LEASE, TTL=2)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCDCTL_", "KVCTL_"))}
    command = [sys.executable, "-m", "kvserver.cli.main", f"--endpoints={etcd.endpoint}", "lease", "keep-alive", "7a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            line = b"lease 000000000000007a keepalived with TTL(2)\n"
            assert [process.stdout.readline() for _ in range(5)] == [line] * 5  # 2.7 s: longer than its TTL
            with_client(etcd.endpoint, (methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=LEASE)))
            assert process.stdout.read().removeprefix(line) == b"lease 000000000000007a expired or revoked.\n"
            assert process.wait(10) == 0
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
