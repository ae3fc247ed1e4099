"""The default format: keys and values on lines of their own; rows with commas for members and endpoints.

Caveat: as in etcdctl 3.4, the lines of `endpoint health` go to stderr. Values are written as they are, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvserver.cli.golang import format_duration, quote, to_bytes
from kvserver.cli.output import rows
from kvserver.cli.output.types import EndpointHash, EndpointHealth, EndpointStatus, Rendered
from kvserver.pb import rpc_pb2 as pb
from kvserver.pb.kv_pb2 import Event, KeyValue


class SimplePrinter:
    """`hex_output` escapes every byte; `values_only` leaves the keys out."""

    def __init__(self, *, hex_output: bool = False, values_only: bool = False) -> None:
        self._hex_output = hex_output
        self._values_only = values_only

    def put(self, answer: pb.PutResponse) -> bytes:
        """OK, then the previous pair."""
        return b"OK\n" + (self._pairs([answer.prev_kv]) if answer.HasField("prev_kv") else b"")

    def get(self, answer: pb.RangeResponse) -> bytes:
        """Pairs."""
        return self._pairs(answer.kvs)

    def delete(self, answer: pb.DeleteRangeResponse) -> bytes:
        """The number of deleted keys, then the previous pairs."""
        return b"%d\n" % answer.deleted + self._pairs(answer.prev_kvs)

    def txn(self, answer: pb.TxnResponse) -> bytes:
        """SUCCESS or FAILURE, then each answer behind an empty line."""
        verdict = b"SUCCESS\n" if answer.succeeded else b"FAILURE\n"
        return verdict + b"".join(b"\n" + self._op(op) for op in answer.responses)

    def watch(self, message: pb.WatchResponse) -> bytes:
        """For each event its kind, the pair before it if there is one, and the pair."""
        parts: list[bytes] = []
        for event in message.events:
            parts += (Event.EventType.Name(event.type).encode(), b"\n")
            if event.HasField("prev_kv"):
                parts.append(self._pairs([event.prev_kv]))
            parts.append(self._pairs([event.kv]))
        return b"".join(parts)

    def _op(self, op: pb.ResponseOp) -> bytes:
        match op.WhichOneof("response"):
            case "response_range":
                return self.get(op.response_range)
            case "response_put":
                return self.put(op.response_put)
            case "response_delete_range":
                return self.delete(op.response_delete_range)
            case "response_txn":
                return self.txn(op.response_txn)
        return b"unexpected response\n"

    def _pairs(self, pairs: Iterable[KeyValue]) -> bytes:
        parts: list[bytes] = []
        for pair in pairs:
            if not self._values_only:
                parts += (self._shown(pair.key), b"\n")
            parts += (self._shown(pair.value), b"\n")
        return b"".join(parts)

    def _shown(self, data: bytes) -> bytes:
        return b"".join(b"\\x%02x" % byte for byte in data) if self._hex_output else data

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """One line a member."""
        return _lines(rows.member_rows(answer))

    def member_add(self, answer: pb.MemberAddResponse, name: str, peer_urls: str) -> bytes:
        """What was added, then the environment to start it with; every URL of the cluster stands behind its member's name."""
        added = answer.member.ID
        names = {member.ID: member.name for member in answer.members} | {added: name}
        cluster = ",".join(f"{names[member.ID]}={url}" for member in answer.members for url in member.peerURLs)
        lines = (
            f"Member {added:16x} added to cluster {answer.header.cluster_id:16x}",
            "",
            f"ETCD_NAME={quote(to_bytes(name))}",
            f"ETCD_INITIAL_CLUSTER={quote(to_bytes(cluster))}",
            f"ETCD_INITIAL_ADVERTISE_PEER_URLS={quote(to_bytes(peer_urls))}",
            'ETCD_INITIAL_CLUSTER_STATE="existing"',
        )
        return to_bytes("".join(f"{line}\n" for line in lines))

    def member_remove(self, answer: pb.MemberRemoveResponse, member_id: int) -> bytes:
        """One line."""
        return f"Member {member_id:16x} removed from cluster {answer.header.cluster_id:16x}\n".encode()

    def member_update(self, answer: pb.MemberUpdateResponse, member_id: int) -> bytes:
        """One line."""
        return f"Member {member_id:16x} updated in cluster {answer.header.cluster_id:16x}\n".encode()

    def member_promote(self, answer: pb.MemberPromoteResponse, member_id: int) -> bytes:
        """One line."""
        return f"Member {member_id:16x} promoted in cluster {answer.header.cluster_id:16x}\n".encode()

    def move_leader(self, answer: pb.MoveLeaderResponse, leader_id: int, target_id: int) -> bytes:
        """One line."""
        return f"Leadership transferred from {leader_id:x} to {target_id:x}\n".encode()

    def alarms(self, answer: pb.AlarmResponse) -> bytes:
        """One line an alarm, without what is 0; every part ends in a blank, as Go prints messages."""
        lines = []
        for alarm in answer.alarms:
            member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
            kind = f"alarm:{rows.alarm_name(alarm.alarm)} " if alarm.alarm else ""
            lines.append(f"{member}{kind}\n")
        return "".join(lines).encode()

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> bytes:
        """One line."""
        return f"lease {lease_id(answer.ID)} granted with TTL({answer.TTL}s)\n".encode()

    def lease_revoke(self, answer: pb.LeaseRevokeResponse, lease: int) -> bytes:
        """One line."""
        return f"lease {lease_id(lease)} revoked\n".encode()

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, *, with_keys: bool) -> bytes:
        """One line; keys as they are, byte for byte."""
        if answer.grantedTTL == 0 and answer.TTL == -1:
            return f"lease {lease_id(answer.ID)} already expired\n".encode()
        line = f"lease {lease_id(answer.ID)} granted with TTL({answer.grantedTTL}s), remaining({answer.TTL}s)".encode()
        keys = b", attached keys([" + b" ".join(answer.keys) + b"])" if with_keys else b""
        return line + keys + b"\n"

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> bytes:
        """One line."""
        return f"lease {lease_id(answer.ID)} keepalived with TTL({answer.TTL})\n".encode()

    def lease_ended(self, lease: int) -> bytes:
        """One line."""
        return f"lease {lease_id(lease)} expired or revoked.\n".encode()

    def leases(self, answer: pb.LeaseLeasesResponse) -> bytes:
        """Their number, then one line a lease."""
        lines = [f"found {len(answer.leases)} leases", *(lease_id(each.ID) for each in answer.leases)]
        return "".join(line + "\n" for line in lines).encode()

    def status(self, found: Sequence[EndpointStatus]) -> bytes:
        """One line an endpoint."""
        return _lines(rows.status_rows(found))

    def hash_kv(self, found: Sequence[EndpointHash]) -> bytes:
        """One line an endpoint."""
        return _lines(rows.hash_rows(found))

    def health(self, found: Sequence[EndpointHealth]) -> Rendered:
        """One line an endpoint, on stderr."""
        lines = [
            f"{each.endpoint} is healthy: successfully committed proposal: took = {format_duration(each.took_ns)}\n"
            if each.healthy
            else f"{each.endpoint} is unhealthy: failed to commit proposal: {each.error}\n"
            for each in found
        ]
        return Rendered(stderr="".join(lines).encode())


def lease_id(lease: int) -> str:
    """Sixteen digits in hexadecimal, as Go prints a signed number."""
    return f"{lease:016x}"


def _lines(table: Iterable[Sequence[str]]) -> bytes:
    return "".join(", ".join(row) + "\n" for row in table).encode()
