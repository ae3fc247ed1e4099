"""All planted mistakes, in the order of the report."""

from __future__ import annotations

from typing import Final

from tests.raft.mutants.configuration_mistakes import CONFIGURATION_MISTAKES
from tests.raft.mutants.election_mistakes import ELECTION_MISTAKES
from tests.raft.mutants.mutant import Mutant
from tests.raft.mutants.replication_mistakes import REPLICATION_MISTAKES

MUTANTS: Final[tuple[Mutant, ...]] = (*ELECTION_MISTAKES, *REPLICATION_MISTAKES, *CONFIGURATION_MISTAKES)
