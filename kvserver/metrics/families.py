"""From states and instruments to Prometheus's families: the one place that knows the names.

Rules: names that etcd's dashboards use keep etcd's meaning; what is ours begins with `kvserver_`. Member ids in labels are hexadecimal, as
in etcd. `prometheus_client` appends `_total` to counters by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvserver.metrics.instruments import LatencyHistogram
from kvserver.metrics.process import process_memory
from kvserver.metrics.states import CallsSource, GateSource, LogWindowState, NodeState, PeerState, SpaceState

__all__ = ["counter", "gate_families", "gauge", "histogram", "node_families", "process_memory_families"]


def gauge(name: str, help_text: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, help_text, value=value)


def counter(name: str, help_text: str, value: float) -> Metric:
    """A counter without labels; `name` is given without `_total`."""
    return CounterMetricFamily(name, help_text, value=value)


def labelled_counter(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Metric:
    """A counter with one label."""
    family = CounterMetricFamily(name, help_text, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family


def histogram(name: str, help_text: str, observed: LatencyHistogram) -> Metric:
    """A histogram without labels."""
    return HistogramMetricFamily(name, help_text, buckets=observed.cumulative_buckets(), sum_value=observed.sum_s)


def node_families(state: NodeState) -> Iterator[Metric]:
    """Everything that a `NodeState` says."""
    yield gauge("etcd_server_has_leader", "1 while this member knows a leader, else 0.", state.has_leader)
    yield gauge("etcd_server_is_leader", "1 while this member leads, else 0.", state.is_leader)
    yield gauge("etcd_server_is_learner", "1 while this member is a learner, else 0.", state.is_learner)
    yield counter("etcd_server_proposals_committed", "Index of the last committed raft entry.", state.committed_index)
    yield counter("etcd_server_proposals_applied", "Index of the last applied raft entry.", state.applied_index)
    yield gauge("etcd_server_proposals_pending", "Writes that wait for their result.", state.proposals_pending)
    yield gauge("kvserver_proposals_pending_bytes", "Bytes of the writes that wait for their result.", state.proposals_pending_bytes)
    yield gauge("etcd_server_quota_backend_bytes", "Largest size of the store in bytes.", state.quota_backend_bytes)
    yield gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the store's file in bytes.", state.db_bytes)
    yield gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store that are in use.", state.db_in_use_bytes)
    if state.keys is not None:
        yield gauge("etcd_debugging_mvcc_keys_total", "Keys in the store.", state.keys)
    yield gauge("etcd_debugging_mvcc_current_revision", "The store's revision.", state.revision)
    yield gauge("etcd_debugging_mvcc_compact_revision", "The last compacted revision.", state.compact_revision)
    server_id = GaugeMetricFamily("etcd_server_id", "This member's id, as a label.", labels=["server_id"])
    server_id.add_metric([f"{state.member_id:x}"], 1)
    yield server_id
    yield _space_family(state.space)
    yield from _log_window_families(state.log_window)
    accounted = GaugeMetricFamily("kvserver_accounted_memory_bytes", "Bytes in memory, by owner; an entry may be shared.", labels=["owner"])
    for owner, size_bytes in state.accounted_bytes.items():
        accounted.add_metric([owner], size_bytes)
    yield accounted
    yield from _peer_families(state.peers)


def _space_family(space: SpaceState) -> Metric:
    family = GaugeMetricFamily("kvserver_disk_space_short", "1 while disk space is wanting there and writes are refused.", labels=["what"])
    family.add_metric(["store"], space.store_full)
    family.add_metric(["wal_spare"], space.spare_missing)
    family.add_metric(["wal"], space.append_held)
    return family


def _log_window_families(window: LogWindowState) -> Iterator[Metric]:
    yield gauge("kvserver_log_window_entries", "Raft entries in memory.", window.entries)
    yield gauge("kvserver_log_window_bytes", "Bytes of raft entries in memory, overhead included.", window.bytes)
    yield gauge("kvserver_log_window_max_entries", "The limit of kvserver_log_window_entries.", window.max_entries)
    yield gauge("kvserver_log_window_max_bytes", "The limit of kvserver_log_window_bytes.", window.max_bytes)
    yield gauge("kvserver_log_window_first_index", "The first raft entry in memory.", window.memory_first_index)
    yield gauge("kvserver_log_window_last_index", "The last raft entry in memory.", window.memory_last_index)
    yield gauge("kvserver_log_window_pins", "Snapshot streams that hold entries.", window.pins_active)
    yield gauge(
        "kvserver_log_first_index",
        "The first raft entry that members can be given, from memory or disk.",
        window.log_first_index,
    )
    yield gauge("kvserver_wal_first_index", "The first raft entry in the write-ahead log.", window.wal_first_index)
    yield gauge("kvserver_wal_entries", "Raft entries in the write-ahead log.", window.wal_entries)
    yield gauge("kvserver_wal_bytes", "Bytes of the write-ahead log's segments.", window.wal_bytes)


def _peer_families(peers: Iterable[PeerState]) -> Iterator[Metric]:
    peers = tuple(peers)
    if not peers:
        return
    sent = CounterMetricFamily("etcd_network_peer_sent_bytes", "Bytes sent to a peer.", labels=["To"])
    received = CounterMetricFamily("etcd_network_peer_received_bytes", "Bytes received from a peer.", labels=["From"])
    failures = CounterMetricFamily("etcd_network_peer_sent_failures", "Messages that could not be sent to a peer.", labels=["To"])
    round_trip = HistogramMetricFamily("etcd_network_peer_round_trip_time_seconds", "Round trips to a peer.", labels=["To"])
    lag_entries = GaugeMetricFamily("kvserver_peer_lag_entries", "Entries that a peer is behind (on the leader).", labels=["To"])
    lag_bytes = GaugeMetricFamily(
        "kvserver_peer_lag_bytes", "Bytes that a peer is behind, as far as in memory (on the leader).", labels=["To"]
    )
    held_entries = GaugeMetricFamily("kvserver_peer_held_entries", "Raft entries kept in memory for a peer (on the leader).", labels=["To"])
    held_bytes = GaugeMetricFamily(
        "kvserver_peer_held_bytes", "Bytes of raft entries kept in memory for a peer (on the leader).", labels=["To"]
    )
    queued = GaugeMetricFamily("kvserver_peer_queued_bytes", "Bytes that wait to be sent to a peer.", labels=["To"])
    contact = GaugeMetricFamily("kvserver_peer_contact_age_seconds", "Seconds since a peer was heard from.", labels=["To"])
    states = GaugeMetricFamily("kvserver_peer_state", "How the leader replicates to a peer.", labels=["To", "state"])
    for peer in peers:
        label = [f"{peer.id:x}"]
        sent.add_metric(label, peer.sent_bytes)
        received.add_metric(label, peer.received_bytes)
        failures.add_metric(label, peer.sent_failures)
        queued.add_metric(label, peer.queued_bytes)
        if peer.contact_age_s is not None:
            contact.add_metric(label, peer.contact_age_s)
        if peer.round_trips is not None:
            round_trip.add_metric(label, peer.round_trips.cumulative_buckets(), peer.round_trips.sum_s)
        if peer.state:  # on the leader: nobody else knows how far the others are, and 0 would say that they are not behind
            states.add_metric([*label, peer.state], 1)
            lag_entries.add_metric(label, peer.lag_entries)
            lag_bytes.add_metric(label, peer.lag_bytes)
            held_entries.add_metric(label, peer.held_entries)
            held_bytes.add_metric(label, peer.held_bytes)
    yield from (sent, received, failures, round_trip, contact, queued, states, lag_entries, lag_bytes, held_entries, held_bytes)


def gate_families(gates: Mapping[str, GateSource]) -> Iterator[Metric]:
    """The gates for bytes: what is behind each, its bound, and who waits."""
    held = GaugeMetricFamily("kvserver_gate_held_bytes", "Bytes of requests or answers behind a gate.", labels=["gate"])
    bound = GaugeMetricFamily("kvserver_gate_max_bytes", "The limit of kvserver_gate_held_bytes; more wait.", labels=["gate"])
    waiting = GaugeMetricFamily("kvserver_gate_waiting", "Calls that wait at a gate.", labels=["gate"])
    waited = CounterMetricFamily("kvserver_gate_waited", "Calls that had to wait at a gate.", labels=["gate"])
    refused = CounterMetricFamily("kvserver_gate_refused", "Calls refused because too many waited at a gate.", labels=["gate"])
    for name, gate in gates.items():
        held.add_metric([name], gate.held_bytes)
        bound.add_metric([name], gate.max_bytes)
        waiting.add_metric([name], gate.waiting_count)
        waited.add_metric([name], gate.waited)
        refused.add_metric([name], gate.refused)
    yield from (held, bound, waiting, waited, refused)


def call_families(calls: CallsSource, max_connections: int) -> Iterator[Metric]:
    """Calls that are being served, and how many may be; connections are known by their bound only (`process_open_fds` has them)."""
    bound = GaugeMetricFamily("kvserver_calls_max", "Most calls being served at a time; more are refused.", labels=["kind"])
    refused = CounterMetricFamily("kvserver_calls_refused", "Calls refused because too many were being served.", labels=["kind"])
    for kind, count in (("unary", calls.unary), ("stream", calls.streams)):
        bound.add_metric([kind], count.max_open)
        refused.add_metric([kind], count.refused)
    yield from (bound, refused)
    yield gauge("kvserver_connections_max", "Most connections of clients; more are closed at once.", max_connections)


def process_memory_families() -> Iterator[Metric]:
    """The process's memory by kind; anonymous is what kvserver promises to bound. Nothing where /proc does not tell."""
    memory = process_memory()
    if memory is not None:
        yield gauge("kvserver_process_anonymous_memory_bytes", "Resident anonymous memory in bytes.", memory.anonymous_bytes)
        yield gauge("kvserver_process_file_memory_bytes", "Resident memory of mapped files in bytes.", memory.file_bytes)
