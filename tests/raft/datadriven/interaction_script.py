"""The commands of interaction files, on a `Cluster`.

    add-nodes N [voters= learners= index= content= inflight= async-storage-writes= prevote= checkquorum= max-committed-size-per-ready=
                 disable-conf-change-validation= read-only=safe|lease-based step-down-on-removal=]
    campaign|status|raft-log|forget-leader|tick-election|tick-heartbeat ID      raft-state
    process-ready|process-append-thread|process-apply-thread ID...              stabilize [ID...] [log-level=L]
    deliver-msgs ID... [drop=(IDS)] [type=MsgApp]                               log-level L
    propose ID DATA                                                             compact ID INDEX
    propose-conf-change ID [v1=bool] [transition=auto|implicit|explicit]        transfer-leadership from= to=
    report-unreachable FROM TO                                                  send-snapshot FROM TO
    set-randomized-election-timeout ID timeout=TICKS

A command that prints nothing prints `ok`; at log level none, everything but an error does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raft import ConfChange, ConfChangeTransition, ConfChangeV2, MessageType, ReadOnlyOption, StateType
from raft.describe import describe_entries, describe_message, message_type_name, parse_changes
from raft.errors import RaftError
from raft.messages import Message
from raft.types import Index, NodeId, Snapshot
from tests.raft.datadriven.cluster import Cluster, NodeOptions
from tests.raft.datadriven.script import Argument, ScriptError, Stanza

_TRANSITIONS = {
    "auto": ConfChangeTransition.AUTO,
    "implicit": ConfChangeTransition.JOINT_IMPLICIT,
    "explicit": ConfChangeTransition.JOINT_EXPLICIT,
}
_MESSAGE_TYPES = {message_type_name(kind): kind for kind in MessageType}
_FLAGS = {
    "async-storage-writes": "async_storage_writes",
    "prevote": "pre_vote",
    "checkquorum": "check_quorum",
    "disable-conf-change-validation": "disable_conf_change_validation",
    "step-down-on-removal": "step_down_on_removal",
}
_NUMBERS = {"inflight": "max_inflight_msgs", "max-committed-size-per-ready": "max_committed_size_per_ready_bytes"}
_UNLIMITED = 2**64 - 1
_ELECTION_TICKS = 3
_HEARTBEAT_TICKS = 1


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _node_ids(stanza: Stanza) -> list[int]:
    return [int(argument.key) for argument in stanza.arguments if not argument.values]


class InteractionScript:
    """Executes the stanzas of one file on one cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self._output = self.cluster.output
        self._commands: dict[str, Callable[[Stanza], None]] = {
            "add-nodes": self._add_nodes,
            "campaign": self._campaign,
            "compact": self._compact,
            "deliver-msgs": self._deliver_msgs,
            "forget-leader": self._forget_leader,
            "log-level": self._log_level,
            "process-ready": lambda stanza: self._each(stanza, "handling Ready", self.cluster.process_ready),
            "process-append-thread": lambda stanza: self._each(stanza, "processing append thread", self.cluster.process_append_thread),
            "process-apply-thread": lambda stanza: self._each(stanza, "processing apply thread", self.cluster.process_apply_thread),
            "propose": self._propose,
            "propose-conf-change": self._propose_conf_change,
            "raft-log": self._raft_log,
            "raft-state": self._raft_state,
            "report-unreachable": self._report_unreachable,
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": self._set_randomized_election_timeout,
            "stabilize": self._stabilize,
            "status": self._status,
            "tick-election": lambda stanza: self._tick(stanza, _ELECTION_TICKS),
            "tick-heartbeat": lambda stanza: self._tick(stanza, _HEARTBEAT_TICKS),
            "transfer-leadership": self._transfer_leadership,
        }

    def execute(self, stanza: Stanza) -> str:
        """The output of one stanza."""
        command = self._commands.get(stanza.command)
        try:
            if command is None:
                raise ScriptError("unknown command")
            command(stanza)
        except (RaftError, ScriptError, ValueError) as error:
            if self._output.is_quiet:
                return str(error)
            self._output.write(str(error))
        return self._output.take() or "ok"

    # --- the cluster

    def _add_nodes(self, stanza: Stanza) -> None:
        options, snapshot = NodeOptions(), Snapshot()
        for argument in stanza.arguments[1:]:
            snapshot = _with_option(argument, options, snapshot)
        self.cluster.add_nodes(int(stanza.positional()), options, snapshot)

    def _log_level(self, stanza: Stanza) -> None:
        self._output.set_level(stanza.positional())

    def _each(self, stanza: Stanza, title: str, do: Callable[[int], None]) -> None:
        numbers = _node_ids(stanza)
        for number in numbers:
            if len(numbers) == 1:
                do(number)
                continue
            self._output.write(f"> {number} {title}\n")
            with self._output.indented():
                do(number)

    def _stabilize(self, stanza: Stanza) -> None:
        numbers = _node_ids(stanza) or list(range(1, len(self.cluster.nodes) + 1))
        outer = self._output.level
        level = stanza.value("log-level")
        try:
            if level is not None:
                self._output.set_level(level)
            self.cluster.stabilize(numbers)
        finally:
            self._output.level = outer

    def _deliver_msgs(self, stanza: Stanza) -> None:
        kind_name = stanza.value("type")
        if kind_name is not None and kind_name not in _MESSAGE_TYPES:
            raise ScriptError(f"unknown message type {kind_name}")
        kind = None if kind_name is None else _MESSAGE_TYPES[kind_name]
        recipients: list[tuple[int, bool]] = []
        for argument in stanza.arguments:
            if argument.key == "drop":
                recipients.extend((int(value), True) for value in argument.values)
            elif not argument.values:
                recipients.append((int(argument.key), False))
        delivered = {number for number, drop in recipients if not drop}
        for number, drop in recipients:
            if drop and number in delivered:
                raise ScriptError(f"can't both deliver and drop msgs to {number}")
        if not sum(len(self.cluster.pending(number, kind, drop=drop)) for number, drop in recipients):
            self._output.write("no messages\n")
        for number, drop in recipients:
            self.cluster.deliver(number, kind, drop=drop)

    # --- one node

    def _campaign(self, stanza: Stanza) -> None:
        self.cluster.node(int(stanza.positional())).raw.campaign()

    def _compact(self, stanza: Stanza) -> None:
        self.cluster.node(int(stanza.positional())).storage.compact(Index(int(stanza.positional(1))))
        self._raft_log(stanza)

    def _forget_leader(self, stanza: Stanza) -> None:
        self.cluster.node(int(stanza.positional())).raw.forget_leader()

    def _propose(self, stanza: Stanza) -> None:
        self.cluster.node(int(stanza.positional())).raw.propose(stanza.positional(1).encode())

    def _propose_conf_change(self, stanza: Stanza) -> None:
        is_v1, transition = False, ConfChangeTransition.AUTO
        for argument in stanza.arguments[1:]:
            value = argument.values[0] if argument.values else ""
            if argument.key == "v1":
                is_v1 = _parse_bool(value)
            elif argument.key == "transition" and value in _TRANSITIONS:
                transition = _TRANSITIONS[value]
            else:
                raise ScriptError(f"unknown {argument.key} {value}".rstrip())
        changes = parse_changes(stanza.input)
        raw = self.cluster.node(int(stanza.positional())).raw
        if not is_v1:
            raw.propose_conf_change(ConfChangeV2(transition=transition, changes=changes))
        elif len(changes) != 1 or transition is not ConfChangeTransition.AUTO:
            raise ScriptError("v1 conf change can only have one operation and no transition")
        else:
            raw.propose_conf_change(ConfChange(type=changes[0].type, node_id=changes[0].node_id))

    def _raft_log(self, stanza: Stanza) -> None:
        storage = self.cluster.node(int(stanza.positional())).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self._output.write(f"log is empty: first index={first}, last index={last}")
        else:
            self._output.write(describe_entries(storage.entries(first, Index(last + 1), _UNLIMITED)))

    def _raft_state(self, stanza: Stanza) -> None:
        for node in self.cluster.nodes:
            raw = node.raw
            role = "Voter" if raw.id in raw.tracker_config.voters else "Non-Voter"
            self._output.write(f"{raw.id}: {raw.state.value} ({role}) Term:{raw.term} Lead:{raw.leader_id}\n")

    def _report_unreachable(self, stanza: Stanza) -> None:
        self.cluster.node(int(stanza.positional())).raw.report_unreachable(NodeId(int(stanza.positional(1))))

    def _send_snapshot(self, stanza: Stanza) -> None:
        sender = self.cluster.node(int(stanza.positional()))
        message = Message(
            type=MessageType.SNAP,
            to=NodeId(int(stanza.positional(1))),
            from_=sender.raw.id,
            term=sender.raw.term,
            snapshot=sender.storage.snapshot(),
        )
        self.cluster.messages.append(message)
        self._output.write(describe_message(message))

    def _set_randomized_election_timeout(self, stanza: Stanza) -> None:
        ticks = stanza.value("timeout")
        if ticks is None:
            raise ScriptError("timeout is missing")
        self.cluster.node(int(stanza.positional())).raw.override_election_timeout(int(ticks))

    def _status(self, stanza: Stanza) -> None:
        raw = self.cluster.node(int(stanza.positional())).raw
        if raw.state is StateType.LEADER:
            self._output.write("".join(f"{node}: {progress}\n" for node, progress, _ in raw.progress()))

    def _tick(self, stanza: Stanza, ticks: int) -> None:
        raw = self.cluster.node(int(stanza.positional())).raw
        for _ in range(ticks):
            raw.tick()

    def _transfer_leadership(self, stanza: Stanza) -> None:
        from_, to = stanza.value("from"), stanza.value("to")
        if from_ is None or to is None:
            raise ScriptError("from and to are needed")
        self.cluster.node(int(from_)).raw.transfer_leader(NodeId(int(to)))


def _with_option(argument: Argument, options: NodeOptions, snapshot: Snapshot) -> Snapshot:
    """Take one option of add-nodes: into `options`, or into the snapshot that is returned."""
    key, values = argument.key, argument.values
    if not values:
        raise ScriptError(f"unknown argument {key}")
    metadata = snapshot.metadata
    if key in _FLAGS:
        setattr(options, _FLAGS[key], _parse_bool(values[0]))
    elif key in _NUMBERS:
        setattr(options, _NUMBERS[key], int(values[0]))
    elif key == "read-only":
        options.read_only = ReadOnlyOption(values[0])
    elif key == "voters":
        return replace(snapshot, metadata=replace(metadata, conf_state=replace(metadata.conf_state, voters=_ids(values))))
    elif key == "learners":
        return replace(snapshot, metadata=replace(metadata, conf_state=replace(metadata.conf_state, learners=_ids(values))))
    elif key == "index":
        return replace(snapshot, metadata=replace(metadata, index=Index(int(values[0]))))
    elif key == "content":
        return replace(snapshot, data=values[0].encode())
    else:
        raise ScriptError(f"unknown argument {key}")
    return snapshot


def _ids(values: tuple[str, ...]) -> tuple[NodeId, ...]:
    return tuple(NodeId(int(value)) for value in values)
