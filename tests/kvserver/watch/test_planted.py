"""Known mistakes in watching, planted one at a time in the real code: the model of life.py finds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvserver.mvcc import layout
from kvserver.watch import catch_up, changes, hub, index, stream
from kvserver.watch.changes import History
from kvserver.watch.hub import WatchHub
from kvserver.watch.stream import Notice
from kvserver.watch.watcher import Watcher, WatcherState
from tests.kvserver.watch.life import random_steps
from tests.kvserver.watch.test_model import run, small_pieces  # noqa: F401 - a fixture of the module

Patch = pytest.MonkeyPatch
SEEDS = 80


def full_stream_skips_the_revision(patch: Patch) -> None:
    right = WatchHub.park

    def park(self: Any, slow: Watcher) -> None:
        slow.next_revision += 1
        right(self, slow)

    patch.setattr(WatchHub, "park", park)


def piece_ends_within_a_revision(patch: Patch) -> None:
    right = changes.read_changes

    def read(state: Any, first: Any, **bounds: Any) -> History:
        found = right(state, first, **bounds)
        return History(found.changes[:-1], found.through) if len(found.changes) > 2 else found

    patch.setattr(catch_up, "read_changes", read)


def falling_behind_forgets_the_backlog(patch: Patch) -> None:
    right = WatchHub.fall_behind_all

    def fall(self: Any) -> None:
        self._delivered = self._applied
        right(self)

    patch.setattr(WatchHub, "fall_behind_all", fall)


def falling_behind_repeats(patch: Patch) -> None:
    right = WatchHub.fall_behind_all

    def fall(self: Any) -> None:
        for each in self._streams:
            for one in each.watchers.values():
                if one.state is WatcherState.SYNCED and one.next_revision > 2:
                    one.next_revision = max(self.source.compacted_revision, one.next_revision - 2)
        self._delivered = -1
        right(self)

    patch.setattr(WatchHub, "fall_behind_all", fall)


def progress_does_not_wait(patch: Patch) -> None:
    def request(self: Any, asking: Any) -> None:
        asking.put(Notice(watch_id=-1, revision=self._applied))

    patch.setattr(WatchHub, "request_progress", request)


def told_again_from_the_backlog(patch: Patch) -> None:
    def chunks(self: Watcher, found: Any) -> tuple[bytes, ...]:
        options = self.options
        wanted = (change for change in found if not (options.no_deletes if change.is_delete else options.no_puts))
        return tuple(change.full_chunk if options.prev_kv else change.chunk for change in wanted)

    patch.setattr(Watcher, "chunks", chunks)


def synced_too_early(patch: Patch) -> None:
    def tell(self: Any, one: Watcher, through: int, chunks: tuple[bytes, ...]) -> None:
        del self._hub.ready[one]
        if chunks and not self._hub.tell(one, through, chunks):
            self._hub.park(one)
            return
        one.next_revision = through + 1
        self._hub.sync(one)

    patch.setattr(catch_up.CatchUp, "_tell", tell)


def compaction_is_skipped_over(patch: Patch) -> None:
    right = changes.read_changes

    def read(state: Any, first: Any, **bounds: Any) -> History:
        return right(state, max(first, state.compacted_revision), **bounds)

    patch.setattr(catch_up, "read_changes", read)


def fragments_are_not_marked(patch: Patch) -> None:
    right = Watcher.notices

    def notices(self: Watcher, *arguments: Any) -> list[Notice]:
        made = right(self, *arguments)
        return [Notice(watch_id=one.watch_id, revision=one.revision, events=one.events) for one in made]

    patch.setattr(Watcher, "notices", notices)


def previous_pair_of_a_creation(patch: Patch) -> None:
    patch.setattr(layout, "is_creation", lambda record: False)


def order_is_that_of_the_keys(patch: Patch) -> None:
    patch.setattr(index, "_place", lambda item: item[1].key)


def filters_are_swapped(patch: Patch) -> None:
    right = Watcher.chunks

    def chunks(self: Watcher, found: Any) -> tuple[bytes, ...]:
        return right(self, [change for change in found if not (self.options.no_puts and change.is_delete)])

    patch.setattr(Watcher, "chunks", chunks)


def closed_streams_are_still_counted(patch: Patch) -> None:
    patch.setattr(stream.WatchStream, "_drop", lambda self: self._queue.clear())


def created_comes_late(patch: Patch) -> None:
    right = hub.WatchHub.create

    def create(self: Any, asking: Any, options: Any) -> None:
        right(self, asking, options)
        if asking._queue:
            asking._queue.rotate(1)

    patch.setattr(hub.WatchHub, "create", create)


PLANTED = [
    full_stream_skips_the_revision,
    piece_ends_within_a_revision,
    falling_behind_forgets_the_backlog,
    falling_behind_repeats,
    progress_does_not_wait,
    told_again_from_the_backlog,
    synced_too_early,
    compaction_is_skipped_over,
    fragments_are_not_marked,
    previous_pair_of_a_creation,
    order_is_that_of_the_keys,
    filters_are_swapped,
    closed_streams_are_still_counted,
    created_comes_late,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS):
        try:
            run(random_steps(seed))
        except Exception:  # noqa: BLE001 - whatever shows it: a check of a client, or the hub's own
            return
    pytest.fail(f"{SEEDS} lives did not show it")
