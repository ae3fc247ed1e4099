"""Configuration changes: from one configuration to the next, safely.

Purpose: pure functions from a tracker's configuration and progress, and a list of single changes, to the next configuration and progress;
nothing is installed here. `restore` builds any stored configuration from nothing by the same steps.

Rules
- `simple` changes at most one voter, so that old and new majorities overlap (thesis 4.1); any number of learners.
- `enter_joint` keeps the old voters as the outgoing half and applies any changes to the incoming half; `leave_joint` drops the outgoing
  half and turns `learners_next` into learners.
- A voter of the outgoing half that becomes a learner waits in `learners_next`: a node is never voter and learner at once.
- Node id 0 marks a change that was refused earlier; it is skipped.

Source: Ongaro's thesis, chapter 4; etcd-io/raft's confchange package for the vocabulary of errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from raft.errors import ConfChangeError
from raft.inflights import Inflights
from raft.progress import Progress
from raft.quorum import JointVoters
from raft.tracker import Tracker, TrackerConfig
from raft.types import NO_NODE, ConfState, Index, NodeId


class ConfChangeType(IntEnum):
    """What one change does to a node; numbers are raftpb's."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER_NODE = 3


class ConfChangeTransition(IntEnum):
    """How a version 2 change passes through a joint configuration; numbers are raftpb's."""

    AUTO = 0
    """Simple if there is at most one change, else as JOINT_IMPLICIT."""
    JOINT_IMPLICIT = 1
    """Through a joint configuration that the leader leaves by itself."""
    JOINT_EXPLICIT = 2
    """Through a joint configuration that an empty change leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfChangeSingle:
    """One change of one node."""

    type: ConfChangeType
    node_id: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfChange:
    """Version 1: one change, applied at once. `id` and `context` belong to the proposer."""

    type: ConfChangeType
    node_id: NodeId
    context: bytes = b""
    id: int = 0

    def as_v2(self) -> ConfChangeV2:
        """The same change as version 2."""
        return ConfChangeV2(changes=(ConfChangeSingle(type=self.type, node_id=self.node_id),), context=self.context)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfChangeV2:
    """Version 2: any number of changes; none at all leaves a joint configuration. `context` belongs to the proposer."""

    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    changes: tuple[ConfChangeSingle, ...] = ()
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        """Itself."""
        return self

    @property
    def leaves_joint(self) -> bool:
        """The change only leaves a joint configuration."""
        return self.transition is ConfChangeTransition.AUTO and not self.changes

    def enters_joint(self) -> tuple[bool, bool]:
        """Whether a joint configuration is needed, and whether it is left automatically."""
        match self.transition:
            case ConfChangeTransition.AUTO:
                return len(self.changes) > 1, True
            case ConfChangeTransition.JOINT_IMPLICIT:
                return True, True
            case ConfChangeTransition.JOINT_EXPLICIT:
                return True, False
            case _:
                assert_never(self.transition)


AnyConfChange = ConfChange | ConfChangeV2
Next = tuple[TrackerConfig, dict[NodeId, Progress]]
"""What a change leads to; `Tracker.install` takes it."""


class _Draft:
    """A configuration while it is being changed. Progress objects are copied before they are changed."""

    def __init__(self, tracker: Tracker, last_index: Index) -> None:
        config = tracker.config
        self.incoming = set(config.voters.incoming)
        self.outgoing = set(config.voters.outgoing)
        self.learners = set(config.learners)
        self.learners_next = set(config.learners_next)
        self.auto_leave = config.auto_leave
        self.progress = dict(tracker.progress)
        self._inflight_limits = (tracker.max_inflight_msgs, tracker.max_inflight_bytes)
        self._last_index = last_index

    def apply(self, changes: Sequence[ConfChangeSingle]) -> None:
        for change in changes:
            if change.node_id == NO_NODE:
                continue
            match change.type:
                case ConfChangeType.ADD_NODE:
                    self._make_voter(change.node_id)
                case ConfChangeType.ADD_LEARNER_NODE:
                    self._make_learner(change.node_id)
                case ConfChangeType.REMOVE_NODE:
                    self._remove(change.node_id)
                case ConfChangeType.UPDATE_NODE:
                    pass
                case _:
                    assert_never(change.type)
        if not self.incoming:
            raise ConfChangeError("removed all voters")

    def _make_voter(self, node: NodeId) -> None:
        if node not in self.progress:
            self._add_progress(node, is_learner=False)
        self._set_learner(node, False)
        self.learners.discard(node)
        self.learners_next.discard(node)
        self.incoming.add(node)

    def _make_learner(self, node: NodeId) -> None:
        progress = self.progress.get(node)
        if progress is None:
            self._add_progress(node, is_learner=True)
            self.learners.add(node)
            return
        if progress.is_learner:
            return
        self._remove(node)
        self.progress[node] = progress
        if node in self.outgoing:
            self.learners_next.add(node)
        else:
            self._set_learner(node, True)
            self.learners.add(node)

    def _remove(self, node: NodeId) -> None:
        if node not in self.progress:
            return
        self.incoming.discard(node)
        self.learners.discard(node)
        self.learners_next.discard(node)
        if node not in self.outgoing:
            del self.progress[node]

    def _add_progress(self, node: NodeId, *, is_learner: bool) -> None:
        # Probed at the last index, which fails unless the node already has the log, and counted as active until the next CheckQuorum: it
        # can't have been heard from yet, and must not make the leader step down.
        self.progress[node] = Progress(
            next_index=Index(max(self._last_index, 1)),
            inflights=Inflights(*self._inflight_limits),
            is_learner=is_learner,
            is_recently_active=True,
        )

    def _set_learner(self, node: NodeId, is_learner: bool) -> None:
        progress = self.progress[node]
        if progress.is_learner != is_learner:
            self.progress[node] = progress = progress.copy()
            progress.is_learner = is_learner

    def leave(self) -> None:
        for node in self.learners_next:
            self.learners.add(node)
            self._set_learner(node, True)
        self.learners_next = set()
        for node in self.outgoing:
            if node not in self.incoming and node not in self.learners:
                del self.progress[node]
        self.outgoing = set()
        self.auto_leave = False

    def finish(self) -> Next:
        config = TrackerConfig(
            voters=JointVoters(frozenset(self.incoming), frozenset(self.outgoing)),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=self.auto_leave,
        )
        check_invariants(config, self.progress)
        return config, self.progress


def check_invariants(config: TrackerConfig, progress: Mapping[NodeId, Progress]) -> None:
    """Raise ConfChangeError unless configuration and progress fit together."""
    members = config.voters.ids() | config.learners | config.learners_next
    if members != progress.keys():
        raise ConfChangeError(f"progress of {sorted(progress)} does not fit configuration {config}")
    if not config.learners_next <= config.voters.outgoing:
        raise ConfChangeError(f"learners_next must be outgoing voters in {config}")
    if config.learners & config.voters.ids() or config.learners_next & config.voters.incoming:
        raise ConfChangeError(f"a node is voter and learner in {config}")
    if any(progress[node].is_learner is not (node in config.learners) for node in members):
        raise ConfChangeError(f"a progress has the wrong role in {config}")
    if not config.is_joint and (config.learners_next or config.auto_leave):
        raise ConfChangeError(f"learners_next and auto_leave belong to a joint configuration: {config}")


def simple(tracker: Tracker, last_index: Index, changes: Sequence[ConfChangeSingle]) -> Next:
    """Apply changes that touch at most one voter.

    Raises:
        ConfChangeError: joint, or more than one voter would change, or none would be left.
    """
    if tracker.config.is_joint:
        raise ConfChangeError("can't apply simple config change in joint config")
    draft = _Draft(tracker, last_index)
    draft.apply(changes)
    if len(tracker.config.voters.incoming ^ draft.incoming) > 1:
        raise ConfChangeError("more than one voter changed without entering joint config")
    return draft.finish()


def enter_joint(tracker: Tracker, last_index: Index, changes: Sequence[ConfChangeSingle], *, auto_leave: bool) -> Next:
    """Keep the voters as the outgoing half and apply changes to the incoming one.

    Raises:
        ConfChangeError: joint already, or there are no voters, or none would be left.
    """
    if tracker.config.is_joint:
        raise ConfChangeError("config is already joint")
    draft = _Draft(tracker, last_index)
    if not draft.incoming:
        raise ConfChangeError("can't make a zero-voter config joint")
    draft.outgoing = set(draft.incoming)
    draft.apply(changes)
    draft.auto_leave = auto_leave
    return draft.finish()


def leave_joint(tracker: Tracker, last_index: Index) -> Next:
    """Drop the outgoing half.

    Raises:
        ConfChangeError: not joint.
    """
    if not tracker.config.is_joint:
        raise ConfChangeError("can't leave a non-joint config")
    draft = _Draft(tracker, last_index)
    draft.leave()
    return draft.finish()


def apply_change(tracker: Tracker, last_index: Index, change: ConfChangeV2) -> Next:
    """Apply any change, in the way that it asks for.

    Raises:
        ConfChangeError: it can't be made from here.
    """
    if change.leaves_joint:
        return leave_joint(tracker, last_index)
    is_joint, auto_leave = change.enters_joint()
    if is_joint:
        return enter_joint(tracker, last_index, change.changes, auto_leave=auto_leave)
    return simple(tracker, last_index, change.changes)


def _single_changes(change_type: ConfChangeType, nodes: Sequence[NodeId]) -> list[ConfChangeSingle]:
    return [ConfChangeSingle(type=change_type, node_id=node) for node in nodes]


def restore(tracker: Tracker, last_index: Index, conf_state: ConfState) -> Next:
    """Build the configuration `conf_state` in an empty tracker, by the changes that could have led to it; the tracker is used as scratch.

    Raises:
        ConfChangeError: no sequence of changes leads there.
    """
    target = [
        *_single_changes(ConfChangeType.ADD_NODE, conf_state.voters),
        *_single_changes(ConfChangeType.ADD_LEARNER_NODE, conf_state.learners),
        *_single_changes(ConfChangeType.ADD_LEARNER_NODE, conf_state.learners_next),
    ]
    if not conf_state.voters_outgoing:
        for change in target:
            tracker.install(*simple(tracker, last_index, (change,)))
    else:
        for change in _single_changes(ConfChangeType.ADD_NODE, conf_state.voters_outgoing):
            tracker.install(*simple(tracker, last_index, (change,)))
        removed = _single_changes(ConfChangeType.REMOVE_NODE, conf_state.voters_outgoing)
        tracker.install(*enter_joint(tracker, last_index, [*removed, *target], auto_leave=conf_state.auto_leave))
    restored = tracker.config.conf_state()
    if restored != _normalized(conf_state):
        raise ConfChangeError(f"no changes lead to {conf_state}; got {restored}")
    return tracker.config, tracker.progress


def _normalized(conf_state: ConfState) -> ConfState:
    return ConfState(
        voters=tuple(sorted(conf_state.voters)),
        voters_outgoing=tuple(sorted(conf_state.voters_outgoing)),
        learners=tuple(sorted(conf_state.learners)),
        learners_next=tuple(sorted(conf_state.learners_next)),
        auto_leave=conf_state.auto_leave,
    )
