"""What printers take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvserver.pb import rpc_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint and its status."""

    endpoint: str
    status: pb.StatusResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointHash:
    """One endpoint and its hash."""

    endpoint: str
    hash_kv: pb.HashKVResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointHealth:
    """One endpoint's health: how long the probe took, and what was wrong (empty: nothing)."""

    endpoint: str
    took_ns: int
    error: str = ""

    @property
    def healthy(self) -> bool:
        """Whether nothing was wrong."""
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Output for both streams."""

    stdout: bytes = b""
    stderr: bytes = b""


class KeyValuePrinter(Protocol):
    """Prints what the key-value commands answer."""

    def put(self, answer: pb.PutResponse) -> bytes:
        """A put."""

    def get(self, answer: pb.RangeResponse) -> bytes:
        """A get."""

    def delete(self, answer: pb.DeleteRangeResponse) -> bytes:
        """A del."""

    def txn(self, answer: pb.TxnResponse) -> bytes:
        """A txn."""


class WatchPrinter(Protocol):
    """Prints what a watch tells."""

    def watch(self, message: pb.WatchResponse) -> bytes:
        """One message."""


class MemberPrinter(Protocol):
    """Prints the list of members."""

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """All members."""


class ChangePrinter(Protocol):
    """Prints what the commands answer that change the cluster. Ids are unsigned 64-bit numbers."""

    def member_add(self, answer: pb.MemberAddResponse, name: str, peer_urls: str) -> bytes:
        """A member add; `name` and `peer_urls` as the user gave them."""

    def member_remove(self, answer: pb.MemberRemoveResponse, member_id: int) -> bytes:
        """A member remove."""

    def member_update(self, answer: pb.MemberUpdateResponse, member_id: int) -> bytes:
        """A member update."""

    def member_promote(self, answer: pb.MemberPromoteResponse, member_id: int) -> bytes:
        """A member promote."""

    def move_leader(self, answer: pb.MoveLeaderResponse, leader_id: int, target_id: int) -> bytes:
        """A move-leader: who led, and who leads now."""


class AlarmPrinter(Protocol):
    """Prints what the alarm commands answer; one that disarmed several has no header."""

    def alarms(self, answer: pb.AlarmResponse) -> bytes:
        """The alarms that are on, or those that were disarmed."""


class LeasePrinter(Protocol):
    """Prints what the lease commands answer."""

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> bytes:
        """A lease grant."""

    def lease_revoke(self, answer: pb.LeaseRevokeResponse, lease: int) -> bytes:
        """A lease revoke."""

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, *, with_keys: bool) -> bytes:
        """A lease timetolive; `with_keys`: they were asked for."""

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> bytes:
        """One renewal."""

    def lease_ended(self, lease: int) -> bytes:
        """The end of a lease keep-alive: there is no such lease any more."""

    def leases(self, answer: pb.LeaseLeasesResponse) -> bytes:
        """A lease list."""


class EndpointPrinter(Protocol):
    """Prints what the endpoint commands found out, in the order given."""

    def status(self, found: Sequence[EndpointStatus]) -> bytes:
        """Statuses."""

    def hash_kv(self, found: Sequence[EndpointHash]) -> bytes:
        """Hashes."""

    def health(self, found: Sequence[EndpointHealth]) -> Rendered:
        """Health of each."""
