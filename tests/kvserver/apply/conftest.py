"""A store with its applier, driven by requests instead of entries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import AppliedResult, Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import RequestError
from kvserver.pb.internal_pb2 import LeaseExpiry
from kvserver.pb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    TxnRequest,
)
from kvserver.storage import EngineConfig
from kvserver.types import ClusterId, ConfState, Index, Member, NodeId, Term

KINDS = {
    PutRequest: CommandKind.PUT,
    DeleteRangeRequest: CommandKind.DELETE_RANGE,
    TxnRequest: CommandKind.TXN,
    CompactionRequest: CommandKind.COMPACT,
    AlarmRequest: CommandKind.ALARM,
    LeaseGrantRequest: CommandKind.LEASE_GRANT,
    LeaseRevokeRequest: CommandKind.LEASE_REVOKE,
    LeaseExpiry: CommandKind.LEASE_EXPIRE,
}


class Machine:
    """One member's state machine: `apply` gives a request the next index."""

    def __init__(self, path: Path, config: EngineConfig | None = None) -> None:
        self.path = path
        self.config = config
        self.corrupt: list[str] = []
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.path, config=self.config, on_corrupt=self.corrupt.append)
        self.applier = Applier(self.store)
        if self.store.is_empty:
            one = NodeId(1)
            self.store.bootstrap(ClusterId(77), {one: Member(id=one, peer_urls=("http://127.0.0.1:2380",))}, ConfState(voters=(one,)))

    def encode(self, request: PbMessage) -> bytes:
        return commands.encode(KINDS[type(request)], ProposalId(NodeId(1), 5, self.store.applied_index + 1), request.SerializeToString())

    def apply_data(self, data: bytes) -> AppliedResult:
        return self.applier.apply_entry(Index(self.store.applied_index + 1), Term(1), data)

    def apply(self, request: PbMessage) -> PbMessage | RequestError:
        return self.apply_data(self.encode(request)).result

    async def reopen(self, *, commit: bool = True) -> None:
        await self.store.close(commit=commit)
        self.open()

    async def flush(self) -> None:
        self.store.request_commit()
        await self.store.wait_durable(self.store.applied_index)


@pytest.fixture(scope="session")
def machine_type() -> type[Machine]:
    return Machine


@pytest.fixture
async def open_machine(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Machine]]]:
    opened: list[Machine] = []

    async def make(name: str = "db", **config: int | float) -> Machine:
        machine = Machine(tmp_path / name, EngineConfig(**config) if config else None)  # type: ignore[arg-type]
        opened.append(machine)
        return machine

    yield make
    for machine in opened:
        await machine.store.close(commit=False)


@pytest.fixture
async def machine(open_machine: Callable[..., Awaitable[Machine]]) -> Machine:
    return await open_machine()
