"""The states in which a power loss may leave a disk: enumerated, or drawn.

Purpose: `CrashStates(disk)` lists what is open (the choices) and builds the tree that a selection of them stands for. Nothing of the disk
is changed.

Rules: what is legal after a power loss
- A file's length is that of any of its versions since the last sync, and each 512-byte sector holds any one of its versions there: writes
  are torn at sectors, lost, or kept in any combination; lengthening and truncation, too.
- A file that is written in transactions (`Commit`) is in one of its versions as a whole.
- Of a directory's unsynced changes any are lost; those that happen do so in their order. A rename is one change.

Caveats: this is more than most file systems do (a truncation whose length is lost may still have blanked the sectors), so what holds here
holds there. A sector is never torn itself, and never holds what nobody wrote: disks that do that are the damage table's business.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Final

from kvserver.testing.faults.disk import DirectoryNode, Disk, FileNode, apply_names
from kvserver.testing.faults.operations import ROOT, CreateFile, MakeDirectory, SyncDirectory

SECTOR_BYTES: Final = 512
_DRAWS_PER_STATE: Final = 4

Tree = dict[str, bytes | None]
"""Files with their content, and directories (None), by their path below the root; parents come first."""


@dataclass(frozen=True, slots=True)
class _FileChoices:
    """What is open about one file: its length, and the content of some sectors; or, of a store, one whole content."""

    newest: bytes
    sizes: tuple[int, ...]
    sectors: tuple[tuple[int, tuple[bytes, ...]], ...]
    wholes: tuple[bytes, ...] = ()

    @property
    def counts(self) -> list[int]:
        if self.wholes:
            return [len(self.wholes)]
        return [len(self.sizes), *(len(options) for _, options in self.sectors)]

    def build(self, selection: Sequence[int]) -> bytes:
        if self.wholes:
            return self.wholes[selection[0]]
        size_bytes = self.sizes[selection[0]]
        content = bytearray(self.newest.ljust(size_bytes, b"\0"))
        for (start, options), chosen in zip(self.sectors, selection[1:], strict=True):
            option = options[chosen]
            content[start : start + len(option)] = option
        return bytes(content[:size_bytes])


class CrashStates:
    """What a power loss now could leave of `disk`. `counts` are the options of each choice, the oldest first; `total` their product."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._files: dict[int, _FileChoices] = {}
        self._spans: dict[int, tuple[int, int]] = {}
        counts: list[int] = []
        for number in _reachable(disk):
            node = disk.nodes[number]
            if isinstance(node, FileNode):
                self._files[number] = _file_choices(node)
                options = self._files[number].counts
            else:
                options = [2] * len(node.pending)
            self._spans[number] = (len(counts), len(counts) + len(options))
            counts += options
        self.counts = tuple(counts)
        self.total = prod(counts)

    def build(self, selection: Sequence[int]) -> Tree:
        """The tree for one option of every choice."""
        tree: Tree = {}
        self._add(ROOT, "", selection, tree)
        return tree

    def selections(self, limit: int, rng: Random) -> Iterator[tuple[int, ...]]:
        """Every selection if there are at most `limit`; otherwise that many different ones, the two extremes among them (fewer if the dice
        repeat themselves too often)."""
        if self.total <= limit:
            yield from itertools.product(*map(range, self.counts))
            return
        seen = {tuple(0 for _ in self.counts), tuple(count - 1 for count in self.counts)}
        for _ in range(_DRAWS_PER_STATE * limit):
            if len(seen) >= limit:
                break
            seen.add(self.draw(rng))
        yield from sorted(seen)

    def draw(self, rng: Random) -> tuple[int, ...]:
        """A random selection: anything, or only the oldest and newest options, or one option throughout."""
        mode = rng.randrange(3)
        if mode == 0:
            share = rng.random()
            return tuple(int(share * count) for count in self.counts)
        if mode == 1:
            return tuple(rng.choice((0, count - 1)) for count in self.counts)
        return tuple(rng.randrange(count) for count in self.counts)

    def _add(self, number: int, path: str, selection: Sequence[int], tree: Tree) -> None:
        node = self._disk.nodes[number]
        start, end = self._spans[number]
        chosen = selection[start:end]
        if isinstance(node, FileNode):
            tree[path] = self._files[number].build(chosen)
            return
        if path:
            tree[path] = None
        names = dict(node.durable)
        for change, happened in zip(node.pending, chosen, strict=True):
            if happened:
                apply_names(names, change)
        for name, child in sorted(names.items()):
            self._add(child, f"{path}/{name}" if path else name, selection, tree)


def _reachable(disk: Disk) -> list[int]:
    """Whatever has a name in any state, in a fixed order."""
    found = [ROOT]
    for number in found:
        node = disk.nodes[number]
        if isinstance(node, DirectoryNode):
            children = set(node.durable.values())
            children.update(child for change in node.pending for _, child in change if child is not None)
            found += sorted(children.difference(found))
    return found


def _file_choices(node: FileNode) -> _FileChoices:
    if len(node.bases) == 1 and not node.pending:
        content = bytes(node.content)
        return _FileChoices(content, (len(content),), ())
    versions = node.versions()
    newest = bytes(versions[-1])
    if node.is_atomic:
        return _FileChoices(newest, (), (), tuple(dict.fromkeys(bytes(version) for version in versions)))
    sizes = tuple(dict.fromkeys(len(version) for version in versions))
    sectors = []
    for start in range(0, max(sizes), SECTOR_BYTES):
        options = dict.fromkeys(bytes(version[start : start + SECTOR_BYTES]) for version in versions)
        if len(options) > 1:
            options = dict.fromkeys(option.ljust(SECTOR_BYTES, b"\0") for option in options)
        if len(options) > 1:
            sectors.append((start, tuple(options)))
    whole_bytes = -(-max(sizes) // SECTOR_BYTES) * SECTOR_BYTES
    return _FileChoices(newest.ljust(whole_bytes, b"\0"), sizes, tuple(sectors))


def disk_of(tree: Tree) -> Disk:
    """A disk that holds this tree durably."""
    disk = Disk()
    for path, content in tree.items():
        *parents, name = path.split("/")
        parent, number = disk.find(parents), disk.next_number
        if content is None:
            disk.apply(MakeDirectory(parent, name, number))
        else:
            disk.apply(CreateFile(parent, name, number))
            disk.nodes[number] = FileNode(content)
        disk.apply(SyncDirectory(parent))
    return disk


def write_tree(tree: Tree, root: Path) -> None:
    """Put a tree on a real disk, below `root`, which must be new or empty."""
    root.mkdir(exist_ok=True)
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir(mode=0o700)
        else:
            (root / path).write_bytes(content)
