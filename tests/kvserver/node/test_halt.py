"""A member whose apply met damage: it tells the cluster, gives leadership away, and ends; it answers nothing meanwhile."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands
from kvserver.apply import Alarms, ApplyMetDamageError, Unbounded
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import ServerConfig, parse
from kvserver.errors import CorruptError, RequestError, RequestTimeoutError
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.mvcc.layout import KEY
from kvserver.node import Node, StoreReader
from kvserver.node import halt as halt_module
from kvserver.node.forwarding import ForwardKind
from kvserver.node.halt import CommittedAlarms, Halt, HaltParts
from kvserver.node.proposals import Proposals
from kvserver.node.space_watch import NO, YES
from kvserver.pb.rpc_pb2 import CORRUPT, NOSPACE, AlarmMember, AlarmRequest, PutRequest, RangeRequest
from kvserver.testing.damage import flip_row
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import member_flags
from kvserver.types import NodeId
from raft.errors import CompactedError
from raft.messages import Message, MessageType
from raft.types import Entry, EntryType, Index, Term

MEMBER = NodeId(7)
OWN = AlarmMember(memberID=MEMBER, alarm=CORRUPT)
ERROR = ApplyMetDamageError(Path("/data/db"), "the row 'k' of table key", "fails its checksum", Index(5))


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write_line(self, line: str) -> None:
        self.lines.append(json.loads(line))

    def messages(self) -> list[str]:
        return [line["msg"] for line in self.lines]


def entry(index: int, data: bytes = b"", kind: EntryType = EntryType.NORMAL) -> Entry:
    return Entry(index=Index(index), term=Term(1), type=kind, data=data)


def alarm_entry(index: int, action: AlarmRequest.AlarmAction.ValueType = AlarmRequest.ACTIVATE, member: int = MEMBER) -> Entry:
    request = AlarmRequest(action=action, memberID=member, alarm=CORRUPT)
    return entry(index, commands.encode(CommandKind.ALARM, ProposalId(NodeId(1), 1, index), request.SerializeToString()))


@dataclass
class FakeLog:
    """Raft's log and the store beside it."""

    entries: list[Entry] = field(default_factory=list)
    commit_index: Index = Index(0)
    applied_index: Index = Index(0)
    alarms: Alarms = ()
    asked: list[Index] = field(default_factory=list)
    installing: bool = False

    def committed_entries(self, lo: Index, max_size_bytes: int) -> list[Entry]:
        assert max_size_bytes == halt_module.FOLD_BYTES
        if self.installing:
            raise CompactedError
        self.asked.append(lo)
        return [each for each in self.entries if lo <= each.index <= self.commit_index][:2]


# --- the alarms as committed --------------------------------------------------------------------------------------------------------------


def test_an_alarm_counts_when_its_entry_is_committed_and_not_before() -> None:
    log = FakeLog(entries=[entry(1), entry(2, b"x" * 50), alarm_entry(3), entry(4)], commit_index=Index(2))
    alarms = CommittedAlarms(log, log)
    assert alarms.now() == ()
    log.commit_index = Index(3)
    assert alarms.now() == (OWN,)
    log.commit_index = Index(4)
    assert alarms.now() == (OWN,)
    assert log.asked == [1, 3, 4], "what was seen is not read again"


def test_it_begins_with_what_is_applied() -> None:
    nospace = AlarmMember(memberID=1, alarm=NOSPACE)
    log = FakeLog(entries=[alarm_entry(1), entry(2), alarm_entry(3)], commit_index=Index(3), applied_index=Index(2), alarms=(nospace,))
    assert CommittedAlarms(log, log).now() == (nospace, OWN)
    assert log.asked == [3]


def test_disarming_counts_as_well_and_what_cannot_be_read_is_nothing() -> None:
    off = AlarmRequest.DEACTIVATE
    rubbish = [entry(4, b"\x09garbage"), entry(5, alarm_entry(5).data + b"\xff"), entry(6, b"change", EntryType.CONF_CHANGE)]
    log = FakeLog(entries=[alarm_entry(1), alarm_entry(2, member=8), alarm_entry(3, off), *rubbish], commit_index=Index(6))
    assert CommittedAlarms(log, log).now() == (AlarmMember(memberID=8, alarm=CORRUPT),)


def test_while_a_snapshot_is_installed_the_applied_ones_count() -> None:
    log = FakeLog(entries=[alarm_entry(1)], commit_index=Index(9), installing=True)
    alarms = CommittedAlarms(log, log)
    assert alarms.now() == ()
    log.installing, log.applied_index, log.alarms, log.entries = False, Index(9), (OWN,), []
    assert alarms.now() == (OWN,)


# --- the halt -----------------------------------------------------------------------------------------------------------------------------


class Member:
    """Everything that a halt works with; `commits` says whether a raised alarm is committed."""

    def __init__(self, *, commits: bool = True, limit_s: float = 30.0) -> None:
        self.log = FakeLog()
        self.commits = commits
        self.events: list[str] = []
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.lines = Lines()
        self.check: Any = None
        self.check_change: Any = None
        self.refusal: type[RequestError] | None = None
        self.given_away = asyncio.Event()
        self.halt = Halt(
            HaltParts(
                member_id=MEMBER,
                store=self.log,
                committed=self.log,
                alarms=self,
                reads=self,
                proposals=self,
                releaser=self,
                inflow=self,
                hand_over=self,
                limit_s=limit_s,
                contact_s=1.0,
                on_end=self.end,
                log=Logger(self.lines),
            )
        )

    def raise_alarm(self, kind: int) -> None:
        assert kind == CORRUPT
        self.events.append("known" if self.halt.knows(OWN) else "raise")
        if self.commits:
            self.commit_alarm()

    def commit_alarm(self) -> None:
        self.log.entries.append(alarm_entry(self.log.commit_index + 1))
        self.log.commit_index = Index(self.log.commit_index + 1)

    def hasten(self, attempt_timeout_s: float) -> None:
        assert 0 < attempt_timeout_s < 5
        self.events.append("hasten")

    def stop(self, refusal: type[RequestError]) -> None:
        self.refusal = refusal

    def hold(self) -> None:
        self.events.append("hold")

    def let_pass(self) -> None:
        self.events.append("let pass")

    async def run(self, *, since_s: float) -> None:
        assert since_s <= asyncio.get_running_loop().time() - 1.0
        self.events.append("hand over")
        self.given_away.set()

    def end(self, error: Exception) -> None:
        self.events.append("end")
        self.ended.set_result(error)

    async def wait_ended(self) -> Exception:
        async with asyncio.timeout(20):
            return await self.ended


async def test_the_alarm_is_raised_then_leadership_goes_then_the_member_ends() -> None:
    member = Member()
    assert not member.halt.is_begun
    member.halt.begin(ERROR)
    assert member.halt.is_begun
    assert await member.wait_ended() is ERROR
    assert member.events == ["hold", "let pass", "hasten", "raise", "hand over", "end"]
    first = member.lines.lines[0]
    assert (first["row"], first["reason"], first["index"], first["path"]) == (ERROR.row, ERROR.reason, 5, "/data/db")
    assert "the CORRUPT alarm of this member is raised" in member.lines.messages()


async def test_it_does_not_end_before_the_alarm_is_committed_and_then_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halt_module, "GIVE_AWAY_S", 0.0)
    member = Member(commits=False)
    member.halt.begin(ERROR)
    async with asyncio.timeout(20):
        await member.given_away.wait()
    told = ["hold", "let pass", "hasten", "raise", "hand over"]
    assert member.events == told, "a leader that can't commit hands over before the time is up"
    assert not member.ended.done()
    member.commit_alarm()
    assert await member.wait_ended() is ERROR
    assert member.events[5:] == ["hand over", "end"], "it may have been elected meanwhile"


async def test_without_a_quorum_it_ends_when_the_time_is_up() -> None:
    member = Member(commits=False, limit_s=0.05)
    member.halt.begin(ERROR)
    assert await member.wait_ended() is ERROR
    assert "the CORRUPT alarm of this member could not be raised; the next start tries again" in member.lines.messages()


async def test_reads_and_commands_are_refused_but_alarms_are_not() -> None:
    member = Member(commits=False)
    member.halt.begin(ERROR)
    assert member.refusal is CorruptError
    for kind in set(CommandKind) - {CommandKind.ALARM}:
        with pytest.raises(CorruptError):
            member.check(kind, PutRequest())
    member.check(CommandKind.ALARM, AlarmRequest())
    with pytest.raises(CorruptError):
        member.check_change()
    await member.halt.stop()
    assert not member.ended.done()


async def test_only_the_first_damage_counts() -> None:
    member = Member()
    member.halt.begin(ERROR)
    member.halt.begin(ApplyMetDamageError(Path("/data/db"), "another row", "is missing", Index(6)))
    assert await member.wait_ended() is ERROR
    assert member.events.count("end") == 1


async def test_it_ends_also_when_telling_fails() -> None:
    member = Member()
    member.raise_alarm = lambda kind: 1 // 0  # type: ignore[assignment,method-assign]
    member.halt.begin(ERROR)
    assert await member.wait_ended() is ERROR
    assert "telling the cluster of the damage failed" in member.lines.messages()


async def test_before_it_begins_only_what_is_applied_is_known() -> None:
    member = Member()
    member.commit_alarm()
    assert not member.halt.knows(OWN)
    member.halt.begin(ERROR)
    assert member.halt.knows(OWN)
    await member.wait_ended()
    assert "known" in member.events


# --- in a node ----------------------------------------------------------------------------------------------------------------------------


class Home:
    """A single member's directory, or that of one of three whose others are not there."""

    def __init__(self, root: Path, *, others: int = 0) -> None:
        ports = PortAllocator()
        peer = ports.next_port()
        initial = ",".join([f"a=http://127.0.0.1:{peer}", *(f"o{n}=http://127.0.0.1:{ports.next_port()}" for n in range(others))])
        invocation = parse(member_flags("a", root, ports.next_port(), peer, ports.next_port(), initial), {})
        self.config: ServerConfig = invocation.config  # type: ignore[union-attr]
        self.store = root / "member" / "snap" / "db"
        self.lines = Lines()

    async def start(self) -> Node:
        return await Node.start(self.config, metrics=Metrics(version="test"), log=Logger(self.lines))


async def put(node: Node, key: bytes, value: bytes = b"v") -> Any:
    return await node.proposals.propose(CommandKind.PUT, PutRequest(key=key, value=value), deadline_s=node.now_s() + 20)


async def damaged_home(root: Path) -> Home:
    home = Home(root)
    node = await home.start()
    try:
        await put(node, b"k")
        await put(node, b"sound")
    finally:
        await node.stop()
    assert flip_row(home.store, KEY, b"k", offset_bytes=3)
    return home


async def failure_of(node: Node) -> Exception:
    async with asyncio.timeout(30):
        return await node.wait_failed()


async def test_a_node_raises_the_alarm_and_fails_and_does_so_again_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[CommandKind] = []
    propose = Proposals.propose

    async def noting(self: Proposals, kind: CommandKind, *arguments: Any, **named: Any) -> Any:
        proposed.append(kind)
        return await propose(self, kind, *arguments, **named)

    monkeypatch.setattr(Proposals, "propose", noting)
    home = await damaged_home(tmp_path / "data")
    node = await home.start()
    try:
        await put(node, b"sound")
        assert not node.halt.is_begun
        with pytest.raises(RequestError):
            await put(node, b"k")
        error = await failure_of(node)
        assert isinstance(error, ApplyMetDamageError)
        assert error.index == node.store.applied_index + 1
        assert node.halt.knows(AlarmMember(memberID=node.member_id, alarm=CORRUPT))
    finally:
        await node.stop()
    assert proposed.count(CommandKind.ALARM) == 1
    for _ in range(2):
        home.lines.lines.clear()
        node = await home.start()
        try:
            again = await failure_of(node)
            assert isinstance(again, ApplyMetDamageError)
            assert str(again) == str(error)
            assert "the CORRUPT alarm of this member is raised" in home.lines.messages()
        finally:
            await node.stop()
    assert proposed.count(CommandKind.ALARM) == 1, "what the log shows as raised is not proposed again"


async def test_a_halted_node_answers_nothing_and_takes_nothing_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = await damaged_home(tmp_path / "data")
    monkeypatch.setattr(halt_module.CommittedAlarms, "now", lambda self: ())  # the alarm's entry is never seen
    node = await home.start()
    node._hand_over.run = lambda **_: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
    try:
        await node.wait_published()
        assert await node._answer_peer(NodeId(9), ForwardKind.HAS_SPACE, b"") == YES
        begun, begin = asyncio.Event(), node.halt.begin
        node.halt.begin = lambda error: (begin(error), begun.set())  # type: ignore[method-assign,assignment,return-value,func-returns-value]
        writing = asyncio.create_task(put(node, b"k"))
        async with asyncio.timeout(20):
            await begun.wait()
        with pytest.raises(CorruptError):
            await node.reads.wait_linearizable(node.now_s() + 20)
        with pytest.raises(CorruptError):
            await StoreReader(node.store).read_range(RangeRequest(key=b"sound"), Unbounded())
        with pytest.raises(CorruptError):
            await put(node, b"sound")
        with pytest.raises(CorruptError):
            node.proposals.check_change()
        assert await node._answer_peer(NodeId(9), ForwardKind.HAS_SPACE, b"") == NO
        assert not node._failed.done()
        assert node.driver.is_leader, "raft goes on"
        node.fail(RuntimeError("the disk"))  # something worse: no more waiting
        assert str(await failure_of(node)) == "the disk"
        with pytest.raises(RequestError):
            await writing
    finally:
        await node.stop()


async def test_a_halted_node_holds_back_nothing_of_what_others_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed and can't be applied is over the limit here at once, and the alarm's own entry may come behind it."""
    home = await damaged_home(tmp_path / "data")
    home.config = replace(home.config, max_uncommitted_bytes=1 << 20)
    monkeypatch.setattr(halt_module.CommittedAlarms, "now", lambda self: ())  # the halt goes on until its time is up
    node = await home.start()
    try:
        await node.wait_published()
        begun, begin = asyncio.Event(), node.halt.begin
        node.halt.begin = lambda error: (begin(error), begun.set())  # type: ignore[method-assign,assignment,return-value,func-returns-value]
        writing = asyncio.create_task(put(node, b"k", b"v" * 1_100_000))
        async with asyncio.timeout(20):
            await begun.wait()
        assert node.driver.unapplied_bytes >= 1 << 20
        raw = node.driver.raw
        last, other, term = raw.last_index, NodeId(9), Term(raw.term + 1)
        behind = Entry(index=Index(last + 1), term=term, type=EntryType.NORMAL, data=b"x")
        append = Message(
            type=MessageType.APP, from_=other, to=node.member_id, term=term, index=last, log_term=raw.term, entries=(behind,), commit=last
        )
        node._parts.handler.on_message(append, Index(0))
        assert (node.inflow.held_bytes, node.metrics.appends_held.value) == (0, 0)
        assert raw.last_index == last + 1
        node.fail(RuntimeError("enough"))
        await asyncio.wait([writing])
        assert isinstance(writing.exception(), RequestError)
    finally:
        await node.stop()


async def test_reads_that_wait_for_their_index_are_answered_too(tmp_path: Path) -> None:
    home = await damaged_home(tmp_path / "data")
    node = await home.start()
    try:
        await node.wait_published()
        reading = asyncio.create_task(node.reads.wait_linearizable(node.now_s() + 20))
        await asyncio.sleep(0)
        node.reads.resolve(next(iter(node.reads._contexts)), Index(node.store.applied_index + 1))
        writing = asyncio.create_task(put(node, b"k"))
        with pytest.raises(CorruptError):
            await reading
        with pytest.raises((CorruptError, RequestError, RequestTimeoutError)):
            await writing
    finally:
        await node.stop()
