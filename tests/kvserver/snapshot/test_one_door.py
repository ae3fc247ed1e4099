"""Every file access of the log and of the snapshots goes through `wal.Files`: nothing else in these rooms touches the system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvserver.snapshot
import wal

DOOR = ("files.py", "reserve.py")  # the second holds descriptors of /dev/null for the first, and touches no file
ROOMS = [Path(wal.__file__).parent, Path(kvserver.snapshot.__file__).parent]
SYSTEM_MODULES = {"os", "io", "shutil", "tempfile", "fcntl", "mmap"}
PATH_METHODS = {
    "unlink",
    "exists",
    "is_file",
    "is_dir",
    "stat",
    "mkdir",
    "rmdir",
    "touch",
    "glob",
    "rglob",
    "iterdir",
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
    "symlink_to",
    "replace",
}
MODULES = [path for room in ROOMS for path in sorted(room.glob("*.py")) if path.parent != ROOMS[0] or path.name not in DOOR]


def system_uses(source: str) -> list[str]:
    """What a module does beside the door: imports of system modules, calls of open(), methods of paths on something that is no string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in SYSTEM_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in SYSTEM_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.append("open()")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATH_METHODS:
            found.append(f".{node.func.attr}()")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_module_uses_the_door(path):
    assert system_uses(path.read_text()) == []


@pytest.mark.parametrize(
    "source", ["import os\nos.unlink(p)", "from os import fsync", "open(p)", "path.unlink()", "path.replace(other)", "import shutil"]
)
def test_what_goes_past_the_door_is_seen(source):
    assert system_uses(source)
