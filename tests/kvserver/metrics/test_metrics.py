"""What /metrics shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kvserver.metrics import ROUND_TRIP_BUCKETS_S, Counter, LatencyHistogram, LogWindowState, Metrics, NodeState, PeerState
from kvserver.types import Index, NodeId, Revision

DASHBOARDS = [
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_quota_backend_bytes",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_disk_backend_commit_duration_seconds_bucket",
    "etcd_network_peer_round_trip_time_seconds_bucket",
    "etcd_network_peer_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_peer_sent_failures_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_network_client_grpc_received_bytes_total",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds_bucket",
    "process_resident_memory_bytes",
    "kvserver_log_window_entries",
    "kvserver_log_window_bytes",
    "kvserver_log_window_first_index",
    "kvserver_log_window_compactions_total",
    "kvserver_snapshots_sent_total",
    "kvserver_snapshots_received_total",
    "kvserver_process_anonymous_memory_bytes",
    "kvserver_process_file_memory_bytes",
    "kvserver_accounted_memory_bytes",
    "kvserver_wal_entries",
    "kvserver_peer_lag_entries",
    "kvserver_peer_lag_bytes",
    "kvserver_peer_held_entries",
    "kvserver_peer_held_bytes",
    "kvserver_peer_queued_bytes",
]


class Source:
    def __init__(self, state: NodeState) -> None:
        self.state = state

    def node_state(self) -> NodeState:
        return self.state


STATE = NodeState(
    member_id=NodeId(0xABC),
    has_leader=True,
    is_leader=True,
    is_learner=False,
    committed_index=Index(12),
    applied_index=Index(11),
    revision=Revision(5),
    compact_revision=Revision(2),
    proposals_pending=3,
    quota_backend_bytes=1000,
    db_bytes=500,
    log_window=LogWindowState(entries=4, bytes=400, memory_first_index=Index(9)),
    peers=(
        PeerState(
            id=NodeId(0xD),
            state="StateReplicate",
            lag_entries=2,
            held_entries=1,
            held_bytes=300,
            sent_bytes=7,
            queued_bytes=9,
            round_trips=LatencyHistogram(ROUND_TRIP_BUCKETS_S),
        ),
    ),
    accounted_bytes={"log_window": 400, "proposals": 5},
)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(version="0.1.0")
    made.attach_node(Source(STATE))
    made.snapshots_sent["behind"] += 1
    made.log_window_compactions["progress"] += 1
    made.rpc(service="etcdserverpb.KV", method="Put", kind="unary").started += 1
    return made


def test_every_name_that_dashboards_rely_on_is_there(metrics: Metrics) -> None:
    put = metrics.rpc(service="etcdserverpb.KV", method="Range", kind="unary")
    put.note_handled("OK", 0.1)
    names = {name for name, _ in samples(metrics)}
    assert set(DASHBOARDS) - names == set()


def test_the_nodes_state_is_shown_as_it_is(metrics: Metrics) -> None:
    shown = samples(metrics)
    assert shown["etcd_server_proposals_committed_total", ()] == 12
    assert shown["etcd_server_proposals_pending", ()] == 3
    assert shown["kvserver_log_window_first_index", ()] == 9
    assert shown["etcd_network_peer_sent_bytes_total", (("To", "d"),)] == 7
    assert shown["kvserver_peer_state", (("To", "d"), ("state", "StateReplicate"))] == 1
    assert shown["etcd_server_id", (("server_id", "abc"),)] == 1
    assert shown["kvserver_snapshots_sent_total", (("cause", "behind"),)] == 1


def test_memory_is_shown_by_owner_and_by_peer(metrics: Metrics) -> None:
    shown = samples(metrics)
    assert shown["kvserver_accounted_memory_bytes", (("owner", "log_window"),)] == 400
    assert shown["kvserver_accounted_memory_bytes", (("owner", "proposals"),)] == 5
    assert shown["kvserver_peer_lag_entries", (("To", "d"),)] == 2
    assert shown["kvserver_peer_held_bytes", (("To", "d"),)] == 300
    assert shown["kvserver_peer_queued_bytes", (("To", "d"),)] == 9


def test_a_follower_shows_no_lag_rather_than_none(metrics: Metrics) -> None:
    metrics.attach_node(Source(replace(STATE, is_leader=False, peers=(PeerState(id=NodeId(0xD), queued_bytes=9),))))
    shown = {name for name, labels in samples(metrics) if labels == (("To", "d"),)}
    assert "kvserver_peer_queued_bytes" in shown
    assert not [name for name in shown if "lag" in name or "held" in name]


def test_a_method_counts_its_calls_by_code(metrics: Metrics) -> None:
    rpc = metrics.rpc(service="s", method="m", kind="unary")
    rpc.started += 3
    rpc.note_handled("OK", 0.001)
    rpc.note_handled("Unavailable", 7.0)
    labels = (("grpc_method", "m"), ("grpc_service", "s"), ("grpc_type", "unary"))
    shown = samples(metrics)
    assert shown["grpc_server_started_total", labels] == 3
    assert shown["grpc_server_handled_total", (("grpc_code", "Unavailable"), *labels)] == 1
    assert shown["grpc_server_handling_seconds_count", labels] == 2
    assert shown["grpc_server_handling_seconds_bucket", tuple(sorted((*labels, ("le", "0.005"))))] == 1
    assert rpc.open_calls == 1


def test_two_servers_count_apart() -> None:
    one, other = Metrics(version="1", process=False), Metrics(version="1", process=False)
    one.leader_changes.add()
    assert samples(one)["etcd_server_leader_changes_seen_total", ()] == 1
    assert samples(other)["etcd_server_leader_changes_seen_total", ()] == 0


def test_a_server_without_a_node_still_renders() -> None:
    assert ("etcd_server_has_leader", ()) not in samples(Metrics(version="1", process=False))


@given(st.lists(st.floats(0, 20)))
def test_histogram_counts_every_observation_in_the_first_bucket_that_holds_it(durations: list[float]) -> None:
    histogram = LatencyHistogram((0.1, 1.0, 10.0))
    for duration in durations:
        histogram.observe(duration)
    expected = [("0.1", 0.1), ("1.0", 1.0), ("10.0", 10.0), ("+Inf", float("inf"))]
    assert histogram.cumulative_buckets() == [(name, sum(d <= bound for d in durations)) for name, bound in expected]
    assert histogram.count == len(durations)
    assert histogram.sum_s == pytest.approx(sum(durations))


def test_counter_adds_up() -> None:
    counter = Counter()
    counter.add()
    counter.add(4)
    assert counter.value == 5
