"""Watching keys: the hub that tells watchers of revisions as they are applied, and the catch-up from history for those who are behind.

Reads mvcc, which knows nothing of it. See docs/architecture/watch.md.
"""

from kvserver.watch.catch_up import CatchUp
from kvserver.watch.hub import HistorySource, WatchHub, WatchLimits
from kvserver.watch.index import KeyRange
from kvserver.watch.stream import NO_WATCHER, Notice, WatchStream
from kvserver.watch.watcher import WatchOptions

__all__ = ["NO_WATCHER", "CatchUp", "HistorySource", "KeyRange", "Notice", "WatchHub", "WatchLimits", "WatchOptions", "WatchStream"]
