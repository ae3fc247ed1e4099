"""The metrics of one server: what is counted where it happens, what is read when somebody scrapes, and the text of both.

Purpose: `Metrics` is made by the composition root and handed to the rooms, which add to its instruments; `render` gives the text
of /metrics.

Rules: no global registry; two servers in one process count apart. Instruments have one writer each (instruments.py). Rendering runs on
the loop and takes a few milliseconds.
"""

from __future__ import annotations

from collections import Counter as LabelCounter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kvserver.metrics.families import (
    call_families,
    counter,
    gate_families,
    gauge,
    histogram,
    labelled_counter,
    node_families,
    process_memory_families,
)
from kvserver.metrics.instruments import DISK_BUCKETS_S, REQUEST_BUCKETS_S, CheckProgress, Counter, LatencyHistogram
from kvserver.metrics.states import CallsSource, GateSource, NodeSource
from kvserver.metrics.watch import WatchSource, watch_families

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "RpcMetrics"]


@dataclass(slots=True, kw_only=True)
class RpcMetrics:
    """One method of the client API; fed by the binding, on the loop. `handled` counts by the name of the status code."""

    service: str
    method: str
    kind: str
    started: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    seconds: LatencyHistogram = field(default_factory=lambda: LatencyHistogram(REQUEST_BUCKETS_S))
    received_bytes: int = 0
    sent_bytes: int = 0

    def note_handled(self, code: str, duration_s: float) -> None:
        """A call ended with `code`."""
        self.handled[code] = self.handled.get(code, 0) + 1
        self.seconds.observe(duration_s)

    @property
    def open_calls(self) -> int:
        """Calls that were started and have not ended."""
        return self.started - sum(self.handled.values())


class Metrics(Collector):
    """All metrics of one server.

    Args:
        version: the version of kvserver, shown as a label.
        process: also collect `process_*` (once per process makes sense; tests switch it off).
    """

    def __init__(self, *, version: str, process: bool = True) -> None:
        self.wal_fsync_seconds = LatencyHistogram(DISK_BUCKETS_S)
        self.backend_commit_seconds = LatencyHistogram(DISK_BUCKETS_S)
        self.loop_lag_seconds = LatencyHistogram(REQUEST_BUCKETS_S)
        self.log_window_compaction_seconds = LatencyHistogram(REQUEST_BUCKETS_S)
        self.wal_read_seconds = LatencyHistogram(DISK_BUCKETS_S)
        self.wal_reads = Counter()
        self.wal_read_bytes = Counter()
        self.wal_read_failures = Counter()
        self.leader_changes = Counter()
        self.proposals_failed = Counter()
        self.appends_held = Counter()
        self.appends_dropped = Counter()
        self.clients_cut_off = Counter()
        self.forwarded_held = Counter()
        self.forwarded_refused = Counter()
        self.forwarded_handed_back = Counter()
        self.health_success = Counter()
        self.health_failures = Counter()
        self.snapshots_received = Counter()
        self.snapshot_sent_bytes = Counter()
        self.snapshot_received_bytes = Counter()
        self.log_window_pins_expired = Counter()
        self.corrupt_check = CheckProgress()
        self.snapshots_sent: LabelCounter[str] = LabelCounter()
        self.snapshot_send_failures: LabelCounter[str] = LabelCounter()
        self.log_window_compactions: LabelCounter[str] = LabelCounter()
        self._version = version
        self._rpcs: list[RpcMetrics] = []
        self._node: NodeSource | None = None
        self._gates: dict[str, GateSource] = {}
        self._calls: tuple[CallsSource, int] | None = None
        self._watch: WatchSource | None = None
        self._process = process
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        if process:
            ProcessCollector(registry=self.registry)

    def attach_node(self, source: NodeSource) -> None:
        """From now on a scrape also shows what `source` says."""
        self._node = source

    def attach_gate(self, name: str, source: GateSource) -> None:
        """From now on a scrape also shows this gate."""
        self._gates[name] = source

    def attach_calls(self, source: CallsSource, *, max_connections: int) -> None:
        """From now on a scrape also shows how many calls and connections there may be."""
        self._calls = (source, max_connections)

    def attach_watch(self, source: WatchSource) -> None:
        """From now on a scrape also shows the watchers."""
        self._watch = source

    def rpc(self, *, service: str, method: str, kind: str) -> RpcMetrics:
        """The metrics of one method, made and registered; called once per method."""
        made = RpcMetrics(service=service, method=method, kind=kind)
        self._rpcs.append(made)
        return made

    @property
    def rpcs(self) -> Sequence[RpcMetrics]:
        """The metrics of all methods."""
        return self._rpcs

    def render(self) -> bytes:
        """The text of /metrics, in the format of `CONTENT_TYPE_LATEST`."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Every family but those of the process; called by the registry."""
        version = GaugeMetricFamily("etcd_server_version", "The API version that is spoken, as a label.", labels=["server_version"])
        version.add_metric([self._version], 1)
        yield version
        yield from self._counters()
        yield from self._histograms()
        yield from self._rpc_families()
        if self._process:
            yield from process_memory_families()
        if self._gates:
            yield from gate_families(self._gates)
        if self._calls is not None:
            yield from call_families(*self._calls)
        if self._watch is not None:
            yield from watch_families(self._watch)
        if self._node is not None:
            yield from node_families(self._node.node_state())

    def _counters(self) -> Iterator[Metric]:
        yield counter("etcd_server_leader_changes_seen", "Leader changes seen.", self.leader_changes.value)
        yield counter("etcd_server_proposals_failed", "Proposals that failed.", self.proposals_failed.value)
        yield counter("kvserver_appends_held", "Messages with entries that waited for applying to catch up.", self.appends_held.value)
        yield counter("kvserver_appends_dropped", "Messages with entries dropped because too many waited.", self.appends_dropped.value)
        yield counter(
            "kvserver_clients_cut_off", "Connections ended: answers were not taken while others waited.", self.clients_cut_off.value
        )
        yield counter(
            "kvserver_forwarded_held", "Messages with forwarded writes that waited for raft to take them.", self.forwarded_held.value
        )
        yield counter(
            "kvserver_forwarded_refused", "Messages with forwarded writes refused: too many waited.", self.forwarded_refused.value
        )
        yield counter(
            "kvserver_forwarded_handed_back", "Messages with forwarded writes sent back: no leader here.", self.forwarded_handed_back.value
        )
        yield counter("etcd_server_health_success", "Successful health checks.", self.health_success.value)
        yield counter("etcd_server_health_failures", "Failed health checks.", self.health_failures.value)
        yield labelled_counter("kvserver_snapshots_sent", "Snapshots that arrived at a peer, by cause.", "cause", self.snapshots_sent)
        yield labelled_counter(
            "kvserver_snapshot_send_failures", "Snapshots that did not arrive, by cause.", "cause", self.snapshot_send_failures
        )
        yield counter("kvserver_snapshots_received", "Snapshots received and installed.", self.snapshots_received.value)
        yield counter("kvserver_snapshot_sent_bytes", "Bytes of snapshots sent.", self.snapshot_sent_bytes.value)
        yield counter("kvserver_snapshot_received_bytes", "Bytes of snapshots received.", self.snapshot_received_bytes.value)
        yield labelled_counter(
            "kvserver_log_window_compactions", "Compactions of the log window, by reason.", "reason", self.log_window_compactions
        )
        yield counter("kvserver_wal_reads", "Reads of the write-ahead log for members that are behind memory.", self.wal_reads.value)
        yield counter("kvserver_wal_read_bytes", "Bytes of entries read back for them.", self.wal_read_bytes.value)
        yield counter("kvserver_wal_read_failures", "Such reads that met damage or an error.", self.wal_read_failures.value)
        yield counter("kvserver_log_window_pins_expired", "Pins that ended at their limit.", self.log_window_pins_expired.value)
        yield counter("kvserver_corrupt_check_rows", "Rows of the store that the periodic check has read.", self.corrupt_check.rows)
        yield counter("kvserver_corrupt_check_runs", "Runs of the periodic check that have ended.", self.corrupt_check.runs)
        yield counter("kvserver_corrupt_check_damaged", "Damaged places that the periodic check has reported.", self.corrupt_check.damaged)
        yield gauge(
            "kvserver_corrupt_check_last_finished_seconds",
            "When the periodic check last came to its end, in Unix time; 0 if never.",
            self.corrupt_check.last_finished_s,
        )

    def _histograms(self) -> Iterator[Metric]:
        yield histogram("etcd_disk_wal_fsync_duration_seconds", "Latency of fsync of the write-ahead log.", self.wal_fsync_seconds)
        yield histogram("etcd_disk_backend_commit_duration_seconds", "Latency of commits of the store.", self.backend_commit_seconds)
        yield histogram("kvserver_wal_read_seconds", "Duration of reads of the write-ahead log for other members.", self.wal_read_seconds)
        yield histogram("kvserver_loop_lag_seconds", "How late the event loop runs its timers.", self.loop_lag_seconds)
        yield histogram(
            "kvserver_log_window_compaction_seconds", "Duration of compactions of the log window.", self.log_window_compaction_seconds
        )

    def _rpc_families(self) -> Iterator[Metric]:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "Calls started on the server.", labels=labels)
        handled = CounterMetricFamily("grpc_server_handled", "Calls completed on the server.", labels=[*labels, "grpc_code"])
        seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Latency of calls on the server.", labels=labels)
        for rpc in self._rpcs:
            values = [rpc.kind, rpc.service, rpc.method]
            started.add_metric(values, rpc.started)
            for code, count in rpc.handled.items():
                handled.add_metric([*values, code], count)
            if rpc.started:
                seconds.add_metric(values, rpc.seconds.cumulative_buckets(), rpc.seconds.sum_s)
        yield from (started, handled, seconds)
        received_bytes = sum(rpc.received_bytes for rpc in self._rpcs)
        sent_bytes = sum(rpc.sent_bytes for rpc in self._rpcs)
        yield counter("etcd_network_client_grpc_received_bytes", "Bytes received from clients.", received_bytes)
        yield counter("etcd_network_client_grpc_sent_bytes", "Bytes sent to clients.", sent_bytes)
        yield gauge("kvserver_client_open_calls", "Calls being served.", sum(rpc.open_calls for rpc in self._rpcs))
        streams = sum(rpc.open_calls for rpc in self._rpcs if rpc.kind != "unary")
        yield gauge("kvserver_client_open_streams", "Streaming calls being served.", streams)
