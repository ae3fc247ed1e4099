"""Mistakes in terms, votes, PreVote, CheckQuorum, quorum arithmetic and transfer of leadership."""

from __future__ import annotations

from typing import Final

from tests.raft.mutants.mutant import Mutant

ELECTION_MISTAKES: Final = (
    # --- votes ------------------------------------------------------------------------------------
    Mutant(
        name="vote_without_log_check",
        module="election",
        mistake="votes for a candidate whose log lacks committed entries",
        before="if may_vote and r.log.is_up_to_date(message.index, message.log_term):",
        after="if may_vote:",
    ),
    Mutant(
        name="log_check_by_length",
        module="log",
        mistake="calls the longer log the better one, whatever its last term",
        before="return term > last_term or (term == last_term and index >= self.last_index)",
        after="return index >= self.last_index",
    ),
    Mutant(
        name="log_check_by_term",
        module="log",
        mistake="calls a shorter log of the same last term as good",
        before="return term > last_term or (term == last_term and index >= self.last_index)",
        after="return term >= last_term",
    ),
    Mutant(
        name="vote_not_remembered",
        module="election",
        mistake="grants a vote without noting it, and so a second one in the same term",
        before="            r.vote = message.from_\n",
        after="",
    ),
    Mutant(
        name="vote_not_persisted",
        module="raw_node",
        mistake="leaves the vote out of the hard state: forgotten by a restart",
        before="            ready.hard_state = self._last_hard_state = r.hard_state()\n",
        after="            self._last_hard_state = r.hard_state()\n"
        "            ready.hard_state = HardState(term=r.term, commit=r.log.commit_index)\n",
    ),
    Mutant(
        name="vote_not_synced",
        module="raw_node",
        mistake="does not ask for a sync when only the vote changed",
        before=" or r.vote != self._last_hard_state.vote,",
        after=",",
    ),
    Mutant(
        name="vote_kept_across_terms",
        module="state",
        mistake="keeps the vote of an earlier term, and refuses its vote in later ones",
        before="            self.term = term\n            self.vote = NO_NODE\n",
        after="            self.term = term\n",
    ),
    Mutant(
        name="answers_before_disk",
        module="state",
        mistake="sends votes and acknowledgements before what they vouch for is durable",
        before="if must_be_durable_first(kind):",
        after="if must_be_durable_first(kind) and message.to == self.id:",
    ),
    Mutant(
        name="votes_kept_between_elections",
        module="tracker",
        mistake="counts the votes of an earlier term",
        before="        self.votes = {}\n\n    def record_vote",
        after="        pass\n\n    def record_vote",
    ),
    Mutant(
        name="half_of_an_even_cluster_elects",
        module="quorum",
        mistake="takes two votes of four for a majority",
        before="needed = len(voters) // 2 + 1",
        after="needed = (len(voters) + 1) // 2",
    ),
    Mutant(
        name="joint_election_by_one_half",
        module="quorum",
        mistake="wins an election in a joint configuration with the votes of the incoming half",
        before="        if not self.outgoing:\n            return first\n",
        after="        return first\n",
    ),
    # --- terms ------------------------------------------------------------------------------------
    Mutant(
        name="stale_terms_accepted",
        module="core",
        mistake="handles messages of earlier terms as if they were current",
        before="    elif term and term < r.term:\n",
        after="    elif term < 0:\n",
    ),
    Mutant(
        name="candidate_ignores_elected_leader",
        module="candidate",
        mistake="does not step back when another won the term",
        before="    if kind in FROM_LEADER:\n",
        after="    if False:\n",
    ),
    Mutant(
        name="timeout_not_randomized",
        module="state",
        mistake="waits the same time as everybody else, so that votes split again and again",
        before="election_ticks + self.config.random.randrange(election_ticks)",
        after="election_ticks",
    ),
    # --- PreVote ----------------------------------------------------------------------------------
    Mutant(
        name="prevote_raises_term",
        module="core",
        mistake="adopts the term of a pre-vote request",
        before="if kind is MessageType.PRE_VOTE or (kind is MessageType.PRE_VOTE_RESP and not message.reject):",
        after="if kind is MessageType.PRE_VOTE_RESP and not message.reject:",
    ),
    Mutant(
        name="granted_prevote_raises_term",
        module="core",
        mistake="adopts the term of a granted pre-vote, and so never campaigns",
        before="if kind is MessageType.PRE_VOTE or (kind is MessageType.PRE_VOTE_RESP and not message.reject):",
        after="if kind is MessageType.PRE_VOTE:",
    ),
    Mutant(
        name="prevote_binds_the_vote",
        module="election",
        mistake="records a pre-vote as its vote and restarts its timer",
        before="        if is_real:\n",
        after="        if True:\n",
    ),
    Mutant(
        name="prevote_granted_with_own_term",
        module="election",
        mistake="grants a pre-vote with its own term, which the candidate takes for an old message",
        before="r.send(Message(type=response, to=message.from_, term=message.term))",
        after="r.send(Message(type=response, to=message.from_, term=r.term))",
    ),
    Mutant(
        name="stale_leader_not_told",
        module="core",
        mistake="does not answer a leader of an earlier term, which can't bring a returned member back then",
        before="if (r.config.check_quorum or r.config.pre_vote) and kind in (MessageType.HEARTBEAT, MessageType.APP):",
        after="if False:",
    ),
    # --- CheckQuorum and the lease ----------------------------------------------------------------
    Mutant(
        name="lease_ignored",
        module="election",
        mistake="lets a member that comes back disturb a leader with a quorum",
        before="return r.config.check_quorum and r.lead != NO_NODE and r.election_elapsed_ticks < r.config.election_ticks",
        after="return False",
    ),
    Mutant(
        name="lease_outlives_the_timeout",
        module="election",
        mistake="keeps the lease of a leader that it has not heard from for an election timeout",
        before="r.election_elapsed_ticks < r.config.election_ticks",
        after="r.election_elapsed_ticks < 1_000_000",
    ),
    Mutant(
        name="lease_stops_a_transfer",
        module="core",
        mistake="ignores the vote request that the leader itself asked for",
        before="if kind in _VOTE_REQUESTS and message.context != TRANSFER_CONTEXT and is_in_lease(r):",
        after="if kind in _VOTE_REQUESTS and is_in_lease(r):",
    ),
    Mutant(
        name="leader_without_quorum_stays",
        module="leader",
        mistake="goes on leading without having heard from a quorum",
        before="if not r.tracker.is_quorum_active():",
        after="if False:",
    ),
    Mutant(
        name="activity_never_cleared",
        module="leader",
        mistake="counts a member as heard from for ever after its first word",
        before="            progress.is_recently_active = False\n",
        after="            pass\n",
    ),
    # --- who may campaign -------------------------------------------------------------------------
    Mutant(
        name="learner_campaigns",
        module="state",
        mistake="lets a learner stand for election",
        before="return progress is not None and not progress.is_learner and self.log.unstable.snapshot is None",
        after="return progress is not None and self.log.unstable.snapshot is None",
    ),
    Mutant(
        name="campaigns_while_restoring",
        module="state",
        mistake="stands for election while a snapshot is being installed",
        before="return progress is not None and not progress.is_learner and self.log.unstable.snapshot is None",
        after="return progress is not None and not progress.is_learner",
    ),
    Mutant(
        name="campaigns_with_unapplied_change",
        module="election",
        mistake="counts votes by a configuration that the cluster has left",
        before="    elif _has_unapplied_conf_change(r):\n",
        after="    elif False:\n",
    ),
    # --- transfer of leadership -------------------------------------------------------------------
    Mutant(
        name="transfer_without_deadline",
        module="core",
        mistake="refuses proposals for ever when the target of a transfer does not answer",
        before="        r.lead_transferee = NO_NODE  # a transfer that took this long has failed\n",
        after="",
    ),
    Mutant(
        name="proposals_during_transfer",
        module="leader",
        mistake="takes proposals during a transfer, so that the target never catches up",
        before="if r.lead_transferee != NO_NODE:",
        after="if False:",
    ),
    Mutant(
        name="transfer_before_caught_up",
        module="leader",
        mistake="tells the target to campaign although its log is behind",
        before="    if progress.match_index == r.log.last_index:\n        send_timeout_now(r, target)\n",
        after="    if True:\n        send_timeout_now(r, target)\n",
    ),
    Mutant(
        name="transfer_to_a_learner",
        module="leader",
        mistake="hands leadership to a learner",
        before="    if progress.is_learner:\n        r.log_sink.debug",
        after="    if False:\n        r.log_sink.debug",
    ),
    Mutant(
        name="transfer_asks_for_prevotes",
        module="follower",
        mistake="asks for pre-votes after MsgTimeoutNow, which the lease refuses",
        before="hup(r, Campaign.TRANSFER)",
        after="hup(r, Campaign.PRE_ELECTION)",
    ),
)
