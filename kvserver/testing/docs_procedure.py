"""Running the procedures of docs/operations as they are written.

Purpose: a page that tells an operator what to type is tested by typing it. The commands come from the page's fenced blocks; a test only
says what the page's addresses and paths stand for here, and checks what came of each step.

    page = Procedure.read(OPERATIONS / "backup-and-restore.md", {"10.0.0.1:2379": node.endpoint, "/backup": str(tmp_path)}, tmp_path)
    page.run("save")                       # the block ```sh save
    flags = page.server_flags("start kv1") # the block ```sh start kv1, which is one `kvserver ...` command
    page.check_all_used()

Rules
- A block that is run is fenced as `sh` and has a name behind that: ```sh save. Names are unique within a page. A block of `sh` without a
  name is an error, so that no command of a page escapes its test; blocks of any other language (`console`, `text`, none) are for reading.
- Substitution is literal, longest text first, in one pass. What still looks like an address (`10.0.0.`) or a path of the pages
  (`/var/lib/kvserver`, `/backup`) afterwards is an error: nothing of a page ever runs against the real machine.
- A block runs under `bash -euo pipefail`, in `directory`, with `kvctl` and `kvserver` of this interpreter first in the PATH, and without
  variables of KVCTL_, ETCDCTL_ and KVSERVER_. A failing block raises, unless the test expects its exit code.
- Servers are not started through a shell: `server_flags` gives the command's arguments, for `NodeProcess` (with its log, and the end by
  process id).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations"
BLOCK_TIMEOUT_S: Final = 120.0

_FENCE: Final = re.compile(r"^```sh\b[ \t]*(?P<name>[^\n]*)\n(?P<body>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_UNREPLACED: Final = re.compile(r"\b10\.0\.0\.\d+|/var/lib/kvserver|/backup\b")
_MODULES: Final = {"kvctl": "kvserver.cli.main", "kvserver": "kvserver"}
_HIDDEN: Final = ("KVCTL_", "ETCDCTL_", "KVSERVER_", "ETCD_")


class ProcedureError(Exception):
    """The page isn't what the test takes it for, or a step of it failed; the text names the page and the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a block ended."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(slots=True, kw_only=True)
class Procedure:
    """The named blocks of one page, with what their names and addresses stand for in this test. Make one with `read`."""

    page: Path
    blocks: Mapping[str, str]
    substitutions: dict[str, str]
    directory: Path
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, page: Path, substitutions: Mapping[str, str], directory: Path) -> Procedure:
        """The page's blocks; `directory` is where they run and where the two commands are made. Raises ProcedureError."""
        procedure = cls(page=page, blocks=named_blocks(page), substitutions=dict(substitutions), directory=directory)
        procedure._make_commands()
        return procedure

    def text(self, name: str) -> str:
        """A block after substitution, which counts as used. Raises ProcedureError."""
        if name not in self.blocks:
            raise ProcedureError(f"{self.page.name} has no block ```sh {name}; it has {', '.join(self.blocks) or 'none'}")
        self.used.add(name)
        text = substitute(self.blocks[name], self.substitutions)
        left = _UNREPLACED.search(text)
        if left is not None and not any(left[0] in value for value in self.substitutions.values()):
            raise ProcedureError(f"{self.page.name}, block {name}: nothing stands for {left[0]} in this test")
        return text

    def run(self, name: str, *, exit_code: int = 0, timeout_s: float = BLOCK_TIMEOUT_S) -> Result:
        """Run a block to its end.

        Raises:
            ProcedureError: it ended with another exit code.
            subprocess.TimeoutExpired: it runs longer than `timeout_s`; it is killed.
        """
        text = self.text(name)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if ended.returncode != exit_code:
            raise ProcedureError(
                f"{self.page.name}, block {name}: exit code {ended.returncode}, not {exit_code}\n{text}\n{ended.stdout}{ended.stderr}"
            )
        return Result(exit_code=ended.returncode, stdout=ended.stdout, stderr=ended.stderr)

    def server_flags(self, name: str) -> list[str]:
        """The flags of a block that is one `kvserver` command (it may be continued over lines). Raises ProcedureError."""
        words = shlex.split(self.text(name).replace("\\\n", " "), comments=True)
        if words[:1] != ["kvserver"] or words.count("kvserver") > 1:
            raise ProcedureError(f"{self.page.name}, block {name}: not one kvserver command")
        return words[1:]

    def check_all_used(self) -> None:
        """Raise ProcedureError unless every block of the page was used."""
        left = sorted(set(self.blocks) - self.used)
        if left:
            raise ProcedureError(f"{self.page.name}: no step of the test uses {', '.join(left)}")

    def _make_commands(self) -> None:
        commands = self._commands
        commands.mkdir(parents=True, exist_ok=True)
        for command, module in _MODULES.items():
            script = commands / command
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
            script.chmod(0o755)

    @property
    def _commands(self) -> Path:
        return self.directory / "procedure-bin"

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN)}
        # The blocks run in a directory of the test's: this interpreter must still find the package that is being tested.
        root = str(Path(__file__).parents[2])
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH", ""))))
        return kept | {"PATH": f"{self._commands}{os.pathsep}{kept.get('PATH', os.defpath)}", "ETCDCTL_API": "3"}


def named_blocks(page: Path) -> dict[str, str]:
    """The page's ```sh blocks by name, in the order of the page. Raises ProcedureError for one without a name or with another's."""
    blocks: dict[str, str] = {}
    for found in _FENCE.finditer(page.read_text()):
        name = found["name"].strip()
        if not name:
            raise ProcedureError(f"{page.name}: a block of sh has no name, so no test can run it: {found['body'].strip()[:60]}")
        if name in blocks:
            raise ProcedureError(f"{page.name}: two blocks are named {name}")
        blocks[name] = found["body"]
    return blocks


def substitute(text: str, substitutions: Mapping[str, str]) -> str:
    """Replace each key by its value, longer keys first, never within a replacement."""
    if not substitutions:
        return text
    keys = sorted(substitutions, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, keys)), lambda found: substitutions[found[0]], text)
