"""Run as a program: put many keys (unless they are there), then delete all of them in slices until killed; prints a line for each commit.

python deleter_until_killed.py <store file>
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId, encode
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, PutRequest
from kvserver.storage import EngineConfig, EngineHooks
from kvserver.types import ClusterId, ConfState, Index, NodeId, Term

KEYS = 3_000


def entry(index: int) -> bytes:
    """The log: a put for each key, then the deletion of all."""
    if index <= KEYS:
        return encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), PutRequest(key=b"k%05d" % index, value=b"v").SerializeToString())
    everything = DeleteRangeRequest(key=b"k", range_end=b"l")
    return encode(CommandKind.DELETE_RANGE, ProposalId(NodeId(1), 1, index), everything.SerializeToString())


async def main(path: Path) -> None:
    hooks = EngineHooks(on_durable=lambda mark: print(mark, flush=True) if mark == KEYS else None)
    store = Store.open(path, config=EngineConfig(interval_s=0.001, commit_count=500), hooks=hooks)
    if store.is_empty:
        store.bootstrap(ClusterId(1), {}, ConfState(voters=(NodeId(1),)))
    applier = Applier(store)
    while store.applied_index <= KEYS:
        index = Index(store.applied_index + 1)
        if not store.has_room:
            await store.wait_room()
        applier.apply_slice(index, Term(3), entry(index))
        await asyncio.sleep(0.005 if index > KEYS else 0)  # the deletion takes a while, so that it is met half-way
    await store.commit()
    print("done", flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
