"""Putting the lease parts together: the leader's keeper, the desk that services ask, and the question whether every member knows leases."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message as PbMessage

from kvserver.commands import CommandKind
from kvserver.node.assembly import Ground, Parts
from kvserver.node.capability import Capability
from kvserver.node.lease_desk import LeaseDesk
from kvserver.node.leases import LeaseKeeper
from kvserver.types import NodeId, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseParts:
    """A member's care for leases."""

    keeper: LeaseKeeper
    desk: LeaseDesk

    def note_leader(self, *, leads: bool, term: Term) -> None:
        """This member leads in `term`, or it doesn't."""
        self.keeper.note_leader(leads=leads, term=term)

    def stop(self) -> None:
        """End both; who waits hears it."""
        self.desk.stop()
        self.keeper.stop()


def make_leases(ground: Ground, parts: Parts) -> LeaseParts:
    """Make them, and have the store and the proposals ask and tell them. Call it when the proposals' other checks are in place."""
    config, store = ground.config, ground.store
    keeper = LeaseKeeper(
        store=store,
        leadership=parts.driver,
        reads=parts.reads,
        proposals=parts.proposals,
        extend_s=config.election_timeout_s,
        attempt_timeout_s=config.request_timeout_s,
        log=ground.log,
    )
    store.on_lease = keeper.note_lease
    _check_capability(ground, parts)
    return LeaseParts(keeper=keeper, desk=LeaseDesk(leading=parts.driver, keeper=keeper, send=parts.transport.request))


def _check_capability(ground: Ground, parts: Parts) -> None:
    store, transport = ground.store, parts.transport

    def heard(member: NodeId) -> int | None:
        remote = transport.stats(member).remote if member in transport.peers else None
        return None if remote is None else remote.max_command_version

    capability = Capability(
        self_id=ground.origin.member_id, applied=lambda: store.kinds_version, members=lambda: store.members, heard=heard
    )
    check_before = parts.proposals.check

    def check(kind: CommandKind, request: PbMessage) -> None:
        capability.check(kind, request)
        check_before(kind, request)

    parts.proposals.check = check
