"""A cluster in one process for interaction files: cores with storages in memory, and a network that is a list of messages.

Rules
- Nothing happens by itself: messages lie in `messages` until delivered, storage work lies with its node until processed.
- The state machine appends the data of normal entries, and the context of configuration changes; its history holds a snapshot per applied
  entry, of which the newest is the one sent.
- All output goes through `Output`, which also is the cores' log sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random

from raft import (
    Config,
    MemoryStorage,
    Message,
    MessageType,
    RawNode,
    ReadOnlyOption,
    decode_conf_change,
)
from raft.describe import describe_message, describe_ready
from raft.errors import RaftError
from raft.messages import LOCAL_APPEND_THREAD, is_local_target
from raft.types import ConfState, Entry, EntryType, HardState, Index, NodeId, Snapshot, SnapshotMetadata, Term

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")
_UNLIMITED = 2**64 - 1


class Output:
    """What a stanza prints, and the log sink of every core. At level NONE it swallows everything."""

    def __init__(self) -> None:
        self.level = 0
        self._parts: list[str] = []

    @property
    def is_quiet(self) -> bool:
        """Everything is swallowed."""
        return self.level == LEVELS.index("NONE")

    def set_level(self, name: str) -> None:
        """Choose a level by its name.

        Raises:
            ValueError: there is no such level.
        """
        if name.upper() not in LEVELS:
            raise ValueError(f"log levels must be either of [{' '.join(LEVELS)}]")
        self.level = LEVELS.index(name.upper())

    def write(self, text: str) -> None:
        """Print `text` as it is."""
        if not self.is_quiet:
            self._parts.append(text)

    def take(self) -> str:
        """What was printed so far."""
        text, self._parts = "".join(self._parts), []
        return text

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Indent what is printed within by two spaces."""
        outer, self._parts = self._parts, []
        try:
            yield
        finally:
            inner, self._parts = "".join(self._parts), outer
            self._parts.extend(f"  {line}\n" for line in inner.splitlines())

    def _log(self, level: int, message: str) -> None:
        if level >= self.level:
            self.write(f"{LEVELS[level]} {message}\n")

    def debug(self, message: str) -> None:
        """See `raft.LogSink`."""
        self._log(0, message)

    def info(self, message: str) -> None:
        """See `raft.LogSink`."""
        self._log(1, message)

    def warning(self, message: str) -> None:
        """See `raft.LogSink`."""
        self._log(2, message)

    def error(self, message: str) -> None:
        """See `raft.LogSink`."""
        self._log(3, message)


class HistoryStorage(MemoryStorage):
    """A storage that sends the state machine's newest snapshot instead of the one it was restored from."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Snapshot] = []

    def snapshot(self) -> Snapshot:
        """The newest in the history."""
        return self.history[-1]


@dataclass(slots=True)
class Node:
    """A core, its storage, and the storage work it has asked for."""

    raw: RawNode
    storage: HistoryStorage
    is_async: bool
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class NodeOptions:
    """What `add-nodes` may say about the nodes it adds; the defaults of the suite."""

    async_storage_writes: bool = False
    pre_vote: bool = False
    check_quorum: bool = False
    max_inflight_msgs: int = 2**31 - 1
    max_committed_size_per_ready_bytes: int = 0
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False
    read_only: ReadOnlyOption = ReadOnlyOption.SAFE

    def config(self, node: NodeId, storage: HistoryStorage, applied: Index, output: Output) -> Config:
        """The configuration of one node."""
        return Config(
            id=node,
            election_ticks=3,
            heartbeat_ticks=1,
            storage=storage,
            random=Random(node),
            log_sink=output,
            routine_log=output.info,
            applied=applied,
            max_size_per_msg_bytes=_UNLIMITED,
            async_storage_writes=self.async_storage_writes,
            pre_vote=self.pre_vote,
            check_quorum=self.check_quorum,
            max_inflight_msgs=self.max_inflight_msgs,
            max_committed_size_per_ready_bytes=self.max_committed_size_per_ready_bytes,
            disable_conf_change_validation=self.disable_conf_change_validation,
            step_down_on_removal=self.step_down_on_removal,
            read_only=self.read_only,
        )


def is_local(message: Message) -> bool:
    """The message does not cross the network, and can't be lost."""
    return message.from_ == message.to or is_local_target(message.from_) or is_local_target(message.to)


class Cluster:
    """Nodes 1, 2, ... and the messages between them."""

    def __init__(self) -> None:
        self.output = Output()
        self.nodes: list[Node] = []
        self.messages: list[Message] = []

    def node(self, node: int) -> Node:
        """Node number `node`.

        Raises:
            ValueError: it was not added.
        """
        if not 1 <= node <= len(self.nodes):
            raise ValueError(f"node {node} does not exist")
        return self.nodes[node - 1]

    def add_nodes(self, count: int, options: NodeOptions, snapshot: Snapshot) -> None:
        """Add nodes that start from `snapshot` (the default one: from nothing).

        Raises:
            ValueError: the snapshot's index is too small.
        """
        if snapshot != Snapshot():
            if snapshot.metadata.index <= 1:
                raise ValueError("index must be specified as > 1 due to bootstrap")
            snapshot = replace(snapshot, metadata=replace(snapshot.metadata, term=Term(1)))
        for _ in range(count):
            storage = HistoryStorage()
            if snapshot != Snapshot():
                storage.apply_snapshot(snapshot)
            storage.history.append(snapshot)
            config = options.config(NodeId(len(self.nodes) + 1), storage, snapshot.metadata.index, self.output)
            self.nodes.append(Node(RawNode(config), storage, config.async_storage_writes))

    # --- readies and storage work

    def process_ready(self, number: int) -> None:
        """Print and carry out the next Ready of a node."""
        node = self.node(number)
        ready = node.raw.ready()
        self.output.write(describe_ready(ready))
        if not node.is_async:
            _append(node, ready.hard_state, ready.entries, ready.snapshot)
            _apply(node, ready.committed_entries)
        for message in ready.messages:
            if not is_local_target(message.to):
                self.messages.append(message)
            elif message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
            else:
                node.apply_work.append(message)
        if not node.is_async:
            node.raw.advance()

    def process_append_thread(self, number: int) -> None:
        """Do the oldest append of a node."""
        node = self.node(number)
        if not node.append_work:
            self.output.write("no append work to perform")
            return
        message = node.append_work.pop(0)
        stated = HardState(term=message.term, vote=message.vote, commit=message.commit)
        hard_state = stated if stated != HardState() else None
        self._process(message, lambda: _append(node, hard_state, list(message.entries), message.snapshot))

    def process_apply_thread(self, number: int) -> None:
        """Do the oldest application of a node."""
        node = self.node(number)
        if not node.apply_work:
            self.output.write("no apply work to perform")
            return
        message = node.apply_work.pop(0)
        self._process(message, lambda: _apply(node, list(message.entries)))

    def _process(self, message: Message, work: Callable[[], None]) -> None:
        self.output.write(f"Processing:\n{describe_message(replace(message, responses=[]))}\n")
        work()
        self.output.write("Responses:\n" + "".join(f"{describe_message(response)}\n" for response in message.responses))
        self.messages.extend(message.responses)

    # --- the network

    def deliver(self, to: int, kind: MessageType | None = None, *, drop: bool = False) -> None:
        """Deliver, or drop, everything (of one type) that is under way to a node."""
        selected = self.pending(to, kind, drop=drop)
        chosen = set(map(id, selected))
        self.messages = [message for message in self.messages if id(message) not in chosen]
        for message in selected:
            self.output.write(f"{'dropped: ' if drop else ''}{describe_message(message)}\n")
            if drop:
                continue
            try:
                self.node(to).raw.step(message)
            except RaftError as error:
                self.output.write(f"{error}\n")

    def pending(self, to: int, kind: MessageType | None = None, *, drop: bool = False) -> list[Message]:
        """What is under way to a node; local messages can't be dropped."""
        return [
            message
            for message in self.messages
            if message.to == to and not (drop and is_local(message)) and (kind is None or message.type is kind)
        ]

    def stabilize(self, numbers: list[int]) -> None:
        """Process and deliver, in rounds, until these nodes have nothing left to do."""
        while self._stabilize_round(numbers):
            pass

    def _stabilize_round(self, numbers: list[int]) -> bool:
        before = self._steps(numbers, lambda node, number: node.raw.has_ready(), "handling Ready", self.process_ready)
        before |= self._steps(numbers, lambda node, number: bool(self.pending(number)), "receiving messages", self.deliver)
        before |= self._steps(
            numbers, lambda node, number: bool(node.append_work), "processing append thread", self._drain(self.process_append_thread)
        )
        before |= self._steps(
            numbers, lambda node, number: bool(node.apply_work), "processing apply thread", self._drain(self.process_apply_thread)
        )
        return before

    def _drain(self, process: Callable[[int], None]) -> Callable[[int], None]:
        def drain(number: int) -> None:
            node = self.node(number)
            work = node.append_work if process == self.process_append_thread else node.apply_work
            while work:
                process(number)

        return drain

    def _steps(self, numbers: list[int], wants: Callable[[Node, int], bool], title: str, do: Callable[[int], None]) -> bool:
        has_done = False
        for number in numbers:
            if wants(self.node(number), number):
                self.output.write(f"> {number} {title}\n")
                with self.output.indented():
                    do(number)
                has_done = True
        return has_done


def _append(node: Node, hard_state: HardState | None, entries: list[Entry], snapshot: Snapshot | None) -> None:
    if hard_state is not None:
        node.storage.set_hard_state(hard_state)
    if snapshot is None:
        node.storage.append(entries)
    elif entries:
        raise ValueError("can't apply snapshot and entries at the same time")
    else:
        node.storage.apply_snapshot(snapshot)


def _apply(node: Node, entries: list[Entry]) -> None:
    for entry in entries:
        update, conf_state = entry.data, node.storage.history[-1].metadata.conf_state
        if entry.type is not EntryType.NORMAL:
            update, conf_state = _apply_conf_change(node, entry)
        metadata = SnapshotMetadata(index=entry.index, term=entry.term, conf_state=conf_state)
        node.storage.history.append(Snapshot(metadata=metadata, data=node.storage.history[-1].data + update))


def _apply_conf_change(node: Node, entry: Entry) -> tuple[bytes, ConfState]:
    change = decode_conf_change(entry.type, entry.data)
    return change.context, node.raw.apply_conf_change(change)
