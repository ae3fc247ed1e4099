"""The configuration of one server, complete and checked.

Purpose: everything that the composition root needs to know, as one frozen value; whoever holds a `ServerConfig` holds a usable one.

Rules: construction validates what can be known without touching the disk or the network and raises `ConfigError` with the flags' names.
What depends on the data directory (is this a first start?) is a method: `check_bootstrap` is called by whoever finds the directory empty,
because a member that exists may well have moved since its initial cluster was written down.

Units: bytes, milliseconds and seconds as the names say. Source: etcd's configuration documentation and its checks of the same flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvserver.config.budget import BUDGET_WINDOW_BYTES, other_members, peer_frame_bytes, peer_receive_bytes
from kvserver.config.errors import ConfigError
from kvserver.config.urls import ClusterMember, Url, format_urls

__all__ = ["ETCD_API_VERSION", "RECEIVE_HEADROOM_BYTES", "LogWindowConfig", "ServerConfig", "limits_in_force"]

ETCD_API_VERSION: Final = "3.6.0"
"""The version of etcd's client API that is spoken; clients parse it as three integers (`Status.version`, `/version`)."""

RECEIVE_HEADROOM_BYTES: Final = 512 * 1024
"""A received message may be this much larger than the largest request, so that an oversized request gets its own error."""

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_DEFAULT_PEER_URL: Final = Url(host="localhost", port=2380)
_DEFAULT_CLIENT_URL: Final = Url(host="localhost", port=2379)
_MAX_ELECTION_TIMEOUT_MS: Final = 50_000
_LOG_LEVELS: Final = ("debug", "info", "warn", "error", "dpanic", "panic", "fatal")


def _check_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"--{flag}[{value}] must be between {least} and {most}")


def check_window_entries(flag: str, max_entries: int) -> None:
    """Raises ConfigError in the name of `flag`: the limit has several."""
    _check_range(flag, max_entries, 1, 10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWindowConfig:
    """The limits of the in-memory raft log: at most `max_entries` and `max_bytes`, for peers in contact within `peer_grace_s`."""

    max_entries: int = 100_000
    max_bytes: int = 64 * _MIB
    peer_grace_s: float = 10.0

    def __post_init__(self) -> None:
        check_window_entries("log-window-entries", self.max_entries)
        _check_range("log-window-bytes", self.max_bytes, 64 << 10, 1 << 40)
        if not 0.1 <= self.peer_grace_s <= 3600:
            raise ConfigError(f"--log-peer-grace[{self.peer_grace_s:g}s] must be between 100ms and 1h")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One member's configuration; the defaults are those of `kvserver` without arguments."""

    name: str = "default"
    data_dir: Path = Path("default.kvserver")
    dedicated_wal_dir: Path | None = None
    listen_peer_urls: tuple[Url, ...] = (_DEFAULT_PEER_URL,)
    listen_client_urls: tuple[Url, ...] = (_DEFAULT_CLIENT_URL,)
    listen_client_http_urls: tuple[Url, ...] = ()
    listen_metrics_urls: tuple[Url, ...] = ()
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 1000
    pre_vote: bool = True

    initial_advertise_peer_urls: tuple[Url, ...] = (_DEFAULT_PEER_URL,)
    advertise_client_urls: tuple[Url, ...] = (_DEFAULT_CLIENT_URL,)
    initial_cluster: tuple[ClusterMember, ...] = (ClusterMember(name="default", peer_urls=(_DEFAULT_PEER_URL,)),)
    initial_cluster_state: str = "new"
    initial_cluster_token: str = "etcd-cluster"
    strict_reconfig_check: bool = True
    max_learners: int = 1

    quota_backend_bytes: int = 2 * _GIB
    max_request_bytes: int = 1536 * 1024
    max_txn_ops: int = 128
    max_concurrent_streams: int = 2**32 - 1
    max_concurrent_requests: int = 4096
    max_open_streams: int = 4096
    max_connections: int = 4096
    max_http_connections: int = 256
    max_peer_connections: int = 256
    max_inflight_requests: int = 4096
    max_inflight_bytes: int = 16 * _MIB
    max_answer_bytes: int = 16 * _MIB
    max_uncommitted_bytes: int = 64 * _MIB
    watch_stream_bytes: int = _MIB
    watch_buffer_bytes: int = 16 * _MIB
    max_watchers: int = 100_000
    peer_queue_bytes: int = 32 * _MIB
    backend_buffer_bytes: int = 8 * _MIB
    memory_budget_bytes: int = 0
    log_window: LogWindowConfig = LogWindowConfig()
    wal_segment_bytes: int = 16 * _MIB
    wal_retain_bytes: int = 256 * _MIB
    wal_read_cache_bytes: int = 8 * _MIB
    backend_batch_interval_ms: int = 100
    backend_batch_limit: int = 10_000
    corrupt_check_time_s: float = 0.0
    initial_corrupt_check: bool = False

    grpc_keepalive_min_time_s: float = 5.0
    grpc_keepalive_interval_s: float = 7200.0
    grpc_keepalive_timeout_s: float = 20.0

    log_level: str = "info"
    log_outputs: tuple[str, ...] = ("default",)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_listeners()
        self._check_timing()
        self._check_cluster()
        self._check_limits()

    @property
    def wal_dir(self) -> Path:
        """Where the write-ahead log lives."""
        return self.dedicated_wal_dir if self.dedicated_wal_dir is not None else self.data_dir / "member" / "wal"

    @property
    def snap_dir(self) -> Path:
        """Where the store and snapshot files live."""
        return self.data_dir / "member" / "snap"

    @property
    def election_timeout_ticks(self) -> int:
        """The election timeout in ticks of one heartbeat interval."""
        return self.election_timeout_ms // self.heartbeat_interval_ms

    @property
    def election_timeout_s(self) -> float:
        """The election timeout in seconds."""
        return self.election_timeout_ms / 1000

    @property
    def request_timeout_s(self) -> float:
        """How long the server works on one request: 5 s for queueing, computing and disk, and two elections that may come between."""
        return 5.0 + 2 * self.election_timeout_s

    @property
    def receive_limit_bytes(self) -> int:
        """The largest message that is received at all."""
        return self.max_request_bytes + RECEIVE_HEADROOM_BYTES

    @property
    def peer_frame_bytes(self) -> int:
        """The largest frame that is received from another member: with a budget what it counts with, otherwise 16 MiB or more."""
        if self.memory_budget_bytes:
            return peer_frame_bytes(self.receive_limit_bytes)
        return max(16 * _MIB, 4 * self.max_request_bytes)

    @property
    def calls_per_connection(self) -> int:
        """How many calls one connection may have open, whatever `max_concurrent_streams` says: all streams, half of the others, or 100."""
        return max(100, self.max_open_streams, self.max_concurrent_requests // 2)

    @property
    def stream_window_bytes(self) -> int:
        """What a client may send ahead on one call: less with a budget, as it is a part of what a waiting call costs."""
        return BUDGET_WINDOW_BYTES if self.memory_budget_bytes else 16 * 1024

    def beyond_budget_bytes(self, peers: int) -> int:
        """By how much a cluster with so many other members exceeds what `--memory-budget` counted with; 0 if it doesn't."""
        more = peers - other_members(self.initial_cluster)
        if not self.memory_budget_bytes or more <= 0:
            return 0
        return more * (self.peer_queue_bytes + peer_receive_bytes(self.receive_limit_bytes))

    @property
    def http_urls(self) -> tuple[Url, ...]:
        """Every URL that serves HTTP, each once, those of clients first."""
        return tuple(dict.fromkeys(self.listen_client_http_urls + self.listen_metrics_urls))

    def check_bootstrap(self) -> None:
        """Check what matters on the first start only: that the advertised peer URLs are those that the initial cluster knows.

        Raises `ConfigError`.
        """
        known = next(member.peer_urls for member in self.initial_cluster if member.name == self.name)
        if set(known) != set(self.initial_advertise_peer_urls):
            raise ConfigError(
                f"--initial-cluster has {self.name}={format_urls(known)} but --initial-advertise-peer-urls is "
                f"{format_urls(self.initial_advertise_peer_urls)}: both must name the same URLs"
            )

    def _check_names(self) -> None:
        if not self.name:
            raise ConfigError("--name must not be empty")
        if any(character in self.name for character in ",="):
            raise ConfigError(f"--name[{self.name}] must not contain ',' or '='")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigError(f"--log-level[{self.log_level}] must be one of {', '.join(_LOG_LEVELS)}")
        if not self.log_outputs:
            raise ConfigError("--log-outputs must name at least one of stderr, stdout or a file path")

    def _check_listeners(self) -> None:
        taken: dict[tuple[str, int], str] = {}
        for flag, urls, required in (
            ("listen-peer-urls", self.listen_peer_urls, True),
            ("listen-client-urls", self.listen_client_urls, True),
            ("listen-client-http-urls", self.listen_client_http_urls, False),
            ("listen-metrics-urls", self.listen_metrics_urls, False),
        ):
            if required and not urls:
                raise ConfigError(f"--{flag} must not be empty")
            for url in urls:
                if not url.can_be_bound:
                    raise ConfigError(f"--{flag}: {url} can't be listened on: its host must be an IP address or localhost")
                owner = taken.setdefault((url.bind_host, url.port), flag)
                if owner != flag and url.port != 0 and not {owner, flag} <= {"listen-client-http-urls", "listen-metrics-urls"}:
                    raise ConfigError(f"--{owner} and --{flag} both use {url}; give each a port of its own")

    def _check_timing(self) -> None:
        heartbeat_ms, election_ms = self.heartbeat_interval_ms, self.election_timeout_ms
        if heartbeat_ms < 1:
            raise ConfigError(f"--heartbeat-interval[{heartbeat_ms}ms] must be at least 1ms")
        if 5 * heartbeat_ms > election_ms:
            raise ConfigError(f"--election-timeout[{election_ms}ms] must be at least 5 times --heartbeat-interval[{heartbeat_ms}ms]")
        if election_ms > _MAX_ELECTION_TIMEOUT_MS:
            raise ConfigError(f"--election-timeout[{election_ms}ms] must be at most {_MAX_ELECTION_TIMEOUT_MS}ms")
        for flag, value_s, least_s in (
            ("grpc-keepalive-min-time", self.grpc_keepalive_min_time_s, 0.0),
            ("grpc-keepalive-interval", self.grpc_keepalive_interval_s, 0.0),
            ("grpc-keepalive-timeout", self.grpc_keepalive_timeout_s, 0.0),
        ):
            if not least_s <= value_s <= 86_400:
                raise ConfigError(f"--{flag}[{value_s:g}s] must be between 0 and 24h")
        if self.corrupt_check_time_s < 0:
            raise ConfigError(f"--corrupt-check-time[{self.corrupt_check_time_s:g}s] must not be negative")

    def _check_cluster(self) -> None:
        if not self.advertise_client_urls:
            raise ConfigError("--advertise-client-urls must not be empty")
        if not self.initial_advertise_peer_urls:
            raise ConfigError("--initial-advertise-peer-urls must not be empty")
        if self.initial_cluster_state not in ("new", "existing"):
            raise ConfigError(f"--initial-cluster-state[{self.initial_cluster_state}] must be 'new' or 'existing'")
        if not self.initial_cluster_token:
            raise ConfigError("--initial-cluster-token must not be empty")
        if not self.initial_cluster:
            raise ConfigError("--initial-cluster must name at least this member")
        if self.name not in (member.name for member in self.initial_cluster):
            names = ", ".join(member.name for member in self.initial_cluster)
            raise ConfigError(f"--initial-cluster names {names}, but not this member: --name is {self.name!r}")
        _check_range("max-learners", self.max_learners, 1, 1000)

    def _check_limits(self) -> None:
        _check_range("max-request-bytes", self.max_request_bytes, 1024, 100 * _MIB)
        if self.quota_backend_bytes >= 0:  # negative: no quota
            _check_range("quota-backend-bytes", self.quota_backend_bytes, _MIB, 1 << 42)
        _check_range("max-txn-ops", self.max_txn_ops, 1, 1 << 20)
        _check_range("max-concurrent-streams", self.max_concurrent_streams, 1, 2**32 - 1)
        _check_range("max-concurrent-requests", self.max_concurrent_requests, 1, 1 << 20)
        _check_range("max-open-streams", self.max_open_streams, 1, 1 << 20)
        _check_range("max-connections", self.max_connections, 1, 1 << 20)
        _check_range("max-inflight-requests", self.max_inflight_requests, 1, 1 << 20)
        _check_range("max-inflight-bytes", self.max_inflight_bytes, self.max_request_bytes + RECEIVE_HEADROOM_BYTES, 1 << 36)
        _check_range("max-answer-bytes", self.max_answer_bytes, _MIB, 1 << 36)
        _check_range("watch-stream-bytes", self.watch_stream_bytes, 64 << 10, 1 << 30)
        _check_range("watch-buffer-bytes", self.watch_buffer_bytes, _MIB, 1 << 36)
        _check_range("max-watchers", self.max_watchers, 1, 10**7)
        _check_range("max-uncommitted-bytes", self.max_uncommitted_bytes, _MIB, 1 << 36)
        _check_range("peer-queue-bytes", self.peer_queue_bytes, _MIB, 1 << 36)
        _check_range("backend-buffer-bytes", self.backend_buffer_bytes, _MIB, 1 << 36)
        _check_range("wal-segment-bytes", self.wal_segment_bytes, 64 << 10, _GIB)
        _check_range("wal-retain-bytes", self.wal_retain_bytes, 0, 1 << 50)
        _check_range("wal-read-cache-bytes", self.wal_read_cache_bytes, _MIB, 1 << 36)
        _check_range("backend-batch-interval", self.backend_batch_interval_ms, 1, 60_000)
        _check_range("backend-batch-limit", self.backend_batch_limit, 1, 10**6)


def limits_in_force(config: ServerConfig) -> dict[str, int]:
    """The limits that `--memory-budget` stands for, as they are in force: for the log at the start."""
    return {
        "memory_budget_bytes": config.memory_budget_bytes,
        "log_window_bytes": config.log_window.max_bytes,
        "max_inflight_bytes": config.max_inflight_bytes,
        "max_answer_bytes": config.max_answer_bytes,
        "max_uncommitted_bytes": config.max_uncommitted_bytes,
        "watch_buffer_bytes": config.watch_buffer_bytes,
        "backend_buffer_bytes": config.backend_buffer_bytes,
        "peer_queue_bytes": config.peer_queue_bytes,
        "wal_read_cache_bytes": config.wal_read_cache_bytes,
        "max_connections": config.max_connections,
        "max_concurrent_requests": config.max_concurrent_requests,
        "max_open_streams": config.max_open_streams,
    }
