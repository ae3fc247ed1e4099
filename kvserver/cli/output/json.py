"""The json format: the message as Go's encoding/json writes etcd's structs.

What that means: fields in the order of their declaration under their proto names, empty ones left out, bytes in base64, 64-bit integers
as numbers, enums as numbers; `<`, `>` and `&` escaped; one line. A member of a union stands under its Go name:
`{"Response":{"ResponsePut":{}}}`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvserver.cli.golang import format_duration
from kvserver.cli.output.types import EndpointHash, EndpointHealth, EndpointStatus, Rendered
from kvserver.pb import rpc_pb2 as pb

_ESCAPED: Final = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class JsonPrinter:
    """Everything as one line of JSON."""

    def put(self, answer: pb.PutResponse) -> bytes:
        """A put."""
        return dump(to_go(answer))

    def get(self, answer: pb.RangeResponse) -> bytes:
        """A get."""
        return dump(to_go(answer))

    def delete(self, answer: pb.DeleteRangeResponse) -> bytes:
        """A del."""
        return dump(to_go(answer))

    def txn(self, answer: pb.TxnResponse) -> bytes:
        """A txn."""
        return dump(to_go(answer))

    def watch(self, message: pb.WatchResponse) -> bytes:
        """etcd's client library has a type of its own for this: its fields have Go's names, and none is left out."""
        return dump(
            {
                "Header": to_go(message.header),
                "Events": [to_go(event) for event in message.events],
                "CompactRevision": message.compact_revision,
                "Canceled": message.canceled,
                "Created": message.created,
            }
        )

    def member_list(self, answer: pb.MemberListResponse) -> bytes:
        """All members."""
        return dump(to_go(answer))

    def member_add(self, answer: pb.MemberAddResponse, name: str, peer_urls: str) -> bytes:
        """A member add; the cluster is in it."""
        return dump(to_go(answer))

    def member_remove(self, answer: pb.MemberRemoveResponse, member_id: int) -> bytes:
        """A member remove."""
        return dump(to_go(answer))

    def member_update(self, answer: pb.MemberUpdateResponse, member_id: int) -> bytes:
        """A member update."""
        return dump(to_go(answer))

    def member_promote(self, answer: pb.MemberPromoteResponse, member_id: int) -> bytes:
        """A member promote."""
        return dump(to_go(answer))

    def move_leader(self, answer: pb.MoveLeaderResponse, leader_id: int, target_id: int) -> bytes:
        """A move-leader."""
        return dump(to_go(answer))

    def alarms(self, answer: pb.AlarmResponse) -> bytes:
        """A list; kinds are numbers."""
        return dump(to_go(answer))

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> bytes:
        """The header's fields beside the others."""
        return dump(to_go(answer.header) | {"ID": answer.ID, "TTL": answer.TTL, "Error": answer.error})

    def lease_revoke(self, answer: pb.LeaseRevokeResponse, lease: int) -> bytes:
        """A lease revoke."""
        return dump(to_go(answer))

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, *, with_keys: bool) -> bytes:
        """As a grant; under names of its own."""
        keys = [base64.b64encode(key).decode() for key in answer.keys] or None
        return dump(to_go(answer.header) | {"id": answer.ID, "ttl": answer.TTL, "granted-ttl": answer.grantedTTL, "keys": keys})

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> bytes:
        """As a grant."""
        return dump(to_go(answer.header) | {"ID": answer.ID, "TTL": answer.TTL})

    def lease_ended(self, lease: int) -> bytes:
        """Nothing is said of it."""
        return b""

    def leases(self, answer: pb.LeaseLeasesResponse) -> bytes:
        """As a grant."""
        return dump(to_go(answer.header) | {"leases": [{"id": each.ID} for each in answer.leases]})

    def status(self, found: Sequence[EndpointStatus]) -> bytes:
        """A list."""
        return dump([{"Endpoint": each.endpoint, "Status": to_go(each.status)} for each in found])

    def hash_kv(self, found: Sequence[EndpointHash]) -> bytes:
        """A list."""
        return dump([{"Endpoint": each.endpoint, "HashKV": to_go(each.hash_kv)} for each in found])

    def health(self, found: Sequence[EndpointHealth]) -> Rendered:
        """A list."""
        items: list[dict[str, Any]] = []
        for each in found:
            item: dict[str, Any] = {"endpoint": each.endpoint, "health": each.healthy, "took": format_duration(each.took_ns)}
            if each.error:
                item["error"] = each.error
            items.append(item)
        return Rendered(stdout=dump(items))


def dump(value: Any) -> bytes:
    """One line, with Go's escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPED).encode() + b"\n"


def to_go(message: Message) -> dict[str, Any]:
    """A message as the dictionary that Go would marshal."""
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.containing_oneof is not None:
            union = _camel(field.containing_oneof.name)
            result[union] = {_camel(field.name): _go_value(field, value)}
        elif field.is_repeated:
            result[field.name] = [_go_value(field, item) for item in value]
        else:
            result[field.name] = _go_value(field, value)
    return result


def _go_value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return to_go(value)
    return base64.b64encode(value).decode() if field.type == FieldDescriptor.TYPE_BYTES else value


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
