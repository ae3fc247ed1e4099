"""Alarms as replicated state: what raises and disarms them, what they refuse, and that they outlive the process."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message as PbMessage

from kvserver import commands
from kvserver.apply import alarms as alarms_module
from kvserver.commands import CommandKind, ProposalId
from kvserver.errors import CorruptError, NoSpaceError, RequestError, TooManyRequestsError
from kvserver.pb.internal_pb2 import MemberAttributes
from kvserver.pb.rpc_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.types import NodeId

UNKNOWN_KIND = 7


def activate(member: int, kind: Any) -> AlarmRequest:
    return AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=member, alarm=kind)


def deactivate(member: int, kind: Any) -> AlarmRequest:
    return AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=member, alarm=kind)


def alarm(member: int, kind: Any) -> AlarmMember:
    return AlarmMember(memberID=member, alarm=kind)


def put_op(key: bytes = b"k") -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key))


def range_op() -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=b"k"))


def delete_op() -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=b"k"))


def txn_op(success: Sequence[RequestOp] = (), failure: Sequence[RequestOp] = ()) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(success=success, failure=failure))


async def test_raising_twice_raises_once_and_answers_the_raised_alarm(machine: Any) -> None:
    for _ in range(2):
        assert machine.apply(activate(1, NOSPACE)) == AlarmResponse(alarms=[alarm(1, NOSPACE)])
    assert machine.store.alarms == (alarm(1, NOSPACE),)


async def test_disarming_answers_what_it_disarmed(machine: Any) -> None:
    machine.apply(activate(1, NOSPACE))
    assert machine.apply(deactivate(1, NOSPACE)) == AlarmResponse(alarms=[alarm(1, NOSPACE)])
    assert machine.apply(deactivate(1, NOSPACE)) == AlarmResponse()
    assert machine.store.alarms == ()


@pytest.mark.parametrize("request_", [deactivate(0, NONE), deactivate(0, NOSPACE), deactivate(1, NONE), deactivate(1, CORRUPT)])
async def test_nothing_stands_for_all_as_in_etcd(machine: Any, request_: AlarmRequest) -> None:
    machine.apply(activate(1, NOSPACE))
    assert machine.apply(request_) == AlarmResponse()
    assert machine.store.alarms == (alarm(1, NOSPACE),)


@pytest.mark.parametrize(("member", "kind"), [(5, NONE), (0, NOSPACE), (9, UNKNOWN_KIND), (2**64 - 1, CORRUPT), (0, NONE)])
async def test_any_member_and_any_kind_can_be_raised_as_in_etcd(machine: Any, member: int, kind: Any) -> None:
    assert machine.apply(activate(member, kind)) == AlarmResponse(alarms=[alarm(member, kind)])
    await machine.reopen()
    assert machine.store.alarms == (alarm(member, kind),)


async def test_an_alarm_of_an_unknown_kind_refuses_nothing(machine: Any) -> None:
    machine.apply(activate(1, UNKNOWN_KIND))
    machine.apply(activate(1, NONE))
    assert not isinstance(machine.apply(PutRequest(key=b"k")), RequestError)


async def test_alarms_are_listed_by_member_then_kind(machine: Any) -> None:
    for member, kind in [(2, NOSPACE), (1, CORRUPT), (2**63, NOSPACE), (1, NOSPACE)]:
        machine.apply(activate(member, kind))
    assert machine.store.alarms == (alarm(1, NOSPACE), alarm(1, CORRUPT), alarm(2, NOSPACE), alarm(2**63, NOSPACE))
    listed = machine.apply(AlarmRequest(action=AlarmRequest.GET, alarm=CORRUPT))
    assert listed == AlarmResponse(alarms=[alarm(1, CORRUPT)])


async def test_alarms_are_bounded(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms_module, "MAX_ALARMS", 3)
    for member in range(3):
        machine.apply(activate(member, NOSPACE))
    assert isinstance(machine.apply(activate(9, NOSPACE)), TooManyRequestsError)
    assert machine.apply(activate(2, NOSPACE)) == AlarmResponse(alarms=[alarm(2, NOSPACE)])
    assert len(machine.store.alarms) == 3


async def test_an_unknown_action_changes_nothing(machine: Any) -> None:
    machine.apply(activate(1, NOSPACE))
    assert machine.apply(AlarmRequest.FromString(b"\x08\x09\x10\x01\x18\x01")) == AlarmResponse()
    assert machine.store.alarms == (alarm(1, NOSPACE),)


REFUSED_WITHOUT_SPACE = [
    PutRequest(key=b"k"),
    PutRequest(),
    TxnRequest(success=[put_op()]),
    TxnRequest(success=[range_op()], failure=[put_op()]),
    TxnRequest(success=[txn_op(success=[put_op()])]),
    TxnRequest(success=[delete_op(), txn_op(failure=[txn_op(failure=[put_op()])])]),
]
APPLIED_WITHOUT_SPACE = [
    DeleteRangeRequest(key=b"k"),
    CompactionRequest(revision=1),
    TxnRequest(),
    TxnRequest(success=[range_op(), delete_op()], failure=[delete_op()]),
    TxnRequest(success=[txn_op(success=[delete_op()], failure=[range_op()])]),
]


@pytest.mark.parametrize("request_", REFUSED_WITHOUT_SPACE)
async def test_without_space_what_may_put_is_refused(machine: Any, request_: PbMessage) -> None:
    machine.apply(activate(1, NOSPACE))
    before = machine.store.current_revision
    assert isinstance(machine.apply(request_), NoSpaceError)
    assert machine.store.current_revision == before


@pytest.mark.parametrize("request_", APPLIED_WITHOUT_SPACE)
async def test_without_space_deletions_and_compactions_go_on(machine: Any, request_: PbMessage) -> None:
    machine.apply(PutRequest(key=b"k"))
    machine.apply(activate(1, NOSPACE))
    assert not isinstance(machine.apply(request_), RequestError)


@pytest.mark.parametrize("request_", [*REFUSED_WITHOUT_SPACE, *APPLIED_WITHOUT_SPACE])
@pytest.mark.parametrize("raised", [[CORRUPT], [CORRUPT, NOSPACE], [NOSPACE, CORRUPT]])
async def test_with_damaged_data_every_command_on_keys_is_refused(machine: Any, request_: PbMessage, raised: list[Any]) -> None:
    machine.apply(PutRequest(key=b"k"))
    for kind in raised:
        machine.apply(activate(2, kind))
    before = machine.store.current_revision
    assert isinstance(machine.apply(request_), CorruptError)
    assert machine.store.current_revision == before
    assert not isinstance(machine.apply(deactivate(2, CORRUPT)), RequestError)


async def test_disarming_the_other_alarm_leaves_this_one_in_force(machine: Any) -> None:
    for member, kind in [(1, CORRUPT), (1, NOSPACE), (2, NOSPACE)]:
        machine.apply(activate(member, kind))
    machine.apply(deactivate(1, NOSPACE))
    assert isinstance(machine.apply(PutRequest(key=b"k")), CorruptError)
    machine.apply(deactivate(1, CORRUPT))
    assert isinstance(machine.apply(PutRequest(key=b"k")), NoSpaceError)
    machine.apply(deactivate(2, NOSPACE))
    assert not isinstance(machine.apply(PutRequest(key=b"k")), RequestError)


async def test_members_publish_themselves_under_any_alarm(machine: Any) -> None:
    machine.apply(activate(1, NOSPACE))
    machine.apply(activate(1, CORRUPT))
    attributes = MemberAttributes(member_id=1, name="kv1")
    data = commands.encode(CommandKind.MEMBER_PUBLISH, ProposalId(NodeId(1), 1, 1), attributes.SerializeToString())
    assert not isinstance(machine.apply_data(data).result, RequestError)
    assert machine.store.members[NodeId(1)].name == "kv1"


async def test_a_refused_entry_is_applied_for_good(machine: Any) -> None:
    machine.apply(activate(1, NOSPACE))
    machine.apply(PutRequest(key=b"k"))
    index = machine.store.applied_index
    await machine.reopen()
    assert (machine.store.applied_index, machine.store.alarms) == (index, (alarm(1, NOSPACE),))


async def test_an_alarm_that_did_not_reach_the_disk_goes_with_its_entry(machine: Any) -> None:
    machine.apply(activate(1, NOSPACE))
    await machine.flush()
    index = machine.store.applied_index
    machine.apply(deactivate(1, NOSPACE))
    await machine.reopen(commit=False)
    assert (machine.store.applied_index, machine.store.alarms) == (index, (alarm(1, NOSPACE),))


async def test_alarms_travel_with_a_snapshot(open_machine: Any, tmp_path: Path) -> None:
    source, target = await open_machine("source"), await open_machine("target")
    target.apply(activate(8, CORRUPT))
    source.apply(activate(1, NOSPACE))
    await source.flush()
    source.store.copy_to(tmp_path / "copy")
    await target.store.install(tmp_path / "copy")
    assert target.store.alarms == (alarm(1, NOSPACE),)
    assert isinstance(target.apply(PutRequest(key=b"k")), NoSpaceError)


async def test_members_part_neither_by_restart_nor_by_snapshot(open_machine: Any, tmp_path: Path) -> None:
    """The same random entries on three members, of which one restarts now and then and one is replaced by a copy of the first."""
    rng = random.Random(4)
    steady, restarting, copied = [await open_machine(name, interval_s=60) for name in ("steady", "restarting", "copied")]
    requests: list[Callable[[], PbMessage]] = [
        *(lambda kind=kind, member=member: activate(member, kind) for kind in (NOSPACE, CORRUPT) for member in (1, 2)),
        *(lambda kind=kind, member=member: deactivate(member, kind) for kind in (NOSPACE, CORRUPT) for member in (1, 2)),
        *(lambda: deactivate(rng.choice((1, 2)), CORRUPT) for _ in range(4)),
        *(lambda: PutRequest(key=b"k%d" % rng.randrange(9), value=rng.randbytes(20)) for _ in range(8)),
        *(lambda: DeleteRangeRequest(key=b"k%d" % rng.randrange(9)) for _ in range(3)),
        lambda: TxnRequest(success=[put_op(b"t")], failure=[delete_op()]),
        lambda: TxnRequest(success=[delete_op()]),
    ]
    refused = set()
    for turn in range(400):
        request = rng.choice(requests)()
        results = [each.apply(request) for each in (steady, restarting, copied)]
        assert {str(result) for result in results} == {str(results[0])}, request
        refused.add(type(results[0]))
        if turn % 50 == 20:
            await restarting.reopen()
        if turn % 100 == 70:
            await steady.flush()
            steady.store.copy_to(tmp_path / f"copy{turn}")
            await copied.store.install(tmp_path / f"copy{turn}")
        assert steady.store.alarms == restarting.store.alarms == copied.store.alarms
    hashes = [await each.store.hash_kv() for each in (steady, restarting, copied)]
    assert hashes[0] == hashes[1] == hashes[2]
    assert {NoSpaceError, CorruptError, AlarmResponse} <= refused


async def test_alarms_do_not_change_the_hash(machine: Any) -> None:
    machine.apply(PutRequest(key=b"k"))
    before = await machine.store.hash_kv()
    machine.apply(activate(1, NOSPACE))
    assert await machine.store.hash_kv() == before
