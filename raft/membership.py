"""Configuration changes where they touch the core: installing one, and restoring one from a snapshot.

Rules: a change takes effect when it is applied, on every member by itself. A leader that is removed or demoted goes on leading, without
counting itself, until the change that replaces it can do its work elsewhere, unless `step_down_on_removal` is set.

Source: Ongaro's thesis, 4.2.2 (removing the leader), 4.3.
"""

from __future__ import annotations

from raft.confchange import ConfChangeV2, Next, apply_change, restore
from raft.ready import StateType
from raft.replication import serve_new_configuration
from raft.state import RaftState
from raft.tracker import Tracker
from raft.types import NO_NODE, ConfState, Index


def apply_conf_change(r: RaftState, change: ConfChangeV2) -> ConfState:
    """Install the configuration that `change` leads to, and return it.

    Raises:
        ConfChangeError: it can't be made from the configuration in force.
    """
    return switch_to(r, apply_change(r.tracker, r.log.last_index, change))


def restored_configuration(r: RaftState, conf_state: ConfState, last_index: Index) -> Next:
    """What `switch_to` needs to install `conf_state`, with fresh progress.

    Raises:
        ConfChangeError: it is not a configuration that changes can lead to.
    """
    scratch = Tracker(r.tracker.max_inflight_msgs, r.tracker.max_inflight_bytes)
    return restore(scratch, last_index, conf_state)


def switch_to(r: RaftState, configuration: Next) -> ConfState:
    """Install a configuration with its progress, and let a leader act on it."""
    r.tracker.install(*configuration)
    r.log_sink.info(f"{r.id:x} switched to configuration {r.tracker.config}")
    conf_state = r.tracker.config.conf_state()
    progress = r.tracker.progress.get(r.id)
    r.is_learner = progress is not None and progress.is_learner
    if r.state is not StateType.LEADER:
        return conf_state
    if progress is None or r.is_learner:
        if r.config.step_down_on_removal:
            r.become_follower(r.term, NO_NODE)
    elif conf_state.voters:
        serve_new_configuration(r)
    return conf_state
