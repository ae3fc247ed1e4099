"""A known mistake, and planting it into a copy of the core.

Rules: a mistake is a piece of text that must occur exactly once in its module, and what stands there instead. When the core is rewritten
and the text is gone (or there twice), planting fails with `PlantError`: a mistake that was never planted would look caught, or survive for
the wrong reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class PlantError(Exception):
    """A mistake does not fit the source as it is now; `tests/raft/mutants` has to follow the core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mistake: in `raft/<module>.py`, `before` is replaced by `after`; `mistake` says in a sentence what the member then does."""

    name: str
    module: str
    mistake: str
    before: str
    after: str

    def changed(self, source: str) -> str:
        """`source` with the mistake in it.

        Raises:
            PlantError: `before` does not occur exactly once, nothing would change, or the result is not Python.
        """
        found = source.count(self.before)
        if found != 1:
            raise PlantError(f"{self.name}: its text occurs {found} times in raft/{self.module}.py, not once")
        if self.before == self.after:
            raise PlantError(f"{self.name}: it changes nothing")
        changed = source.replace(self.before, self.after)
        try:
            compile(changed, f"raft/{self.module}.py", "exec", dont_inherit=True)
        except SyntaxError as error:
            raise PlantError(f"{self.name}: the result is not Python: {error}") from error
        return changed

    def plant(self, package: Path) -> None:
        """Put the mistake into the copy of the core at `package`.

        Raises:
            PlantError: as `changed`.
            OSError: the module can't be read or written.
        """
        path = package / f"{self.module}.py"
        path.write_text(self.changed(path.read_text(encoding="utf-8")), encoding="utf-8")
