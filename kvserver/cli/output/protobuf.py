"""The protobuf format: the answer's bytes as they were on the wire, nothing behind them."""

from __future__ import annotations

from kvserver.pb import rpc_pb2 as pb


class ProtobufPrinter:
    """Raw messages."""

    def put(self, answer: pb.PutResponse) -> bytes:
        """A put."""
        return answer.SerializeToString()

    def get(self, answer: pb.RangeResponse) -> bytes:
        """A get."""
        return answer.SerializeToString()

    def delete(self, answer: pb.DeleteRangeResponse) -> bytes:
        """A del."""
        return answer.SerializeToString()

    def txn(self, answer: pb.TxnResponse) -> bytes:
        """A txn."""
        return answer.SerializeToString()

    def watch(self, message: pb.WatchResponse) -> bytes:
        """One message of a watch."""
        return message.SerializeToString()

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """All members."""
        return answer.SerializeToString()

    def member_add(self, answer: pb.MemberAddResponse, name: str, peer_urls: str) -> bytes:
        """A member add; the cluster is in it."""
        return answer.SerializeToString()

    def member_remove(self, answer: pb.MemberRemoveResponse, member_id: int) -> bytes:
        """A member remove."""
        return answer.SerializeToString()

    def member_update(self, answer: pb.MemberUpdateResponse, member_id: int) -> bytes:
        """A member update."""
        return answer.SerializeToString()

    def member_promote(self, answer: pb.MemberPromoteResponse, member_id: int) -> bytes:
        """A member promote."""
        return answer.SerializeToString()

    def alarms(self, answer: pb.AlarmResponse) -> bytes:
        """An alarm list, or an alarm disarm."""
        return answer.SerializeToString()

    def move_leader(self, answer: pb.MoveLeaderResponse, leader_id: int, target_id: int) -> bytes:
        """A move-leader."""
        return answer.SerializeToString()

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> bytes:
        """The header alone, as etcdctl prints it."""
        return answer.header.SerializeToString()

    def lease_revoke(self, answer: pb.LeaseRevokeResponse, lease: int) -> bytes:
        """The whole answer."""
        return answer.SerializeToString()

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, *, with_keys: bool) -> bytes:
        """The header alone, as etcdctl prints it."""
        return answer.header.SerializeToString()

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> bytes:
        """The header alone, as etcdctl prints it."""
        return answer.header.SerializeToString()

    def lease_ended(self, lease: int) -> bytes:
        """Nothing is said of it."""
        return b""

    def leases(self, answer: pb.LeaseLeasesResponse) -> bytes:
        """The header alone, as etcdctl prints it."""
        return answer.header.SerializeToString()
