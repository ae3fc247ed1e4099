"""Saved snapshots made in this process, and members' configurations to restore them to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvserver import commands
from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import Run, ServerConfig, parse
from kvserver.pb import rpc_pb2
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Term

KEYS = 40
WRITES = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A file as `snapshot save` writes it, and what the store said about itself."""

    path: Path
    hash_kv: int
    revision: int


async def fill(path: Path, seed: bytes) -> tuple[int, int]:
    """A store with keys written several times, deletions, an alarm, a removed member; copied to `path`. Returns (HashKV, revision)."""
    source = path.with_name("source")
    store = Store.open(source)
    try:
        two = {NodeId(n): Member(id=NodeId(n), name=f"old{n}", peer_urls=(f"http://10.9.9.{n}:2380",)) for n in (1, 2)}
        store.bootstrap(ClusterId(77), two, ConfState(voters=tuple(two)), index=Index(1), term=Term(1), cluster_token="old")
        applier = Applier(store)

        def apply(kind: CommandKind, request: object) -> None:
            index = Index(store.applied_index + 1)
            data = request.SerializeToString()  # type: ignore[attr-defined]
            applier.apply_entry(index, Term(3), commands.encode(kind, ProposalId(NodeId(1), 1, index), data))

        for number in range(WRITES):
            key = b"key-%d" % (number % KEYS)
            apply(CommandKind.PUT, rpc_pb2.PutRequest(key=key, value=seed + b"value-%d " % number * 20))
        apply(CommandKind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"key-1", range_end=b"key-15"))
        apply(CommandKind.COMPACT, rpc_pb2.CompactionRequest(revision=60))
        apply(CommandKind.ALARM, rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=1, alarm=rpc_pb2.NOSPACE))
        await store.wait_compacted(store.compacted_revision)
        await store.commit()
        store.copy_to(path)
        return (await store.hash_kv()).hash, store.current_revision
    finally:
        await store.close()


def make_saved(directory: Path, seed: bytes = b"") -> Saved:
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / "copy"
    hash_kv, revision = asyncio.run(fill(copy, seed))
    content = copy.read_bytes()
    path = directory / "kv.snapshot"
    path.write_bytes(content + hashlib.sha256(content).digest())
    return Saved(path=path, hash_kv=hash_kv, revision=revision)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One snapshot that all tests read."""
    return make_saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ServerConfig]:
    """The configuration of one of three members, or of another with the given flags."""

    def make(name: str = "a", *flags: str, directory: Path | None = None) -> ServerConfig:
        invocation = parse(
            [
                f"--name={name}",
                f"--data-dir={directory or tmp_path / 'new' / name}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:700{'abc'.index(name)}",
                "--initial-cluster=a=http://127.0.0.1:7000,b=http://127.0.0.1:7001,c=http://127.0.0.1:7002",
                "--initial-cluster-token=new",
                "--wal-segment-bytes=65536",
                *flags,
            ],
            {},
        )
        assert isinstance(invocation, Run)
        return invocation.config

    return make


def tree(root: Path) -> list[str]:
    """Everything below `root`."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
