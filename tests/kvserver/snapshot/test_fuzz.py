"""A snapshot from a sender that can't be trusted, or over a disk that changes it: the announced content, or a documented error."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.snapshot import IncomingFile, SnapshotError, SnapshotOffer, list_received
from raft.types import ConfState, Index, NodeId, SnapshotMetadata, Term

CHUNK = 4096
CONTENT = hashlib.shake_256(b"content").digest(3 * CHUNK + 77)
SENDER = NodeId(0xAB)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["next", "next", "next", "again", "skip", "short", "long", "changed", "hang up", "spoil part"]),
        st.integers(0, 2**16),
    ),
    max_size=14,
)


def offer() -> SnapshotOffer:
    sha256 = hashlib.sha256(CONTENT).digest()
    metadata = SnapshotMetadata(index=Index(5), term=Term(2), conf_state=ConfState(voters=(NodeId(1),)))
    return SnapshotOffer(id=sha256[:16], size_bytes=len(CONTENT), sha256=sha256, chunk_size_bytes=CHUNK, metadata=metadata)


def chunk_for(kind: str, number: int, at: int) -> tuple[int, bytes]:
    """What the sender sends now: the offset it claims, and the bytes."""
    chunk = CONTENT[at : at + CHUNK]
    if kind == "again":
        return max(0, at - CHUNK), CONTENT[max(0, at - CHUNK) : at] or chunk
    if kind == "skip":
        return at + CHUNK, CONTENT[at + CHUNK : at + 2 * CHUNK]
    if kind == "short":
        return at, chunk[: number % max(1, len(chunk))]
    if kind == "long":
        return at, chunk + b"more"
    if kind == "changed" and chunk:
        changed = bytearray(chunk)
        changed[number % len(chunk)] ^= 1
        return at, bytes(changed)
    return at, chunk


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
def test_any_transfer_gives_the_announced_content_or_a_snapshot_error(steps):
    directory = Path(tempfile.mkdtemp())
    try:
        incoming = IncomingFile.open(directory, SENDER, offer())
        for kind, number in steps:
            try:
                if kind in ("hang up", "spoil part"):
                    incoming.close(keep=True)
                    for part in directory.glob("*.part"):
                        if kind == "spoil part" and part.stat().st_size:
                            data = bytearray(part.read_bytes())
                            data[number % len(data)] ^= 4
                            part.write_bytes(data)
                    incoming = IncomingFile.open(directory, SENDER, offer())
                else:
                    incoming.write(*chunk_for(kind, number, incoming.offset))
                if incoming.is_complete:
                    incoming.finish()
                    break
            except SnapshotError:
                incoming.close(keep=False)
                incoming = IncomingFile.open(directory, SENDER, offer())
        incoming.close(keep=True)
        for received in list_received(directory):
            assert received.path.read_bytes() == CONTENT
    finally:
        shutil.rmtree(directory)


_INSPECT_MANY = """
import asyncio, random, sys
from pathlib import Path
from kvserver.apply import Store, inspect
from kvserver.errors import KvError
from kvserver.apply import Applier
from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.pb import rpc_pb2
from kvserver.types import ClusterId, ConfState, Index, NodeId, Term

home, seed, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

async def build():
    store = Store.open(home / "db")
    store.bootstrap(ClusterId(1), {}, ConfState(voters=(NodeId(1),)), index=Index(1), term=Term(1))
    applier = Applier(store)
    for index in range(2, 120):
        request = rpc_pb2.PutRequest(key=b"k%d" % (index % 40), value=b"v" * (index * 31 % 5000))
        data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), request.SerializeToString())
        applier.apply_entry(Index(index), Term(1), data)
    await store.commit()
    store.copy_to(home / "copy")
    await store.close()

asyncio.run(build())
whole = (home / "copy").read_bytes()
chance = random.Random(seed)
seen = {"refused": 0, "read": 0}
for case in range(cases):
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 4)):
        kind, at = chance.randrange(5), chance.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + 8] = chance.randbytes(8)
        elif kind == 2:
            page = at // 4096 * 4096
            data[page : page + 4096] = bytes(4096) if chance.random() < 0.5 else chance.randbytes(4096)
        elif kind == 3:
            page, other = at // 4096 * 4096, chance.randrange(len(data) // 4096) * 4096
            data[page : page + 16] = data[other : other + 16]
        else:
            del data[at:]
            data = data or bytearray(b"x")
    (home / "mutated").write_bytes(data)
    try:
        found = inspect(home / "mutated")
        assert found.index <= 119, (case, found.index)
        seen["read"] += 1
    except KvError:
        seen["refused"] += 1
print(seen["refused"], seen["read"])
"""


def test_changed_snapshot_file_is_read_or_refused_and_never_kills_the_process(tmp_path):
    """In a process of its own: a library that reads through a map could be killed by what it finds there."""
    ended = subprocess.run(
        [sys.executable, "-c", _INSPECT_MANY, str(tmp_path), "11", "250"], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    refused, _ = map(int, ended.stdout.split())
    assert refused > 100
