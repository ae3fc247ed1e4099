"""Prometheus metrics: the registry that a server owns, its instruments, and the states it asks for at a scrape."""

from kvserver.metrics.instruments import ROUND_TRIP_BUCKETS_S, CheckProgress, Counter, LatencyHistogram
from kvserver.metrics.process import ProcessMemory, process_memory
from kvserver.metrics.registry import CONTENT_TYPE_LATEST, Metrics, RpcMetrics
from kvserver.metrics.states import LogWindowState, NodeSource, NodeState, PeerState, SpaceState

__all__ = [
    "CONTENT_TYPE_LATEST",
    "ROUND_TRIP_BUCKETS_S",
    "CheckProgress",
    "Counter",
    "LatencyHistogram",
    "LogWindowState",
    "Metrics",
    "NodeSource",
    "NodeState",
    "PeerState",
    "ProcessMemory",
    "RpcMetrics",
    "SpaceState",
    "process_memory",
]
