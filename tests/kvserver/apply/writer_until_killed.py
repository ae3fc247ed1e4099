"""Run as a program: put numbered keys until killed; prints each index that the store says is durable.

python writer_until_killed.py <store file>
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId, encode
from kvserver.pb.rpc_pb2 import CompactionRequest, PutRequest
from kvserver.storage import EngineConfig, EngineHooks
from kvserver.types import ClusterId, ConfState, Index, NodeId, Term


def durable(mark: int) -> None:
    print(mark, flush=True)


async def main(path: Path) -> None:
    store = Store.open(path, config=EngineConfig(interval_s=0.005), hooks=EngineHooks(on_durable=durable))
    if store.is_empty:
        store.bootstrap(ClusterId(1), {}, ConfState(voters=(NodeId(1),)))
    applier = Applier(store)
    while True:
        index = Index(store.applied_index + 1)
        if index % 100 == 0:
            kind, payload = CommandKind.COMPACT, CompactionRequest(revision=store.current_revision).SerializeToString()
        else:
            kind, payload = CommandKind.PUT, PutRequest(key=b"k%d" % (index % 50), value=b"%d" % index).SerializeToString()
        if not store.has_room:  # as the node does: without it the batches would grow for as long as the disk is slower than the writer
            await store.wait_room()
        applier.apply_entry(index, Term(3), encode(kind, ProposalId(NodeId(1), 1, index), payload))
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
