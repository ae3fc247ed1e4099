"""The core's values as text, in one stable form: for logs, debugging, and the data-driven tests.

    entry       term/index EntryNormal "data"
    message     1->2 MsgApp Term:1 Log:1/10 Commit:10 Entries:[1/11 EntryNormal ""]
    progress    StateReplicate match=11 next=12[ learner][ paused][ pendingSnap=n][ inactive][ inflight=n[full]]

Rules: ids are decimal here (the core's log lines show them hexadecimal); data is quoted as Go's %q does; a field at its zero is left out
except for term and position.

Source: the formats are those of etcd-io/raft's data files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from raft.confchange import AnyConfChange, ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType
from raft.confchange_codec import decode_conf_change
from raft.errors import CodecError
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType
from raft.quorum import INFINITE_INDEX, JointVoters
from raft.ready import Ready, SoftState
from raft.types import NO_NODE, ConfState, Entry, EntryType, HardState, Index, NodeId, Snapshot

EntryFormatter = Callable[[bytes], str]

_CHANGE_LETTERS: Final = {
    ConfChangeType.ADD_NODE: "v",
    ConfChangeType.ADD_LEARNER_NODE: "l",
    ConfChangeType.REMOVE_NODE: "r",
    ConfChangeType.UPDATE_NODE: "u",
}
_LETTER_CHANGES: Final = {letter: kind for kind, letter in _CHANGE_LETTERS.items()}
_ENTRY_TYPE_NAMES: Final = {
    EntryType.NORMAL: "EntryNormal",
    EntryType.CONF_CHANGE: "EntryConfChange",
    EntryType.CONF_CHANGE_V2: "EntryConfChangeV2",
}
_CHANGE_TYPE_NAMES: Final = {
    ConfChangeType.ADD_NODE: "ConfChangeAddNode",
    ConfChangeType.REMOVE_NODE: "ConfChangeRemoveNode",
    ConfChangeType.UPDATE_NODE: "ConfChangeUpdateNode",
    ConfChangeType.ADD_LEARNER_NODE: "ConfChangeAddLearnerNode",
}
_TRANSITION_NAMES: Final = {
    ConfChangeTransition.AUTO: "ConfChangeTransitionAuto",
    ConfChangeTransition.JOINT_IMPLICIT: "ConfChangeTransitionJointImplicit",
    ConfChangeTransition.JOINT_EXPLICIT: "ConfChangeTransitionJointExplicit",
}
_MESSAGE_TYPE_NAMES: Final = {kind: "Msg" + "".join(part.capitalize() for part in kind.name.split("_")) for kind in MessageType}
_ESCAPES: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def message_type_name(kind: MessageType) -> str:
    """`MsgAppResp` and the like."""
    return _MESSAGE_TYPE_NAMES[kind]


def quote(data: bytes) -> str:
    """`data` in double quotes: UTF-8 text as it is, everything else escaped."""
    parts = ['"']
    for character in data.decode("utf-8", errors="surrogateescape"):
        code = ord(character)
        if code in _ESCAPES:
            parts.append(_ESCAPES[code])
        elif 0xDC80 <= code <= 0xDCFF:
            parts.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            parts.append(character)
        elif code < 0x80:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}")
    parts.append('"')
    return "".join(parts)


def describe_changes(changes: Iterable[ConfChangeSingle]) -> str:
    """`v1 l2 r3 u4`: voter, learner, removal, update."""
    return " ".join(f"{_CHANGE_LETTERS[change.type]}{change.node_id}" for change in changes)


def parse_changes(text: str) -> tuple[ConfChangeSingle, ...]:
    """The inverse of `describe_changes`.

    Raises:
        ValueError: a word is not one of the letters v, l, r, u followed by a decimal id.
    """
    changes = []
    for word in text.split():
        kind = _LETTER_CHANGES.get(word[0])
        if kind is None or not word[1:].isdecimal():
            raise ValueError(f"unknown input: {word}")
        changes.append(ConfChangeSingle(type=kind, node_id=NodeId(int(word[1:]))))
    return tuple(changes)


def describe_conf_change(change: AnyConfChange) -> str:
    """A change field by field, as protobuf's text format shows it."""
    if isinstance(change, ConfChange):
        text = f"id:{change.id} type:{_CHANGE_TYPE_NAMES[change.type]} node_id:{change.node_id}"
    else:
        singles = [f"changes:{{type:{_CHANGE_TYPE_NAMES[each.type]} node_id:{each.node_id}}}" for each in change.changes]
        text = " ".join([f"transition:{_TRANSITION_NAMES[change.transition]}", *singles])
    return f"{text} context:{quote(change.context)}" if change.context else text


def describe_entry(entry: Entry, formatter: EntryFormatter = quote) -> str:
    """`term/index type data`; configuration changes as `describe_changes`."""
    if entry.type is EntryType.NORMAL:
        text = formatter(entry.data)
    else:
        try:
            text = describe_changes(decode_conf_change(entry.type, entry.data).as_v2().changes)
        except CodecError as error:
            text = str(error)
    name = _ENTRY_TYPE_NAMES[entry.type]
    return f"{entry.term}/{entry.index} {name} {text}" if text else f"{entry.term}/{entry.index} {name}"


def describe_entries(entries: Iterable[Entry], formatter: EntryFormatter = quote) -> str:
    """One line per entry."""
    return "".join(describe_entry(entry, formatter) + "\n" for entry in entries)


def describe_target(node: NodeId) -> str:
    """A member's id, or the name of a storage thread."""
    if node == LOCAL_APPEND_THREAD:
        return "AppendThread"
    if node == LOCAL_APPLY_THREAD:
        return "ApplyThread"
    return str(node) if node != NO_NODE else "None"


def describe_message(message: Message, formatter: EntryFormatter = quote, indent: str = "") -> str:
    """One message; several entries, a snapshot and responses stand on lines of their own."""
    text = (
        f"{indent}{describe_target(message.from_)}->{describe_target(message.to)} {message_type_name(message.type)} "
        f"Term:{message.term} Log:{message.log_term}/{message.index}"
    )
    if message.reject:
        text += f" Rejected (Hint: {message.reject_hint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    if message.vote:
        text += f" Vote:{message.vote}"
    entries = message.entries
    if len(entries) == 1:
        text += f" Entries:[{describe_entry(entries[0], formatter)}]"
    elif entries:
        lines = "".join(f"\n{indent}  {describe_entry(entry, formatter)}" for entry in entries)
        text += f" Entries:[{lines}\n{indent}]"
    if message.snapshot is not None and message.snapshot.metadata.index:
        text += f"\n{indent}  Snapshot: {describe_snapshot(message.snapshot)}"
    if message.responses:
        lines = "".join("\n" + describe_message(response, formatter, indent + "  ") for response in message.responses)
        text += f" Responses:[{lines}\n{indent}]"
    return text


def _describe_ids(ids: Sequence[NodeId]) -> str:
    return "[" + " ".join(map(str, ids)) + "]"


def describe_conf_state(conf_state: ConfState) -> str:
    """All five fields."""
    return (
        f"Voters:{_describe_ids(conf_state.voters)} VotersOutgoing:{_describe_ids(conf_state.voters_outgoing)} "
        f"Learners:{_describe_ids(conf_state.learners)} LearnersNext:{_describe_ids(conf_state.learners_next)} "
        f"AutoLeave:{'true' if conf_state.auto_leave else 'false'}"
    )


def describe_snapshot(snapshot: Snapshot) -> str:
    """Position and configuration; the data is not shown."""
    metadata = snapshot.metadata
    return f"Index:{metadata.index} Term:{metadata.term} ConfState:{describe_conf_state(metadata.conf_state)}"


def describe_hard_state(hard_state: HardState) -> str:
    """Term, vote if any, commit."""
    vote = f" Vote:{hard_state.vote}" if hard_state.vote else ""
    return f"Term:{hard_state.term}{vote} Commit:{hard_state.commit}"


def describe_soft_state(soft_state: SoftState) -> str:
    """Leader and role."""
    return f"Lead:{soft_state.lead} State:{soft_state.state.value}"


def describe_ready(ready: Ready, formatter: EntryFormatter = quote) -> str:
    """Everything in it, one section per field; `<empty Ready>` if there is nothing."""
    sections = []
    if ready.soft_state is not None:
        sections.append(describe_soft_state(ready.soft_state) + "\n")
    if ready.hard_state is not None:
        sections.append(f"HardState {describe_hard_state(ready.hard_state)}\n")
    if ready.read_states:
        states = " ".join(f"{{{state.index} {quote(state.context)}}}" for state in ready.read_states)
        sections.append(f"ReadStates [{states}]\n")
    if ready.entries:
        sections.append("Entries:\n" + describe_entries(ready.entries, formatter))
    if ready.snapshot is not None:
        sections.append(f"Snapshot {describe_snapshot(ready.snapshot)}\n")
    if ready.committed_entries:
        sections.append("CommittedEntries:\n" + describe_entries(ready.committed_entries, formatter))
    if ready.messages:
        sections.append("Messages:\n" + "".join(describe_message(message, formatter) + "\n" for message in ready.messages))
    if not sections:
        return "<empty Ready>"
    return f"Ready MustSync={'true' if ready.must_sync else 'false'}:\n" + "".join(sections)


def describe_index(index: Index) -> str:
    """A number, or ∞ for what an empty majority has committed."""
    return "∞" if index == INFINITE_INDEX else str(index)


def describe_commit_bars(voters: JointVoters, acked: dict[NodeId, Index]) -> str:
    """A table of what each voter acknowledged: the more `x`, the more voters are behind it; `?` marks a voter not heard from."""
    ids = sorted(voters.ids())
    if not ids:
        return "<empty majority quorum>"
    count = len(ids)
    ranked = sorted(ids, key=lambda node: (acked.get(node, 0), node))
    bars: dict[NodeId, int] = {}
    for rank, node in enumerate(ranked):
        previous = ranked[rank - 1] if rank else node
        bars[node] = rank if acked.get(previous, 0) < acked.get(node, 0) else bars.get(previous, 0)
    lines = [" " * (count + 4) + "idx"]
    for node in ids:
        bar = "x" * bars[node] + ">" + " " * (count - bars[node]) if node in acked else "?" + " " * count
        lines.append(f"{bar} {describe_index(acked.get(node, Index(0))):>5}    (id={node:x})")
    return "\n".join(lines) + "\n"
