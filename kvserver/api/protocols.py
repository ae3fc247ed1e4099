"""What the services need of the rest of the server, as small Protocols; node, apply and mvcc meet them without knowing this package.

Rules: requests and responses are the generated messages. Whoever answers sets `header.revision` (the store's revision at the time of the
answer); cluster, member and term are filled in by the services. A deadline is monotonic, in seconds, on the loop's clock. Everything that
waits raises `RequestError` leaves and nothing else; cancelling a waiting call has no side effect but that nobody hears of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from kvserver.apply import AnswerRoom, LeaseKeys
from kvserver.commands import CommandKind
from kvserver.errors import RequestError
from kvserver.pb import rpc_pb2
from kvserver.types import ClusterId, Index, LeaseId, Member, NodeId, Revision, Term

__all__ = ["Call", "ClusterView", "Connection", "KvReader", "MemberStatus", "Proposals", "Reads", "Reconfiguration", "StreamCall"]


class Connection(Protocol):
    """What a client's calls travel on; to be closed by who asked for it, which changes nothing for the client."""

    def taken_bytes(self) -> int | None:
        """How much of what was sent the client has taken, since the connection began; None if nothing is known."""

    def hang_up(self) -> bool:
        """End it, and every call on it; False if it had ended."""

    def close(self) -> None:
        """Look at it no more."""


class Call(Protocol):
    """One call, as its handler sees it; what the wire is made of stays outside. Everything is cheap to leave alone."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The client's metadata; keys in lower case."""

    @property
    def peer(self) -> str:
        """Where the client is, for log lines only."""

    @property
    def deadline_s(self) -> float | None:
        """When the client stops waiting, monotonic; None when it did not say."""

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone. Handlers are cancelled as tasks as well; this is for those that compute between their waits."""

    def take_raw(self) -> bytes:
        """The encoded request (the first one of a stream), once, for what is replicated as it came: the call holds it no longer."""

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the call is over: its answer has left, or its client has."""

    def connection(self) -> Connection | None:
        """What the call travels on, for who has to look at it; None if that can't be found. Costs a walk over the process's descriptors."""

    @property
    def request_bytes(self) -> int:
        """The size of the encoded request."""


class StreamCall(Call, Protocol):
    """A call that is answered by a stream."""

    def cut_off(self, error: RequestError) -> None:
        """End the stream with `error` although its handler waits for the client to take a response; the handler is closed."""


class Proposals(Protocol):
    """The way to change the replicated state."""

    async def propose(self, kind: CommandKind, request: Message, *, deadline_s: float, encoded: bytes | None = None) -> Message:
        """Replicate `request` and return what applying it gave on this member; `encoded` is its encoding, if that is at hand.

        Raises:
            RequestError: the deterministic refusal of apply, or an availability error whose outcome is unknown.
        """


class Reconfiguration(Protocol):
    """The way to another membership or another leader. All raise `RequestError` leaves; peer URLs are checked by the caller."""

    async def add(self, peer_urls: Sequence[str], *, is_learner: bool, deadline_s: float) -> Member: ...
    async def remove(self, target: NodeId, *, deadline_s: float) -> None: ...
    async def update(self, target: NodeId, peer_urls: Sequence[str], *, deadline_s: float) -> None: ...
    async def promote(self, target: NodeId, *, deadline_s: float) -> None: ...
    async def move_leader(self, to: NodeId) -> None: ...


class Reads(Protocol):
    """The way to a linearizable read."""

    async def wait_linearizable(self, deadline_s: float) -> None:
        """Return once this member has applied what was committed when the call began.

        Raises:
            RequestError: not by `deadline_s`, or the member stops.
        """


class KvReader(Protocol):
    """The local store. The methods may wait (a large read runs on a thread); small reads return without suspending."""

    async def read_range(self, request: rpc_pb2.RangeRequest, room: AnswerRoom) -> rpc_pb2.RangeResponse:
        """Answer a checked range request from the store as it is, when there is room. Raises `CompactedError` or `FutureRevisionError`."""

    async def read_txn(self, request: rpc_pb2.TxnRequest, room: AnswerRoom) -> rpc_pb2.TxnResponse:
        """Answer a checked transaction without puts and deletes, at one revision. Raises as `read_range` does."""

    async def measure_write(self, request: rpc_pb2.TxnRequest | rpc_pb2.DeleteRangeRequest, limit_bytes: int) -> int:
        """What a checked write would answer if it were applied now, in bytes; exact up to the limit."""

    async def hash_kv(self, revision: Revision) -> rpc_pb2.HashKVResponse:
        """Hash the keys and values up to `revision` (0: the current one). Raises as `read_range` does."""

    async def read_leases(self, room: AnswerRoom) -> rpc_pb2.LeaseLeasesResponse:
        """All leases, ascending by id, when there is room for the answer."""

    async def read_lease(self, lease: LeaseId, room: AnswerRoom, *, with_keys: bool) -> LeaseKeys:
        """A lease's TTL, and if wanted the keys attached to it, when there is room for the answer."""

    async def wait_compacted(self, revision: Revision) -> None:
        """Return when what a compaction at `revision` made unreachable is gone from the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """This member now: what Status shows. Sizes in bytes; `db_quota_bytes` is the store's limit, `errors` what is wrong here."""

    revision: Revision
    committed_index: Index
    applied_index: Index
    db_bytes: int
    db_in_use_bytes: int
    db_quota_bytes: int
    errors: tuple[str, ...] = ()


class ClusterView(Protocol):
    """Who this member is and what it knows of the cluster; reading it costs nothing."""

    @property
    def cluster_id(self) -> ClusterId: ...
    @property
    def member_id(self) -> NodeId: ...
    @property
    def term(self) -> Term: ...

    @property
    def leader_id(self) -> NodeId:
        """`NO_NODE` while there is no leader."""

    @property
    def is_learner(self) -> bool: ...

    def members(self) -> Sequence[Member]:
        """All members as applied on this member, in any order."""

    def alarms(self) -> Sequence[rpc_pb2.AlarmMember]:
        """The alarms that are raised, as applied on this member."""

    def status(self) -> MemberStatus:
        """The state of this member now."""
