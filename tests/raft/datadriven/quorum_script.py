"""The commands of quorum files: `committed` and `vote`, over one majority or a joint pair.

`cfg=(ids)` and `cfgj=(ids)` (or `cfgj=zero`) name the voters; `idx=(...)` and `votes=(...)` give, in the order of the voters' first
appearance, what each acknowledged or voted; `_` is unknown. Every result is computed in all the ways that must agree; a deviation is
printed.
"""

from __future__ import annotations

from collections.abc import Iterator

from raft.describe import describe_commit_bars, describe_index
from raft.quorum import JointVoters
from raft.types import Index, NodeId
from tests.raft.datadriven.script import Stanza


class _Case:
    def __init__(self, stanza: Stanza) -> None:
        self.ids: list[int] = []
        self.ids_outgoing: list[int] = []
        self.is_joint = False
        self.given: list[str] = []
        for argument in stanza.arguments:
            if argument.key == "cfg":
                self.ids = [int(value) for value in argument.values]
            elif argument.key == "cfgj":
                self.is_joint = True
                self.ids_outgoing = [] if argument.values == ("zero",) else [int(value) for value in argument.values]
            else:
                self.given.extend(argument.values)
        self.voters = JointVoters(frozenset(map(NodeId, self.ids)), frozenset(map(NodeId, self.ids_outgoing)))
        self.mirrored = JointVoters(self.voters.outgoing, self.voters.incoming)

    def known(self) -> dict[NodeId, str]:
        """What each voter said, without the unknown ones."""
        order = list(dict.fromkeys(self.ids + self.ids_outgoing))
        return {NodeId(node): value for node, value in zip(order, self.given, strict=False) if value != "_"}

    def equivalents(self) -> Iterator[tuple[JointVoters, str]]:
        """Configurations that must give the same result."""
        if self.is_joint:
            yield self.mirrored, "symmetry"
        else:
            yield JointVoters(self.voters.incoming, self.voters.incoming), "self-joint quorum"
            yield self.mirrored, "zero-joint quorum"


def _committed_by_counting(voters: frozenset[NodeId], acked: dict[NodeId, Index]) -> Index:
    """The largest acknowledged index that enough voters reach."""
    needed = len(voters) // 2 + 1
    reached = [index for index in acked.values() if sum(acked.get(node, 0) >= index for node in voters) >= needed]
    return max(reached, default=Index(0))


def _committed(case: _Case) -> str:
    acked = {node: Index(int(value)) for node, value in case.known().items()}
    index = case.voters.committed_index(acked)
    text = describe_commit_bars(case.voters, acked)
    if not case.is_joint and case.voters.incoming:
        other = _committed_by_counting(case.voters.incoming, acked)
        if other != index:
            text += f"{describe_index(other)} <-- via alternative computation\n"
    for voters, name in case.equivalents():
        other = voters.committed_index(acked)
        if other != index:
            text += f"{describe_index(other)} <-- via {name}\n"
    return f"{text}{describe_index(index)}\n"


def _vote(case: _Case) -> str:
    votes = {node: value == "y" for node, value in case.known().items()}
    result = case.voters.vote_result(votes)
    text = ""
    for voters, name in case.equivalents():
        other = voters.vote_result(votes)
        if other is not result:
            text += f"{other.value} <-- via {name}\n"
    return f"{text}{result.value}\n"


class QuorumScript:
    """Executes the stanzas of one file; there is no state between them."""

    COMMANDS = frozenset({"committed", "vote"})

    def execute(self, stanza: Stanza) -> str:
        """The output of one stanza."""
        case = _Case(stanza)
        count = len(case.voters.ids())
        if count != len(case.given):
            voters = " ".join(map(str, sorted(case.voters.ids())))
            return f"error: mismatched input (explicit or _) for voters [{voters}]: [{' '.join(case.given)}]"
        return _committed(case) if stanza.command == "committed" else _vote(case)
