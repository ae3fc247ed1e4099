"""The fields format: one `"Name" : value` a line, easy to grep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvserver.cli.golang import format_duration, quote, to_bytes
from kvserver.cli.output.rows import alarm_name, yes_no
from kvserver.cli.output.types import EndpointHash, EndpointHealth, EndpointStatus, Rendered
from kvserver.pb import rpc_pb2 as pb
from kvserver.pb.kv_pb2 import Event, KeyValue


class FieldsPrinter:
    """Everything as fields."""

    def put(self, answer: pb.PutResponse) -> bytes:
        """A put."""
        return _joined([*_header(answer.header), *(_pair(answer.prev_kv, "Prev") if answer.HasField("prev_kv") else ())])

    def get(self, answer: pb.RangeResponse) -> bytes:
        """A get."""
        pairs = [line for pair in answer.kvs for line in _pair(pair)]
        return _joined([*_header(answer.header), *pairs, f'"More" : {yes_no(answer.more)}', f'"Count" : {answer.count}'])

    def delete(self, answer: pb.DeleteRangeResponse) -> bytes:
        """A del."""
        pairs = [line for pair in answer.prev_kvs for line in _pair(pair, "Prev")]
        return _joined([*_header(answer.header), f'"Deleted" : {answer.deleted}', *pairs])

    def txn(self, answer: pb.TxnResponse) -> bytes:
        """A txn."""
        head = _joined([*_header(answer.header), f'"Succeeded" : {yes_no(answer.succeeded)}'])
        return head + b"".join(self._op(op) for op in answer.responses)

    def watch(self, message: pb.WatchResponse) -> bytes:
        """The header, then each event with its kind."""
        lines = list(_header(message.header))
        for event in message.events:
            lines.append(f'"Type" : {Event.EventType.Name(event.type)}')
            if event.HasField("prev_kv"):
                lines += _pair(event.prev_kv, "Prev")
            lines += _pair(event.kv)
        return _joined(lines)

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
        return b'"Unknown" : ""\n'

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """All members, an empty line behind each."""
        lines = list(_header(answer.header))
        for member in answer.members:
            lines += [f'"ID" : {member.ID}', f'"Name" : {_quoted(member.name)}']
            lines += [f'"PeerURL" : {_quoted(url)}' for url in member.peerURLs]
            lines += [f'"ClientURL" : {_quoted(url)}' for url in member.clientURLs]
            lines += [f'"IsLearner" : {yes_no(member.isLearner)}', ""]
        return _joined(lines)

    def alarms(self, answer: pb.AlarmResponse) -> bytes:
        """An empty line behind each alarm; no header where there is none (etcdctl crashes on that)."""
        lines = list(_header(answer.header)) if answer.HasField("header") else []
        for alarm in answer.alarms:
            lines += [f'"MemberID" : {alarm.memberID}', f'"AlarmType" : {alarm_name(alarm.alarm)}', ""]
        return _joined(lines)

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> bytes:
        """A lease grant."""
        return _joined([*_header(answer.header), f'"ID" : {answer.ID}', f'"TTL" : {answer.TTL}'])

    def lease_revoke(self, answer: pb.LeaseRevokeResponse, lease: int) -> bytes:
        """The header alone."""
        return _joined(_header(answer.header))

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, *, with_keys: bool) -> bytes:
        """A line for each key."""
        lines = [*_header(answer.header), f'"ID" : {answer.ID}', f'"TTL" : {answer.TTL}', f'"GrantedTTL" : {answer.grantedTTL}']
        return _joined([*lines, *(f'"Key" : {quote(key)}' for key in answer.keys)])

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> bytes:
        """As a grant."""
        return _joined([*_header(answer.header), f'"ID" : {answer.ID}', f'"TTL" : {answer.TTL}'])

    def lease_ended(self, lease: int) -> bytes:
        """Nothing is said of it."""
        return b""

    def leases(self, answer: pb.LeaseLeasesResponse) -> bytes:
        """A line for each lease."""
        return _joined([*_header(answer.header), *(f'"ID" : {each.ID}' for each in answer.leases)])

    def status(self, found: Sequence[EndpointStatus]) -> bytes:
        """An empty line behind each endpoint."""
        lines: list[str] = []
        for each in found:
            status = each.status
            lines += _header(status.header)
            lines += [
                f'"Version" : {_quoted(status.version)}',
                f'"DBSize" : {status.dbSize}',
                f'"Leader" : {status.leader}',
                f'"IsLearner" : {yes_no(status.isLearner)}',
                f'"RaftIndex" : {status.raftIndex}',
                f'"RaftTerm" : {status.raftTerm}',
                f'"RaftAppliedIndex" : {status.raftAppliedIndex}',
                f'"Errors" : [{" ".join(status.errors)}]',
                f'"Endpoint" : {_quoted(each.endpoint)}',
                "",
            ]
        return _joined(lines)

    def hash_kv(self, found: Sequence[EndpointHash]) -> bytes:
        """An empty line behind each endpoint."""
        lines: list[str] = []
        for each in found:
            lines += _header(each.hash_kv.header)
            lines += [f'"Endpoint" : {_quoted(each.endpoint)}', f'"Hash" : {each.hash_kv.hash}', ""]
        return _joined(lines)

    def health(self, found: Sequence[EndpointHealth]) -> Rendered:
        """An empty line behind each endpoint."""
        lines: list[str] = []
        for each in found:
            lines += [f'"Endpoint" : {_quoted(each.endpoint)}', f'"Health" : {yes_no(each.healthy)}']
            lines += [f'"Took" : {format_duration(each.took_ns)}', f'"Error" : {each.error}', ""]
        return Rendered(stdout=_joined(lines))


def _header(header: pb.ResponseHeader) -> tuple[str, ...]:
    return (
        f'"ClusterID" : {header.cluster_id}',
        f'"MemberID" : {header.member_id}',
        f'"Revision" : {header.revision}',
        f'"RaftTerm" : {header.raft_term}',
    )


def _pair(pair: KeyValue, prefix: str = "") -> tuple[str, ...]:
    return (
        f'"{prefix}Key" : {quote(pair.key)}',
        f'"{prefix}CreateRevision" : {pair.create_revision}',
        f'"{prefix}ModRevision" : {pair.mod_revision}',
        f'"{prefix}Version" : {pair.version}',
        f'"{prefix}Value" : {quote(pair.value)}',
        f'"{prefix}Lease" : {pair.lease}',
    )


def _quoted(text: str) -> str:
    return quote(to_bytes(text))


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
