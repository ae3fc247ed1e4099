"""The ring of tests/wal/test_every_byte.py one floor up: WAL and store together, booted as the node boots them (`bootstrap.begin`).

The applied index tightens what may be lost: with a store that holds everything, no cut and no flipped bit loses anything without a word,
whatever the reader of the WAL alone can tell; with one that holds the first half, nothing of that half; with none, what the WAL alone
promises.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvserver import commands
from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import ServerConfig, parse
from kvserver.errors import KvError
from kvserver.logs import Logger
from kvserver.node import bootstrap
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import open_data_directory
from kvserver.pb import rpc_pb2
from kvserver.types import NodeId
from raft.types import Entry, HardState, Index, Term
from tests.durability.damage.member import Lines
from wal import WalError

LAST = 41
HALF = 21
SAVES = [(2, 4), (5, 5), (6, 12), (13, HALF), (HALF + 1, 30), (31, 36), (37, LAST)]
"""Entries [first, last] of each synced save; the last one holds a blank sector."""

Put = Callable[[int], bytes]
STATES = {"holds everything": LAST, "holds the first half": HALF, "is lost": 1}


def entry(index: int) -> Entry:
    chance = random.Random(index)
    value = bytes(chance.randrange(1, 256) for _ in range(20 + index * 3))
    if index == LAST - 1:
        value += bytes(1_100)
    request = rpc_pb2.PutRequest(key=b"k%d" % index, value=value)
    data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), request.SerializeToString())
    return Entry(index=Index(index), term=Term(1), data=data)


def config_for(root: Path) -> ServerConfig:
    flags = ["--name=a", f"--data-dir={root}", "--initial-cluster=a=http://127.0.0.1:7001", "--wal-segment-bytes=64KiB"]
    return parse([*flags, "--initial-advertise-peer-urls=http://127.0.0.1:7001"], {}).config  # type: ignore[union-attr]


async def live(root: Path) -> None:
    """Make the directory, and beside it the stores that hold everything and the first half."""
    config = config_for(root)
    directory = open_data_directory(config.data_dir, config.wal_dir)
    store = Store.open(directory.store)
    origin = await bootstrap.begin(config, directory, store, WindowLimits(), Logger(Lines()))
    applier = Applier(store)
    for first, last in SAVES:
        entries = [entry(index) for index in range(first, last + 1)]
        origin.wal.save(entries, HardState(term=Term(1), commit=Index(max(1, first - 3))), sync=True)
        for each in entries:
            applier.apply_entry(each.index, each.term, each.data)
        if last in (HALF, LAST):
            await store.commit()
            store.copy_to(root.with_name(f"store-{last}"))
    shutil.copytree(directory.wal, root.with_name("wal"))
    await store.close(commit=False)
    origin.wal.close()
    directory.close()


class Ring:
    """One directory that is damaged, booted and made whole again, over and over."""

    def __init__(self, home: Path) -> None:
        self.root = home / "data"
        asyncio.run(live(self.root))
        self.home = home
        shutil.rmtree(self.root)
        (self.segment,) = [path.name for path in (home / "wal").glob("*.wal")]
        self.data = (home / "wal" / self.segment).read_bytes()
        self.used_bytes = len(self.data.rstrip(b"\0")) + 8
        self.exact = [entry(index) for index in range(2, LAST + 1)]

    async def boot(self, store: str, data: bytes) -> str | int:
        """ "refused", "exact", or the last index that is there."""
        shutil.rmtree(self.root, ignore_errors=True)
        wal = self.root / "member" / "wal"
        wal.mkdir(parents=True)
        (wal / self.segment).write_bytes(data)
        snap = self.root / "member" / "snap"
        snap.mkdir()
        if STATES[store] > 1:
            shutil.copy(self.home / f"store-{STATES[store]}", snap / "db")
        config = config_for(self.root)
        directory = open_data_directory(config.data_dir, config.wal_dir)
        opened = Store.open(directory.store)
        try:
            try:
                origin = await bootstrap.begin(config, directory, opened, WindowLimits(), Logger(Lines()))
            except (KvError, WalError):
                return "refused"
            window, commit = origin.window, origin.hard_state.commit
            origin.wal.close()
            assert opened.applied_index == STATES[store]
            assert STATES[store] <= commit <= window.last_index()
            found = window.entries(Index(2), Index(window.last_index() + 1), 1 << 40)
            assert found == self.exact[: len(found)], "a log that never was"
            return "exact" if len(found) == len(self.exact) else window.last_index()
        finally:
            await opened.close(commit=False)
            directory.close()

    async def tally(self, store: str, cases: list[tuple[str, int]]) -> Counter[str]:
        """Boot each case, judge it, count."""
        seen: Counter[str] = Counter()
        for kind, place in cases:
            if kind == "cut":
                data = self.data[:place]
            else:
                flipped = bytearray(self.data)
                flipped[place // 8] ^= 1 << place % 8
                data = bytes(flipped)
            result = await self.boot(store, data)
            if isinstance(result, int):
                assert result >= STATES[store], (kind, place, "an applied entry is gone")
                assert kind == "cut" or result >= SAVES[-1][0] - 1, (kind, place, "lost before the last batch")
            seen[f"{kind}: {'shorter' if isinstance(result, int) else result}"] += 1
        return seen


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    home = tmp_path_factory.mktemp("ring")
    yield Ring(home)
    shutil.rmtree(home, ignore_errors=True)


def cases_of(ring: Ring, count: int) -> list[tuple[str, int]]:
    chance = random.Random(count)
    cuts = [("cut", place) for place in chance.sample(range(ring.used_bytes + 64), count)]
    last_batch_bits = range((ring.used_bytes - 2_200) * 8, ring.used_bytes * 8)
    flips = chance.sample(range(ring.used_bytes * 8), count) + chance.sample(last_batch_bits, count)
    return cuts + [("flip", place) for place in flips]


def judge(store: str, seen: Counter[str]) -> None:
    print(store, dict(seen))
    assert seen["flip: refused"] > 0
    assert seen["cut: refused"] > 0 or store == "is lost"
    if store == "holds everything":
        assert seen["cut: shorter"] == seen["flip: shorter"] == 0
    else:
        assert seen["cut: shorter"] > 0
        assert seen["flip: shorter"] > 0


@pytest.mark.parametrize("store", STATES)
async def test_sampled_damage_loses_nothing_that_the_store_holds(ring, store):
    judge(store, await ring.tally(store, cases_of(ring, 25)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", STATES)
async def test_damage_loses_nothing_that_the_store_holds(ring, store):
    judge(store, await ring.tally(store, cases_of(ring, 300)))
