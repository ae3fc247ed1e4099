"""Exact output of the formats; the tables are copies of etcdctl 3.4.23's screen."""

# ruff: noqa: E501  (tables as wide as they are)

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.output import (
    EndpointHash,
    EndpointHealth,
    EndpointStatus,
    change_printer,
    endpoint_printer,
    key_value_printer,
    member_printer,
)
from kvserver.cli.output.fields import FieldsPrinter
from kvserver.cli.output.json import JsonPrinter, dump
from kvserver.cli.output.simple import SimplePrinter
from kvserver.cli.output.table import TablePrinter, render, wrap
from kvserver.cli.settings import FORMATS, resolve
from kvserver.pb import kv_pb2
from kvserver.pb import rpc_pb2 as pb

ALARM = "memberID:3544609687393156342 alarm:NOSPACE "
STATUS = EndpointStatus(
    endpoint="127.0.0.1:12389",
    status=pb.StatusResponse(
        header=pb.ResponseHeader(member_id=0x3130FBBB047A3CF6, raft_term=2),
        version="3.4.23",
        dbSize=20480,
        leader=0x3130FBBB047A3CF6,
        raftIndex=7,
        raftTerm=2,
        raftAppliedIndex=7,
        errors=[ALARM],
    ),
)


def test_status_table_breaks_long_errors_like_etcdctl() -> None:
    assert TablePrinter().status([STATUS]).decode() == (
        "+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------------------------------+\n"
        "|    ENDPOINT     |        ID        | VERSION | DB SIZE | IS LEADER | IS LEARNER | RAFT TERM | RAFT INDEX | RAFT APPLIED INDEX |             ERRORS             |\n"
        "+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------------------------------+\n"
        "| 127.0.0.1:12389 | 3130fbbb047a3cf6 |  3.4.23 |   20 kB |      true |      false |         2 |          7 |                  7 |   memberID:3544609687393156342 |\n"
        "|                 |                  |         |         |           |            |           |            |                    |                 alarm:NOSPACE  |\n"
        "+-----------------+------------------+---------+---------+-----------+------------+-----------+------------+--------------------+--------------------------------+\n"
    )


ALARMS = pb.AlarmResponse.FromString(b"\x12\x04\x08\x05\x10\x01\x12\x02\x10\x02\x12\x02\x08\x03\x12\x04\x08\x09\x10\x07")


def test_alarms_leave_out_what_is_nothing_and_number_what_has_no_name() -> None:
    assert SimplePrinter().alarms(ALARMS) == b"memberID:5 alarm:NOSPACE \nalarm:CORRUPT \nmemberID:3 \nmemberID:9 alarm:7 \n"
    assert JsonPrinter().alarms(ALARMS) == b'{"alarms":[{"memberID":5,"alarm":1},{"alarm":2},{"memberID":3},{"memberID":9,"alarm":7}]}\n'
    assert FieldsPrinter().alarms(ALARMS).decode().split("\n\n") == [
        '"MemberID" : 5\n"AlarmType" : NOSPACE',
        '"MemberID" : 0\n"AlarmType" : CORRUPT',
        '"MemberID" : 3\n"AlarmType" : NONE',
        '"MemberID" : 9\n"AlarmType" : 7',
        "",
    ]


def test_tables_of_health_and_hash() -> None:
    health = TablePrinter().health([EndpointHealth(endpoint="127.0.0.1:9", took_ns=5_000_386_326, error="context deadline exceeded")])
    assert health.stdout.decode() == (
        "+-------------+--------+--------------+---------------------------+\n"
        "|  ENDPOINT   | HEALTH |     TOOK     |           ERROR           |\n"
        "+-------------+--------+--------------+---------------------------+\n"
        "| 127.0.0.1:9 |  false | 5.000386326s | context deadline exceeded |\n"
        "+-------------+--------+--------------+---------------------------+\n"
    )
    assert health.stderr == b""
    assert TablePrinter().hash_kv([]).decode() == ("+----------+------+\n| ENDPOINT | HASH |\n+----------+------+\n+----------+------+\n")


def test_a_long_word_widens_its_column() -> None:
    urls = "http://10.0.0.1:2380,http://10.0.0.2:2380,http://10.0.0.3:2380"
    lines = render(("a",), [(urls,), ("x",)]).decode().splitlines()
    assert lines[3] == f"| {urls} |"
    assert {len(line) for line in lines} == {len(urls) + 4}


@given(st.lists(st.text(st.characters(categories=("L", "N")), max_size=12), min_size=1, max_size=8), st.integers(min_value=1, max_value=40))
def test_wrap_keeps_every_word_and_every_space_between(words: list[str], limit: int) -> None:
    text = " ".join(words)
    lines = wrap(text, limit)
    assert " ".join(lines) == text
    assert all(len(line) <= max(limit, *map(len, words)) for line in lines)


def test_json_is_gos() -> None:
    answer = pb.TxnResponse(header=pb.ResponseHeader(cluster_id=2**64 - 1, revision=5), succeeded=True)
    answer.responses.add().response_put.prev_kv.CopyFrom(kv_pb2.KeyValue(key=b"\xff", value=b"v", lease=-1))
    answer.responses.add().response_delete_range.deleted = 1
    answer.responses.add().response_txn.SetInParent()
    assert JsonPrinter().txn(answer) == (
        b'{"header":{"cluster_id":18446744073709551615,"revision":5},"succeeded":true,"responses":['
        b'{"Response":{"ResponsePut":{"prev_kv":{"key":"/w==","value":"dg==","lease":-1}}}},'
        b'{"Response":{"ResponseDeleteRange":{"deleted":1}}},{"Response":{"ResponseTxn":{}}}]}\n'
    )
    assert JsonPrinter().get(pb.RangeResponse()) == b"{}\n"
    assert dump({"name": "<a>&é\u2028"}) == '{"name":"\\u003ca\\u003e\\u0026é\\u2028"}\n'.encode()


def test_json_of_endpoints() -> None:
    found = json.loads(JsonPrinter().status([STATUS]))
    assert found[0]["Endpoint"] == "127.0.0.1:12389"
    assert found[0]["Status"]["errors"] == [ALARM]
    assert "isLearner" not in found[0]["Status"]
    hashes = JsonPrinter().hash_kv([EndpointHash(endpoint="a:1", hash_kv=pb.HashKVResponse(hash=2**32 - 1, compact_revision=4))])
    assert hashes == b'[{"Endpoint":"a:1","HashKV":{"hash":4294967295,"compact_revision":4}}]\n'
    health = JsonPrinter().health([EndpointHealth(endpoint="a:1", took_ns=1500), EndpointHealth(endpoint="b:2", took_ns=1, error="x")])
    assert health.stdout.decode() == (
        '[{"endpoint":"a:1","health":true,"took":"1.5µs"},{"endpoint":"b:2","health":false,"took":"1ns","error":"x"}]\n'
    )


def test_simple_prints_bytes_as_they_are() -> None:
    answer = pb.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"k\x00", value=b"\xff\n")])
    assert SimplePrinter().get(answer) == b"k\x00\n\xff\n\n"
    assert SimplePrinter(values_only=True).get(answer) == b"\xff\n\n"
    assert SimplePrinter(hex_output=True).get(answer) == b"\\x6b\\x00\n\\xff\\x0a\n"


def test_simple_health_goes_to_stderr() -> None:
    rendered = SimplePrinter().health(
        [EndpointHealth(endpoint="a:1", took_ns=2_000_000), EndpointHealth(endpoint="b:2", took_ns=1, error="boom")]
    )
    assert rendered.stdout == b""
    assert rendered.stderr == (
        b"a:1 is healthy: successfully committed proposal: took = 2ms\nb:2 is unhealthy: failed to commit proposal: boom\n"
    )


def test_unstarted_and_learner_members() -> None:
    answer = pb.MemberListResponse(members=[pb.Member(ID=0xAB, peerURLs=["http://a:1", "http://b:2"], isLearner=True)])
    assert SimplePrinter().member_list(answer) == b"ab, unstarted, , http://a:1,http://b:2, , true\n"


CHANGED = pb.ResponseHeader(cluster_id=0x2A)


def test_a_member_added_is_followed_by_what_to_start_it_with() -> None:
    """Ids are padded to 16 places; a member that hasn't started has no name yet, and only the new one is given one."""
    added = pb.Member(ID=0xB, peerURLs=["http://b:1", "http://b:2"], isLearner=True)
    members = [pb.Member(ID=0xA, name="n1", peerURLs=["http://a:1"]), added, pb.Member(ID=0xC, peerURLs=["http://c:1"])]
    answer = pb.MemberAddResponse(header=CHANGED, member=added, members=members)
    assert SimplePrinter().member_add(answer, 'n"é', "http://b:1,http://b:2").decode() == (
        "Member                b added to cluster               2a\n"
        "\n"
        'ETCD_NAME="n\\"é"\n'
        'ETCD_INITIAL_CLUSTER="n1=http://a:1,n\\"é=http://b:1,n\\"é=http://b:2,=http://c:1"\n'
        'ETCD_INITIAL_ADVERTISE_PEER_URLS="http://b:1,http://b:2"\n'
        'ETCD_INITIAL_CLUSTER_STATE="existing"\n'
    )


def test_a_name_that_is_not_utf8_is_quoted_like_go_does() -> None:
    answer = pb.MemberAddResponse(member=pb.Member(ID=1))
    assert b'ETCD_NAME="\\xff"\n' in SimplePrinter().member_add(answer, "\udcff", "http://a:1")


def test_changes_of_the_cluster_in_the_simple_format() -> None:
    simple, last = SimplePrinter(), 2**64 - 1
    cluster = b"cluster               2a\n"
    assert simple.member_remove(pb.MemberRemoveResponse(header=CHANGED), last) == b"Member ffffffffffffffff removed from " + cluster
    assert simple.member_update(pb.MemberUpdateResponse(header=CHANGED), 1) == b"Member                1 updated in " + cluster
    assert simple.member_promote(pb.MemberPromoteResponse(header=CHANGED), 1) == b"Member                1 promoted in " + cluster
    assert simple.move_leader(pb.MoveLeaderResponse(header=CHANGED), 0xA, last) == b"Leadership transferred from a to ffffffffffffffff\n"


def test_changes_of_the_cluster_in_json() -> None:
    answer = pb.MemberPromoteResponse(header=CHANGED, members=[pb.Member(ID=2**64 - 1, name="n1", peerURLs=["http://a:1"])])
    assert JsonPrinter().member_promote(answer, 1) == (
        b'{"header":{"cluster_id":42},"members":[{"ID":18446744073709551615,"name":"n1","peerURLs":["http://a:1"]}]}\n'
    )
    assert JsonPrinter().move_leader(pb.MoveLeaderResponse(), 1, 2) == b"{}\n"


@pytest.mark.parametrize("write_out", FORMATS)
def test_every_format_says_what_it_supports(write_out: str) -> None:
    settings = resolve({"write_out": write_out}, {})
    for choose, refused in (
        (key_value_printer, ("table",)),
        (member_printer, ()),
        (endpoint_printer, ("protobuf",)),
        (change_printer, ("fields", "table")),
    ):
        if write_out in refused:
            with pytest.raises(CliError) as caught:
                choose(settings)
            assert (caught.value.text, caught.value.code) == (f"{write_out} not supported as output format", ExitCode.BAD_FEATURE)
        else:
            assert choose(settings) is not None
