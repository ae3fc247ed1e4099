"""What the releaser leaves of the WAL: what is needed, what is retained by bytes, what a member is being fed from; less on a full disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvserver.node import releaser
from kvserver.node.releaser import Retention, WalReleaser
from kvserver.node.wal_pins import PIN_S, WalPin, WalPins
from raft.inflights import Inflights
from raft.progress import Progress
from raft.types import Index, NodeId
from tests.kvserver.node.history_model import ManualClock
from wal import SegmentInfo

SEGMENT_BYTES = 100


class FakeWal:
    """Segments of 100 bytes with ten entries each; by the rules of `Wal.release`."""

    def __init__(self, count: int) -> None:
        self.firsts = [1 + 10 * n for n in range(count)]

    @property
    def first_index(self) -> Index:
        return Index(self.firsts[0])

    def segments(self) -> list[SegmentInfo]:
        return [
            SegmentInfo(path=Path(f"/{first}"), first_index=Index(first), size_bytes=SEGMENT_BYTES, used_bytes=SEGMENT_BYTES)
            for first in self.firsts
        ]

    def release(self, index: Index, *, retain_bytes: int) -> int:
        count = 0
        while len(self.firsts) > 1 and self.firsts[1] - 1 <= index and (len(self.firsts) - 1) * SEGMENT_BYTES > retain_bytes:
            del self.firsts[0]
            count += 1
        return count


class Worker:
    """Runs at once."""

    def run(self, work: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - as Worker does
            future.set_exception(error)
        return future


@dataclass
class Bench:
    wal: FakeWal = field(default_factory=lambda: FakeWal(20))
    window_first: int = 1
    pinned: int | None = None
    after_snapshot: bool = False
    is_short: bool = False
    free_bytes: int = 1 << 30
    floors: list[int] = field(default_factory=list)
    fatal: list[Exception] = field(default_factory=list)
    clock: ManualClock = field(default_factory=ManualClock)

    def make(self, retain_bytes: int, monkeypatch) -> WalReleaser:
        made = WalReleaser(
            wal=self.wal,
            worker=Worker(),  # type: ignore[arg-type]
            limits=lambda: (Index(self.window_first), Index(10_000), Index(10_000)),
            on_fatal=self.fatal.append,
            retention=Retention(
                retain_bytes=retain_bytes,
                pinned=lambda: None if self.pinned is None else WalPin(Index(self.pinned), self.after_snapshot),
                snapshot_bytes=lambda: 300,
                is_short_of_space=lambda: self.is_short,
                free_bytes=lambda: self.free_bytes,
                on_released=self.floors.append,
            ),
        )
        monkeypatch.setattr(made, "_loop", self.clock)
        return made

    async def go(self, made: WalReleaser) -> int:
        """One release; how many closed segments stay."""
        self.clock.advance(1.0)
        made.consider()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not self.fatal
        return len(self.wal.firsts) - 1


@pytest.mark.asyncio
async def test_what_the_window_needs_stays_whatever_is_retained(monkeypatch) -> None:
    bench = Bench(window_first=55)
    made = bench.make(0, monkeypatch)
    assert await bench.go(made) == 14
    assert bench.wal.first_index == 51
    assert bench.floors == [51]


@pytest.mark.asyncio
async def test_closed_segments_stay_as_long_as_they_take_no_more_than_is_retained(monkeypatch) -> None:
    bench = Bench(window_first=200)
    made = bench.make(500, monkeypatch)
    assert await bench.go(made) == 5
    assert (made.wal_first_index, made.wal_bytes) == (141, 600)


@pytest.mark.asyncio
async def test_what_a_member_is_being_fed_from_stays_up_to_twice_the_bytes_and_not_when_it_is_fed_no_more(monkeypatch) -> None:
    bench = Bench(window_first=200, pinned=125)
    made = bench.make(500, monkeypatch)
    assert await bench.go(made) == 7, "from the segment with entry 125 on"
    bench.pinned = 5
    bench.wal.firsts = [1 + 10 * n for n in range(20)]
    assert await bench.go(made) == 10, "twice 500 bytes, though it needs more"
    assert bench.wal.first_index == 91
    bench.pinned = None
    assert await bench.go(made) == 5


@pytest.mark.asyncio
async def test_what_follows_a_snapshot_stays_up_to_the_bytes_of_one_more(monkeypatch) -> None:
    bench = Bench(window_first=200, pinned=5, after_snapshot=True)
    made = bench.make(500, monkeypatch)
    assert await bench.go(made) == 13, "twice 500 bytes and 300"
    bench.after_snapshot = False
    assert await bench.go(made) == 10


@pytest.mark.asyncio
async def test_the_end_of_a_pin_is_noticed_though_nothing_is_written(monkeypatch) -> None:
    bench = Bench(window_first=200, pinned=125)
    made = bench.make(500, monkeypatch)
    assert await bench.go(made) == 7
    bench.pinned = None
    bench.clock.advance(PIN_S + 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(bench.wal.firsts) - 1 == 5


@pytest.mark.asyncio
async def test_nothing_is_retained_while_space_is_wanting_and_at_most_half_of_what_is_free(monkeypatch) -> None:
    bench = Bench(window_first=200, pinned=5, free_bytes=100)
    made = bench.make(1_000, monkeypatch)
    assert await bench.go(made) == 10, "(1,900 + 100) / 2"
    bench.free_bytes, bench.window_first = 0, 201
    assert await bench.go(made) == 5
    bench.is_short = True
    assert await bench.go(made) == 0


@pytest.mark.asyncio
async def test_a_disk_that_does_not_say_what_is_free_gets_less_to_hold(monkeypatch) -> None:
    bench = Bench(window_first=200)
    made = bench.make(1_900, monkeypatch)

    def fail() -> int:
        raise OSError(5, "Input/output error")

    made.retention.free_bytes = fail
    assert await bench.go(made) == 9


@pytest.mark.asyncio
async def test_releases_keep_their_distance(monkeypatch) -> None:
    bench = Bench(window_first=100)
    made = bench.make(0, monkeypatch)
    assert await bench.go(made) == 10
    bench.window_first = 150
    made.consider()
    assert len(bench.wal.firsts) - 1 == 10
    bench.clock.advance(releaser.INTERVAL_S + 0.1)
    assert len(bench.wal.firsts) - 1 == 5
    await made.wait_idle()


SELF, PEER, OTHER = NodeId(1), NodeId(2), NodeId(3)


def progress(match: int, *, snapshot: int = 0) -> Progress:
    made = Progress(next_index=Index(match + 1), inflights=Inflights(10, 1 << 20), match_index=Index(match))
    if snapshot:
        made.become_snapshot(Index(snapshot))
    return made


def lowest(pins: WalPins, now_s: float, **positions: Progress) -> int | None:
    ids = {"self": SELF, "peer": PEER, "other": OTHER}
    tracked = [(ids[name], state, False) for name, state in positions.items()]
    pin = pins.lowest(tracked, self_id=SELF, log_first=Index(101), mem_first=Index(501), now_s=now_s)
    return None if pin is None else pin.first_index


def test_a_member_that_is_fed_from_disk_pins_what_it_needs_next_until_it_stands_still_for_long():
    pins = WalPins()
    assert lowest(pins, 0.0, peer=progress(150)) is None, "it was not seen to move: it may be down"
    assert lowest(pins, 1.0, peer=progress(180)) == 181
    assert lowest(pins, 1.0 + PIN_S - 0.1, peer=progress(180)) == 181
    assert lowest(pins, 1.0 + PIN_S, peer=progress(180)) is None
    assert lowest(pins, 2.0 + PIN_S, peer=progress(181)) == 182, "it moves again"


def test_the_lowest_of_several_counts_and_the_leader_itself_does_not():
    pins = WalPins()
    lowest(pins, 0.0, self=progress(110), peer=progress(150), other=progress(200))
    assert lowest(pins, 1.0, self=progress(120), peer=progress(300), other=progress(210)) == 211


def test_what_follows_a_snapshot_is_pinned_while_it_travels_and_until_memory_feeds_the_member() -> None:
    pins = WalPins()

    def pin(now_s: float, state: Progress) -> WalPin | None:
        return pins.lowest([(PEER, state, False)], self_id=SELF, log_first=Index(101), mem_first=Index(501), now_s=now_s)

    for now_s in (0.0, 2 * PIN_S):
        assert pin(now_s, progress(0, snapshot=150)) == (151, True), "it travels"
    assert pin(2 * PIN_S + 1, progress(0)) == (151, True), "delivered, and the member has not said so yet"
    assert pin(2 * PIN_S + 2, progress(160)) == (161, True)
    assert pin(2 * PIN_S + 3, progress(200)) == (201, True)
    assert pin(2 * PIN_S + 4, progress(500)) is None, "memory has what it needs"
    assert pin(2 * PIN_S + 5, progress(490)) is None
    assert pin(2 * PIN_S + 6, progress(491)) == (492, False)


def test_a_snapshot_that_nobody_answers_pins_nothing_in_the_end() -> None:
    pins = WalPins()
    assert lowest(pins, 0.0, peer=progress(0, snapshot=150)) == 151
    assert lowest(pins, PIN_S - 1, peer=progress(0)) == 151
    assert lowest(pins, PIN_S, peer=progress(0)) is None


@pytest.mark.parametrize(
    "after",
    [progress(99), progress(0), progress(500), progress(0, snapshot=99), progress(0, snapshot=500)],
    ids=["beyond", "unknown", "in memory", "snapshot of what is gone", "snapshot of what memory has"],
)
def test_a_member_that_is_not_fed_from_disk_pins_nothing(after):
    pins = WalPins()
    lowest(pins, 0.0, peer=progress(150))
    assert lowest(pins, 1.0, peer=after) is None


def test_a_member_that_needs_exactly_the_first_entry_on_disk_or_the_last_one_before_memory_is_fed():
    for match in (100, 499):
        pins = WalPins()
        lowest(pins, 0.0, peer=progress(match - 1 if match > 100 else match + 1))
        assert lowest(pins, 1.0, peer=progress(match)) == match + 1
