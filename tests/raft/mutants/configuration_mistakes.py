"""Mistakes in snapshots, linearizable reads and configuration changes."""

from __future__ import annotations

from typing import Final

from tests.raft.mutants.mutant import Mutant

CONFIGURATION_MISTAKES: Final = (
    # --- snapshots --------------------------------------------------------------------------------
    Mutant(
        name="snapshot_below_commit_accepted",
        module="follower",
        mistake="begins anew from a snapshot older than what it has committed",
        before="    if metadata.index <= log.commit_index:\n",
        after="    if metadata.index < 0:\n",
    ),
    Mutant(
        name="snapshot_drops_matching_log",
        module="follower",
        mistake="throws away acknowledged entries behind a snapshot that its log already contains",
        before="    if log.match_term(metadata.index, metadata.term):\n",
        after="    if False:\n",
    ),
    Mutant(
        name="snapshot_of_strangers_accepted",
        module="follower",
        mistake="installs a snapshot in whose configuration it does not occur",
        before="    if not any(r.id in group for group in (conf_state.voters, conf_state.learners, conf_state.voters_outgoing)):\n",
        after="    if False:\n",
    ),
    Mutant(
        name="snapshot_without_configuration",
        module="follower",
        mistake="keeps its old configuration after a snapshot",
        before="    switch_to(r, configuration)\n",
        after="",
    ),
    Mutant(
        name="snapshot_to_the_silent",
        module="replication",
        mistake="sends snapshots to members that it does not hear from",
        before="    if not progress.is_recently_active:\n",
        after="    if False:\n",
    ),
    Mutant(
        name="failed_snapshot_counted",
        module="leader",
        mistake="probes behind a snapshot that never arrived",
        before="        progress.pending_snapshot = Index(0)  # before",
        after="        pass  # before",
    ),
    Mutant(
        name="snapshot_state_left_late",
        module="leader",
        mistake="resumes only at the snapshot that it sent, although a smaller one was enough",
        before="    elif progress.match_index + 1 >= r.log.first_index:\n",
        after="    elif progress.match_index >= progress.pending_snapshot:\n",
    ),
    Mutant(
        name="snapshot_state_left_early",
        module="leader",
        mistake="resumes at any acknowledgement, although the log does not reach back to it",
        before="    elif progress.match_index + 1 >= r.log.first_index:\n",
        after="    else:\n",
    ),
    Mutant(
        name="snapshot_never_durable",
        module="core",
        mistake="forgets the acknowledgement of a snapshot when the term changed meanwhile",
        before="        if message.snapshot is not None:\n            _snapshot_applied(r, message.snapshot)\n    else:\n",
        after="    else:\n",
    ),
    # --- reads ------------------------------------------------------------------------------------
    Mutant(
        name="read_before_first_commit",
        module="leader",
        mistake="serves reads before the first commit of its term",
        before="    if r.log.has_current_term_commit(r.term):\n        _start_read(r, message)\n",
        after="    if True:\n        _start_read(r, message)\n",
    ),
    Mutant(
        name="read_without_quorum",
        module="leader",
        mistake="serves reads without asking anybody whether it still leads",
        before="if is_alone or r.config.read_only is ReadOnlyOption.LEASE_BASED:",
        after="if True:",
    ),
    Mutant(
        name="old_heartbeat_confirms_read",
        module="read_only",
        mistake="takes the answer to an earlier heartbeat for the confirmation of a later read",
        before="                self._acked[node] = position\n",
        after="                self._acked[node] = Index(self._last_position)\n",
    ),
    Mutant(
        name="joint_read_by_one_half",
        module="read_only",
        mistake="confirms reads in a joint configuration with the incoming half",
        before="confirmed = voters.committed_index(self._acked)",
        after="confirmed = JointVoters(voters.incoming).committed_index(self._acked)",
    ),
    Mutant(
        name="reads_survive_leadership",
        module="state",
        mistake="answers the reads of an earlier leadership with its indexes",
        before="        self.read_only = ReadOnly()\n        self.pending_read_requests = []\n",
        after="",
    ),
    Mutant(
        name="waiting_reads_forgotten",
        module="leader",
        mistake="never answers the reads that waited for the first commit of the term",
        before="            _start_read(r, request)\n",
        after="            pass\n",
    ),
    # --- configuration changes --------------------------------------------------------------------
    Mutant(
        name="two_changes_at_once",
        module="leader",
        mistake="lets a second configuration change into the log while one is not applied",
        before="    if r.pending_conf_index > r.log.applied_index:\n",
        after="    if False:\n",
    ),
    Mutant(
        name="new_leader_forgets_pending_change",
        module="state",
        mistake="takes a configuration change although the tail it inherited may hold one",
        before="self.pending_conf_index = self.log.last_index",
        after="self.pending_conf_index = Index(0)",
    ),
    Mutant(
        name="two_voters_in_one_step",
        module="confchange",
        mistake="changes two voters at once without a joint configuration",
        before="if len(tracker.config.voters.incoming ^ draft.incoming) > 1:",
        after="if len(tracker.config.voters.incoming ^ draft.incoming) > 2:",
    ),
    Mutant(
        name="joint_change_into_joint",
        module="leader",
        mistake="proposes a change in the middle of a joint configuration",
        before="    if is_joint and not wants_leave:\n",
        after="    if False:\n",
    ),
    Mutant(
        name="outgoing_voter_learns_at_once",
        module="confchange",
        mistake="makes a voter of the outgoing half a learner before the joint configuration is left",
        before="        if node in self.outgoing:\n            self.learners_next.add(node)\n",
        after="        if node in self.learners_next:\n            self.learners_next.add(node)\n",
    ),
    Mutant(
        name="joint_never_left",
        module="core",
        mistake="does not leave a joint configuration that asks for it",
        before="if config.auto_leave and applied",
        after="if False and applied",
    ),
    Mutant(
        name="joint_left_before_applied",
        module="core",
        mistake="proposes to leave a joint configuration again and again",
        before="if config.auto_leave and applied >= r.pending_conf_index and",
        after="if config.auto_leave and",
    ),
    Mutant(
        name="new_member_counted_silent",
        module="confchange",
        mistake="holds a member that was just added for silent, and steps down",
        before="            is_recently_active=True,\n",
        after="            is_recently_active=False,\n",
    ),
    Mutant(
        name="shrunk_quorum_not_noticed",
        module="replication",
        mistake="does not commit what the new configuration already holds",
        before="    if maybe_commit(r):\n        broadcast_append(r)\n    else:\n",
        after="    if True:\n",
    ),
    Mutant(
        name="removed_leader_stays",
        module="membership",
        mistake="leads on after its removal although it was told to step down",
        before="if r.config.step_down_on_removal:",
        after="if False:",
    ),
    Mutant(
        name="removed_leader_proposes",
        module="leader",
        mistake="takes proposals after its removal",
        before="    if r.id not in r.tracker.progress:\n        raise ProposalDroppedError",
        after="    if False:\n        raise ProposalDroppedError",
    ),
)
