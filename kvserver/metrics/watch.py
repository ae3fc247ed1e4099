"""Metrics of watching, asked for at a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import Metric

from kvserver.metrics.families import counter, gauge

__all__ = ["WatchSource", "watch_families"]


class WatchSource(Protocol):
    """Where the figures come from."""

    watcher_count: int
    slow_count: int
    events_sent: int

    @property
    def stream_count(self) -> int: ...
    @property
    def queued_bytes(self) -> int: ...
    @property
    def max_queued_bytes(self) -> int: ...


def watch_families(source: WatchSource) -> Iterator[Metric]:
    """Streams, watchers, and what waits for their clients."""
    yield gauge("etcd_debugging_mvcc_watch_stream_total", "Open watch streams.", source.stream_count)
    yield gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", source.watcher_count)
    yield gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind and told from the history.", source.slow_count)
    yield counter("etcd_debugging_mvcc_events", "Events queued to clients.", source.events_sent)
    yield gauge("kvserver_watch_queued_bytes", "Bytes of messages that wait for their watch streams' clients.", source.queued_bytes)
    yield gauge("kvserver_watch_max_queued_bytes", "The limit of kvserver_watch_queued_bytes.", source.max_queued_bytes)
