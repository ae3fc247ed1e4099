"""What every service does alike: admit a call, give it a deadline, and fill the header of its answer.

Rules: a learner answers only what is marked for it. Metadata is looked at only when it can matter, which is while there is no leader.
A call ends at the client's deadline or after the server's own request timeout, whichever comes first.

Source: etcd's interceptors (learner, hasleader) and its request timeout.
"""

from __future__ import annotations

from kvserver.api.protocols import Call, ClusterView
from kvserver.clock import Clock
from kvserver.errors import NoLeaderError, NotSupportedForLearnerError
from kvserver.pb import rpc_pb2
from raft.types import NO_NODE

__all__ = ["Guard"]

_REQUIRE_LEADER = ("hasleader", "true")


class Guard:
    """The common part of the services.

    Args:
        request_timeout_s: how long the server works on a call whose client gives no deadline, or a later one.
    """

    __slots__ = ("_clock", "_request_timeout_s", "_view")

    def __init__(self, *, view: ClusterView, clock: Clock, request_timeout_s: float) -> None:
        self._view = view
        self._clock = clock
        self._request_timeout_s = request_timeout_s

    def admit(self, call: Call, *, for_learner: bool = False) -> None:
        """Let the call through.

        Raises:
            NotSupportedForLearnerError: this member is a learner and the call is not `for_learner`.
            NoLeaderError: the client requires a leader and there is none.
        """
        view = self._view
        if view.is_learner and not for_learner:
            raise NotSupportedForLearnerError
        if view.leader_id == NO_NODE and self.requires_leader(call):
            raise NoLeaderError

    def requires_leader(self, call: Call) -> bool:
        """Whether the client wants no answers while there is no leader."""
        return _REQUIRE_LEADER in call.metadata

    def deadline_s(self, call: Call | None = None) -> float:
        """When the server gives up on the call; monotonic."""
        own_s = self._clock.monotonic_s() + self._request_timeout_s
        client_s = call.deadline_s if call is not None else None
        return own_s if client_s is None or client_s > own_s else client_s

    def fill(self, header: rpc_pb2.ResponseHeader) -> None:
        """Fill in cluster, member and term; the revision stays as it is."""
        view = self._view
        header.cluster_id = view.cluster_id
        header.member_id = view.member_id
        header.raft_term = view.term
