"""Members and endpoints as rows of text: what the simple and the table format share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvserver.cli.golang import format_duration, humanize_bytes
from kvserver.cli.output.types import EndpointHash, EndpointHealth, EndpointStatus
from kvserver.pb import rpc_pb2 as pb

MEMBER_HEADER: Final = ("ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner")
STATUS_HEADER: Final = (
    "endpoint",
    "ID",
    "version",
    "db size",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
)
HASH_HEADER: Final = ("endpoint", "hash")
HEALTH_HEADER: Final = ("endpoint", "health", "took", "error")


def yes_no(value: bool) -> str:
    """A boolean as Go prints it."""
    return "true" if value else "false"


def alarm_name(kind: pb.AlarmType.ValueType) -> str:
    """A kind of alarm as Go prints it: by its number if it has no name."""
    return pb.AlarmType.Name(kind) if kind in pb.AlarmType.values() else str(int(kind))


def member_rows(answer: pb.MemberListResponse) -> list[tuple[str, ...]]:
    """One row a member; a member without a name has never started."""
    return [
        (
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            member.name,
            ",".join(member.peerURLs),
            ",".join(member.clientURLs),
            yes_no(member.isLearner),
        )
        for member in answer.members
    ]


def status_rows(found: Sequence[EndpointStatus]) -> list[tuple[str, ...]]:
    """One row an endpoint."""
    return [
        (
            each.endpoint,
            f"{each.status.header.member_id:x}",
            each.status.version,
            humanize_bytes(each.status.dbSize),
            yes_no(each.status.leader == each.status.header.member_id),
            yes_no(each.status.isLearner),
            str(each.status.raftTerm),
            str(each.status.raftIndex),
            str(each.status.raftAppliedIndex),
            ", ".join(each.status.errors),
        )
        for each in found
    ]


def hash_rows(found: Sequence[EndpointHash]) -> list[tuple[str, ...]]:
    """One row an endpoint."""
    return [(each.endpoint, str(each.hash_kv.hash)) for each in found]


def health_rows(found: Sequence[EndpointHealth]) -> list[tuple[str, ...]]:
    """One row an endpoint."""
    return [(each.endpoint, yes_no(each.healthy), format_duration(each.took_ns), each.error) for each in found]
