"""The commands of confchange files: `simple`, `enter-joint [autoleave=bool]`, `leave-joint`, with changes like `v1 l2 r3 u4` as input.

The last index grows by one with every command, as if each were an entry: new progress shows it as `next`.
"""

from __future__ import annotations

from raft.confchange import Next, enter_joint, leave_joint, simple
from raft.describe import parse_changes
from raft.errors import ConfChangeError
from raft.tracker import Tracker
from raft.types import Index
from tests.raft.datadriven.script import Stanza


class ConfChangeScript:
    """Executes the stanzas of one file on one configuration."""

    COMMANDS = frozenset({"simple", "enter-joint", "leave-joint"})

    def __init__(self) -> None:
        self._tracker = Tracker(10, 1 << 64)
        self._last_index = Index(0)

    def execute(self, stanza: Stanza) -> str:
        """The output of one stanza."""
        last_index, self._last_index = self._last_index, Index(self._last_index + 1)
        try:
            self._tracker.install(*self._change(stanza, last_index))
        except (ConfChangeError, ValueError) as error:
            return f"{error}\n"
        progress = "".join(f"{node}: {each}\n" for node, each in self._tracker.progress.items())
        return f"{self._tracker.config}\n{progress}"

    def _change(self, stanza: Stanza, last_index: Index) -> Next:
        changes = parse_changes(stanza.input)
        if stanza.command == "simple":
            return simple(self._tracker, last_index, changes)
        if stanza.command == "enter-joint":
            return enter_joint(self._tracker, last_index, changes, auto_leave=stanza.value("autoleave") == "true")
        if changes:
            raise ValueError("this command takes no input")
        return leave_joint(self._tracker, last_index)
