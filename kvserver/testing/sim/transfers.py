"""Snapshots under way: from raft's MsgSnap to its outcome, as the node's snapshot sender and receiver do it.

Rules
- One transfer per sender and peer; asking again while it runs changes nothing. The copy is the store's last commit at the moment it is
  taken, some time after raft asked; the message is rewritten to what the copy covers, and the sender's pin with it.
- It takes a while, and fails if the way is cut, the peer is down, or the dice say so; a transfer may be delivered and still be reported as
  failed; the receiver may see it twice. The sender hears of its end exactly once, unless it crashed.
- The copy is on the receiver's disk before its raft hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from kvserver.testing.sim.disk import StoreState
from kvserver.testing.sim.kernel import US_PER_S, Kernel
from kvserver.testing.sim.member import Member
from kvserver.testing.sim.network import Network
from raft.messages import Message
from raft.types import Index, NodeId, Snapshot, SnapshotMetadata

_MAX_FLIGHT_US: Final = 8 * US_PER_S
_FAILS: Final = 0.15
_REPORT_LIES: Final = 0.05
_ARRIVES_TWICE: Final = 0.1


@dataclass(eq=False, slots=True, kw_only=True)
class _Transfer:
    sender: Member
    message: Message
    is_over: bool = False


class Transfers:
    """All snapshots under way in the cluster. `members` are the present lives."""

    def __init__(self, kernel: Kernel, network: Network, members: Mapping[NodeId, Member], count: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._network = network
        self._members = members
        self._count = count
        self._running: dict[tuple[Member, NodeId], _Transfer] = {}
        self._is_healed = False

    def heal(self) -> None:
        """From now on transfers succeed, and quickly."""
        self._is_healed = True

    def start(self, sender: Member, message: Message) -> bool:
        """Begin what a MsgSnap asks for, unless that is under way."""
        key = (sender, message.to)
        if key in self._running:
            return False
        transfer = self._running[key] = _Transfer(sender=sender, message=message)
        sender.after(self._kernel.between(1_000, US_PER_S), self._copy, transfer)
        return True

    def cancel(self, sender: Member, peer: NodeId | None = None) -> None:
        """End the transfers of `sender`, all or the one to `peer`: they count as failed."""
        for key in [key for key in self._running if key[0] is sender and peer in (None, key[1])]:
            sender.after(0, self._end, self._running[key], False)

    def _copy(self, transfer: _Transfer) -> None:
        if transfer.is_over:
            return
        sender, to = transfer.sender, transfer.message.to
        state = sender.disk.committed.copy()
        metadata = SnapshotMetadata(index=state.index, term=state.term, conf_state=state.conf_state)
        message = replace(transfer.message, snapshot=Snapshot(metadata=metadata))
        sender.book.pin(to, metadata.index)
        sender.note(f"streams snapshot {metadata.term}/{metadata.index} to {to}")
        self._count("snapshots sent")
        flight_us = self._kernel.between(10_000, US_PER_S if self._is_healed else _MAX_FLIGHT_US)
        self._kernel.after(flight_us, self._arrive, transfer, message, state)

    def _arrive(self, transfer: _Transfer, message: Message, state: StoreState) -> None:
        sender, receiver = transfer.sender, self._members.get(message.to)
        rng = self._kernel.rng
        is_lost = not self._is_healed and rng.random() < _FAILS
        if receiver is None or is_lost or self._network.is_cut(sender.id, message.to):
            sender.after(self._kernel.between(1_000, US_PER_S), self._end, transfer, False)
            return
        self._deliver(message, state)
        is_reported = self._is_healed or rng.random() >= _REPORT_LIES
        sender.after(self._kernel.between(1_000, 100_000), self._end, transfer, is_reported)
        if not self._is_healed and rng.random() < _ARRIVES_TWICE:
            self._kernel.after(self._kernel.between(1_000, _MAX_FLIGHT_US), self._deliver, message, state)

    def _deliver(self, message: Message, state: StoreState) -> None:
        receiver = self._members.get(message.to)
        if receiver is None:
            return
        assert message.snapshot is not None
        metadata = message.snapshot.metadata
        receiver.receive_snapshot((metadata.index, metadata.term), state)
        receiver.note(f"received snapshot {metadata.term}/{metadata.index} from {message.from_}")
        receiver.accept(message, Index(0))

    def _end(self, transfer: _Transfer, delivered: bool) -> None:
        if transfer.is_over:
            return
        transfer.is_over = True
        del self._running[transfer.sender, transfer.message.to]
        transfer.sender.note(f"snapshot to {transfer.message.to} {'delivered' if delivered else 'failed'}")
        transfer.sender.report_snapshot(transfer.message.to, delivered=delivered)
