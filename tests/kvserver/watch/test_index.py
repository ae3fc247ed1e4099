"""The index answers as a walk over all watchers would."""

from __future__ import annotations

from random import Random
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.watch import index
from kvserver.watch.changes import Change
from kvserver.watch.index import KeyedChanges, KeyRange, WatcherIndex

KEY = st.binary(min_size=1, max_size=2)
RANGE = st.builds(KeyRange, KEY, st.none() | KEY) | KEY.map(lambda key: KeyRange(key, key + b"\x00"))


@given(ranges=st.lists(RANGE, max_size=30), removed=st.sets(st.integers(0, 29)), keys=st.lists(KEY, min_size=1, max_size=10))
def test_find_gives_exactly_the_watchers_whose_range_has_the_key(ranges: list[KeyRange], removed: set[int], keys: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "CHUNK_RANGES", 3)
        found: WatcherIndex[int] = WatcherIndex()
        for number, keys_of in enumerate(ranges):
            found.add(number, keys_of)
        kept = {number: keys_of for number, keys_of in enumerate(ranges) if number not in removed}
        for number in removed & set(range(len(ranges))):
            found.remove(number, ranges[number])
        for key in keys:
            assert sorted(found.find(key)) == [number for number, keys_of in kept.items() if keys_of.has(key)]
        for number, keys_of in kept.items():
            found.remove(number, keys_of)
        assert not found


@given(keys=st.lists(KEY, max_size=20), watched=RANGE)
def test_a_piece_of_history_gives_a_watchers_changes_in_their_order(keys: list[bytes], watched: KeyRange) -> None:
    changes = [Change(number, key, b"", None, is_delete=False) for number, key in enumerate(keys)]
    assert KeyedChanges(changes).find(watched) == [change for change in changes if watched.has(change.key)]


@pytest.mark.parametrize("shape", ["points", "prefixes"])
def test_a_lookup_among_many_watchers_is_no_walk_over_them(shape: str) -> None:
    """A hundred times the watchers, far from a hundred times the time."""

    def seconds(count: int) -> float:
        found: WatcherIndex[int] = WatcherIndex()
        names = [b"key/%06d" % number for number in range(count)]
        for number, name in enumerate(names):
            found.add(number, KeyRange(name, name + b"\x00" if shape == "points" else name + b"0"))
        chosen = Random(1).choices(names, k=300)
        best = 9.0
        for _ in range(5):
            began_s = thread_time()
            assert all(len(list(found.find(name))) == (1 if shape == "points" else 0) or name for name in chosen)
            best = min(best, thread_time() - began_s)
        return best

    assert seconds(20_000) < 30 * seconds(200)
