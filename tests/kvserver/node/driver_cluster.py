"""Members that are real from the driver inwards, on one event loop whose time is virtual.

Purpose: to prove *when* the log window is compacted. Each member is a real `Driver` with a real `RawNode`, `LogWindow`, `PeerBook` and
`ApplyQueue`; the disk, the store and the network are as small as they can be, and do what they are told.

Rules
- `VirtualLoop`'s time stands still while anything is ready to run, and jumps to the next timer when nothing is: ten minutes pass in
  milliseconds of the machine's, and never by themselves.
- A save and a delivery take one turn of the loop. The store commits `COMMIT_S` after an apply, unless it is held back (`holds_commits`).
- Of everything that happens to a window the member keeps a note: `compactions`, and `decisions`, the turns of the loop in which the
  rule was asked.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.compaction import Decision, WindowLimits
from kvserver.node.driver import Driver, DriverHooks
from kvserver.node.log_window import LogWindow
from kvserver.node.peers import PeerBook
from raft.confchange import ConfChange
from raft.confchange_codec import decode_conf_change
from raft.config import Config
from raft.messages import Message
from raft.raw_node import RawNode
from raft.types import ConfState, Entry, EntryType, HardState, Index, NodeId, Term

TICK_S: Final = 0.1
COMMIT_S: Final = 0.1
LINK_S: Final = 0.001


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

    def __init__(self) -> None:
        self.now_s = 10_000.0
        self.turns = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.turns += 1
        if timeout is None:
            raise RuntimeError("the scenario waits for something that can't come")
        self._loop.now_s += max(0.0, timeout)
        return super().select(0)


def virtual_loop() -> VirtualLoop:
    """The loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


class _SilentLog:
    def debug(self, message: str) -> None: ...
    def info(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


@dataclass
class Proposal:
    """A write, or a change of the members, that waits to be taken."""

    content: bytes | ConfChange
    is_wanted: bool = True

    def taken(self, term: Term) -> None: ...


@dataclass(frozen=True)
class Compaction:
    """What a member dropped, and when."""

    at_s: float
    reason: str
    floor: int
    dropped: int


class _Disk:
    """The WAL's thread: a save is done at the next turn of the loop."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._under_way = 0

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    def submit(self, message: Message) -> None:
        self._under_way += 1
        asyncio.get_running_loop().call_soon(self._finish, message)

    def _finish(self, message: Message) -> None:
        self._under_way -= 1
        member = self._member
        if member.is_stopped:
            return
        if message.snapshot is not None:
            metadata = message.snapshot.metadata
            member.window.reset(metadata.index, metadata.term)
            member.applied = list(member.cluster.states[metadata.index])
            member.durable_index = metadata.index
            member.conf_state = member.durable_conf = metadata.conf_state
            member.driver.note_applied(metadata.index, metadata.term)
        member.window.append(message.entries)
        member.driver.storage_responded(message.responses)


class Member:
    """One member, from the driver inwards; also its store, its outbox and its hooks."""

    def __init__(self, cluster: Cluster, member_id: NodeId, limits: WindowLimits) -> None:
        self.cluster = cluster
        self.id = member_id
        self.conf_state = self.durable_conf = cluster.founding
        self.durable_index = Index(0)
        self.holds_commits = False
        self.commits_at_once = False
        self.is_stopped = False
        self.applied: list[bytes] = []
        self.compactions: list[Compaction] = []
        self.decisions: list[int] = []
        self.fatal: list[Exception] = []
        self.snapshots: list[tuple[NodeId, Message]] = []
        self._commit: asyncio.TimerHandle | None = None
        self.window = LogWindow(
            hard_state=HardState(), conf_state=cluster.founding, durable=lambda: (self.durable_index, self.durable_conf)
        )
        self.book = PeerBook()
        config = Config(
            id=member_id,
            election_ticks=10,
            heartbeat_ticks=1,
            storage=self.window,
            random=random.Random(int(member_id)),
            log_sink=_SilentLog(),
            async_storage_writes=True,
            check_quorum=True,
            pre_vote=True,
            max_size_per_msg_bytes=1 << 20,
            max_inflight_msgs=256,
        )
        self.raw = RawNode(config)
        self.driver = Driver(
            raw=self.raw,
            window=self.window,
            peers=self.book,
            outbox=self,
            durability=self,
            limits=limits,
            tick_s=cluster.tick_s,
            hooks=DriverHooks(
                on_leader=lambda leader, previous, term: None,
                on_read_state=lambda context, index: None,
                on_snapshot_wanted=self._want_snapshot,
                on_new_term_applied=lambda term: None,
                on_compacted=self._note_compacted,
                on_invalid=lambda message, error: self.fatal.append(error),
                on_fatal=self.fatal.append,
            ),
        )
        self._count_decisions()
        self.apply_queue = ApplyQueue(
            store=self, apply_slice=self._apply, on_applied=self.driver.storage_responded, on_fatal=self.fatal.append
        )
        disk: Any = _Disk(self)
        self.driver.start(disk, self.apply_queue)

    def _count_decisions(self) -> None:
        """Note when the rule itself is asked (the keeper's cheap look beforehand doesn't count)."""
        keeper: Any = self.driver._keeper
        ask = keeper._situation

        def counted(*arguments: Any) -> Any:
            self.decisions.append(virtual_loop().turns)
            return ask(*arguments)

        keeper._situation = counted

    # --- the store -----------------------------------------------------------------------------------------------------------------------

    has_room = True

    async def wait_room(self) -> None:
        """There is at the next turn of the loop."""
        await asyncio.sleep(0)
        self.has_room = True

    def _apply(self, entry: Entry) -> bool:
        if entry.type is EntryType.NORMAL:
            self.applied.append(entry.data)
        else:
            self.conf_state = self.raw.apply_conf_change(decode_conf_change(entry.type, entry.data))
            for peer in self.cluster.members:
                if peer not in everyone(self.conf_state):
                    self.book.forget(peer)
        self.driver.note_applied(entry.index, entry.term)
        if self.commits_at_once:
            self.durable_index = entry.index
        elif self._commit is None and not self.holds_commits:
            self._commit = asyncio.get_running_loop().call_later(COMMIT_S, self.commit)
        return True

    def durable(self) -> tuple[Index, ConfState]:
        """What a snapshot taken now would cover."""
        return self.durable_index, self.durable_conf

    def commit(self) -> None:
        """The store commits what is applied, and says so."""
        self._commit = None
        if self.is_stopped:
            return
        self.durable_index, self.durable_conf = self.driver.applied_index, self.conf_state
        self.cluster.states[self.durable_index] = tuple(self.applied)
        self.driver.wake()

    # --- what the driver tells -----------------------------------------------------------------------------------------------------------

    def _note_compacted(self, decision: Decision, dropped: int, _: float) -> None:
        self.compactions.append(Compaction(virtual_loop().now_s, decision.reason.value, int(decision.index), dropped))

    def _want_snapshot(self, message: Message) -> bool:
        if any(to == message.to for to, _ in self.snapshots):
            return False
        self.snapshots.append((message.to, message))
        self.cluster.snapshots_wanted += 1
        return True

    def send(self, messages: Sequence[Message], floor: Index) -> None:
        """The transport: every message arrives `LINK_S` later, or never."""
        for message in messages:
            self.cluster.post(message, floor)

    # --- what scenarios do ---------------------------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Everything through here is dropped."""
        return int(self.window.first_index()) - 1

    def write(self, count: int, size_bytes: int = 10) -> None:
        """Propose `count` writes, all at once."""
        for number in range(count):
            self.driver.propose(Proposal(b"%d/" % number + b"v" * size_bytes))

    def deliver_snapshot(self) -> None:
        """The oldest snapshot under way arrives, and its sender hears of it."""
        to, message = self.snapshots.pop(0)
        self.cluster.members[to].driver.step(message, Index(self.floor))
        self.driver.report_snapshot(to, delivered=True)

    def stop(self) -> None:
        """End this member without a word."""
        self.is_stopped = True
        self.apply_queue.stop()
        self.driver.stop()


@dataclass
class Cluster:
    """Voters 1.., learners behind them; nobody leads until `lead`. Ids in `cut` neither send nor receive."""

    founding: ConfState
    limits: WindowLimits = field(default_factory=WindowLimits)
    members: dict[NodeId, Member] = field(default_factory=dict)
    cut: set[NodeId] = field(default_factory=set)
    states: dict[int, tuple[bytes, ...]] = field(default_factory=lambda: {0: ()})
    arrived: dict[tuple[NodeId, NodeId], float] = field(default_factory=dict)
    snapshots_wanted: int = 0
    tick_s: float = TICK_S

    async def __aenter__(self) -> Cluster:
        for number in everyone(self.founding):
            self.join(number)
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self.members.values():
            member.stop()

    def join(self, member_id: NodeId) -> Member:
        """A member with an empty disk."""
        self.members[member_id] = Member(self, member_id, self.limits)
        return self.members[member_id]

    def __getitem__(self, number: int) -> Member:
        return self.members[NodeId(number)]

    def post(self, message: Message, floor: Index) -> None:
        if message.from_ not in self.cut and message.to not in self.cut:
            asyncio.get_running_loop().call_later(LINK_S, self._arrive, message, floor)

    def _arrive(self, message: Message, floor: Index) -> None:
        member = self.members.get(message.to)
        if member is not None and not member.is_stopped and message.to not in self.cut:
            self.arrived[message.from_, message.to] = virtual_loop().now_s
            member.driver.step(message, floor)

    async def lead(self, number: int) -> Member:
        """Have a member elected."""
        member = self[number]
        member.driver.campaign()
        await self.settle()
        assert member.driver.is_leader
        return member

    async def wait_until(self, holds: Callable[[], bool], *, step_s: float = LINK_S / 4, timeout_s: float = 60.0) -> None:
        """Let time pass until `holds`, in steps shorter than a message takes."""
        loop = virtual_loop()
        until_s = loop.now_s + timeout_s
        while not holds():
            assert loop.now_s < until_s, "it never holds"
            await asyncio.sleep(step_s)

    async def settle(self, seconds: float = 1.0) -> None:
        """Let so many virtual seconds pass; nobody may have failed by then, or asked the rule twice in a turn."""
        await asyncio.sleep(seconds)
        for member in self.members.values():
            assert member.fatal == [], f"no failure: {member.id} has one"
            assert len(set(member.decisions)) == len(member.decisions), f"once per turn: {member.id} asked the rule twice"


def everyone(conf_state: ConfState) -> Iterable[NodeId]:
    """All ids of a configuration, in ascending order."""
    return sorted({*conf_state.voters, *conf_state.voters_outgoing, *conf_state.learners, *conf_state.learners_next})


def cluster_of(voters: int, *, learners: int = 0, limits: WindowLimits | None = None, tick_s: float = TICK_S) -> Cluster:
    """A cluster that is not running yet."""
    ids = [NodeId(number) for number in range(1, voters + learners + 1)]
    return Cluster(ConfState(voters=tuple(ids[:voters]), learners=tuple(ids[voters:])), limits or WindowLimits(), tick_s=tick_s)
