"""Runs a data file with the commands that it uses, and shows what differs."""

from __future__ import annotations

import difflib
from pathlib import Path

from tests.raft.datadriven.confchange_script import ConfChangeScript
from tests.raft.datadriven.interaction_script import InteractionScript
from tests.raft.datadriven.quorum_script import QuorumScript
from tests.raft.datadriven.script import Outcome, parse, run


def run_file(path: Path) -> list[Outcome]:
    """Execute all stanzas of a file. Its first command tells the kind of file.

    Raises:
        ScriptError: it is not in the format.
    """
    text = path.read_text(encoding="utf-8")
    stanzas = parse(text)
    first = stanzas[0].command if stanzas else ""
    if first in ConfChangeScript.COMMANDS:
        return run(text, ConfChangeScript().execute)
    if first in QuorumScript.COMMANDS:
        return run(text, QuorumScript().execute)
    return run(text, InteractionScript().execute)


def difference(path: Path, outcome: Outcome) -> str:
    """A failing stanza as a diff, empty for one that passed."""
    if outcome.passed:
        return ""
    stanza = outcome.stanza
    command = " ".join([stanza.command, *(argument.key for argument in stanza.arguments if not argument.values)])
    lines = difflib.unified_diff(
        stanza.expected.splitlines(), outcome.actual.splitlines(), f"{path}:{stanza.line} {command}: expected", "actual", lineterm=""
    )
    return "\n".join(lines) + "\n"
