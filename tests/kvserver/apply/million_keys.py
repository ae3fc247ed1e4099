"""Run as a program: fill a store and print the peak of this process's anonymous memory in bytes.

python million_keys.py <store file> <keys> <overwrites>
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId, encode
from kvserver.pb.rpc_pb2 import CompactionRequest, PutRequest, RangeRequest
from kvserver.types import ClusterId, ConfState, Index, NodeId, Term

KEY_BYTES = VALUE_BYTES = 256


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class Filler:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.applier = Applier(store)
        self.random = random.Random(1)
        self.peak = 0

    async def put(self, number: int) -> None:
        key = b"/registry/pods/%012d" % (number * 7919 % 1_000_003)
        request = PutRequest(key=key.ljust(KEY_BYTES, b"k"), value=self.random.randbytes(VALUE_BYTES))
        self.apply(CommandKind.PUT, request.SerializeToString())
        if not self.store.has_room:
            await self.store.wait_room()
        if self.store.applied_index % 50 == 0:
            await asyncio.sleep(0)
        if self.store.applied_index % 1000 == 0:
            self.peak = max(self.peak, anonymous_bytes())

    def apply(self, kind: CommandKind, payload: bytes) -> None:
        index = Index(self.store.applied_index + 1)
        self.applier.apply_entry(index, Term(1), encode(kind, ProposalId(NodeId(1), 1, index), payload))


async def main(path: Path, keys: int, overwrites: int) -> None:
    print(f"before: {anonymous_bytes()}", file=sys.stderr)
    store = Store.open(path)
    store.bootstrap(ClusterId(1), {}, ConfState(voters=(NodeId(1),)))
    filler = Filler(store)
    for number in range(keys):
        await filler.put(number)
    print(f"after {keys} keys: {filler.peak}", file=sys.stderr)
    for _ in range(overwrites):
        await filler.put(filler.random.randrange(keys))
    print(f"after {overwrites} overwrites: {filler.peak}", file=sys.stderr)
    filler.apply(CommandKind.COMPACT, CompactionRequest(revision=store.current_revision).SerializeToString())
    while store.mvcc.compactor.pending:
        await asyncio.sleep(0)
        filler.peak = max(filler.peak, anonymous_bytes())
    print(f"after compaction: {filler.peak}", file=sys.stderr)
    count = (await store.read(RangeRequest(key=b"\x00", range_end=b"\x00", count_only=True))).count
    await store.hash_kv()
    filler.peak = max(filler.peak, anonymous_bytes())
    print(f"keys {count}, file {store.size_bytes}, in use {store.size_in_use_bytes}", file=sys.stderr)
    await store.close()
    print(filler.peak)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
