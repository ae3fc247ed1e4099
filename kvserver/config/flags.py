"""The table of flags: the one place that knows a flag's name, kind, default, field and help.

Purpose: the parser, the environment, the help text and docs/flags.md all come from here.

Rules: a flag is *used* (it fills a field of the configuration), *accepted* (etcd knows it, it has no meaning here; nothing is said),
*ignored* (the same, with a warning), or *refused* (etcd knows it, to ignore it would be dangerous: the server does not start unless the
value is the one that asks for nothing). `default` is the text whose reading is the field's default; a test compares the two.

Source: etcd's configuration documentation, 3.4 to 3.6, for names and meanings.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from kvserver.config.values import ValueKind

__all__ = ["FLAGS", "Flag", "Group", "Treatment", "environment_name", "flag_named"]


class Group(Enum):
    """Where a flag stands in the help text."""

    MEMBER = "Member"
    CLUSTER = "Clustering"
    LIMITS = "Memory and limits (kvserver's own)"
    OBSERVABILITY = "Logging and monitoring"
    ACCEPTED = "Accepted for etcd's sake, without effect"
    REFUSED = "Not supported by this version (refused when set)"


class Treatment(Enum):
    """What the parser does with a flag that was given."""

    USED = "used"
    ACCEPTED = "accepted"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag.

    `field` is the configuration's field (`log_window.x` for a nested one); `reason` completes a warning or a refusal; `harmless` are the
    values with which a refused flag asks for nothing.
    """

    name: str
    kind: ValueKind
    default: str
    help: str
    group: Group
    treatment: Treatment = Treatment.USED
    field: str = ""
    choices: tuple[str, ...] = ()
    reason: str = ""
    harmless: tuple[str, ...] = ()


def environment_name(flag: str) -> str:
    """The environment variable that sets `flag`: `data-dir` is `ETCD_DATA_DIR`."""
    return "ETCD_" + flag.upper().replace("-", "_")


def _used(group: Group, name: str, kind: ValueKind, default: str, help_text: str, field: str = "", choices: tuple[str, ...] = ()) -> Flag:
    return Flag(name=name, kind=kind, default=default, help=help_text, group=group, field=field or name.replace("-", "_"), choices=choices)


def _member(name: str, kind: ValueKind, default: str, help_text: str, field: str = "") -> Flag:
    return _used(Group.MEMBER, name, kind, default, help_text, field)


def _cluster(name: str, kind: ValueKind, default: str, help_text: str, field: str = "", choices: tuple[str, ...] = ()) -> Flag:
    return _used(Group.CLUSTER, name, kind, default, help_text, field, choices)


def _limit(name: str, kind: ValueKind, default: str, help_text: str, field: str = "") -> Flag:
    return _used(Group.LIMITS, name, kind, default, help_text, field)


_USED: Final = (
    _member("name", ValueKind.TEXT, "default", "This member's name, as --initial-cluster and the member list show it."),
    _member("data-dir", ValueKind.TEXT, "", "Data directory (default: <name>.kvserver in the working directory)."),
    _member(
        "wal-dir", ValueKind.TEXT, "", "Directory of the write-ahead log (default: member/wal in the data directory).", "dedicated_wal_dir"
    ),
    _member("listen-peer-urls", ValueKind.URLS, "http://localhost:2380", "URLs to listen on for other members."),
    _member("listen-client-urls", ValueKind.URLS, "http://localhost:2379", "URLs to listen on for clients (gRPC)."),
    _member("listen-client-http-urls", ValueKind.URLS, "", "URLs for HTTP: /health, /livez, /readyz, /version, /metrics, /debug/raft."),
    _member("heartbeat-interval", ValueKind.MILLISECONDS, "100", "Time between heartbeats, in milliseconds.", "heartbeat_interval_ms"),
    _member(
        "election-timeout",
        ValueKind.MILLISECONDS,
        "1000",
        "Time without a leader before an election, in milliseconds; 5 heartbeats or more.",
        "election_timeout_ms",
    ),
    _member(
        "quota-backend-bytes",
        ValueKind.SIZE,
        "2GiB",
        "Largest size of the store; 0 stands for the default, a negative number for no quota.",
    ),
    _member("max-request-bytes", ValueKind.SIZE, "1572864", "Largest request of a client."),
    _member("max-txn-ops", ValueKind.INT, "128", "Most operations in one transaction."),
    _member(
        "max-concurrent-streams",
        ValueKind.INT,
        "4294967295",
        "Most calls that one client connection may have open; never more than --max-open-streams, half of --max-concurrent-requests or 100 "
        "(the most of them). More wait in the client.",
    ),
    _member("pre-vote", ValueKind.BOOL, "true", "Ask before an election, so that a returning member doesn't disturb the leader."),
    _member(
        "backend-batch-interval",
        ValueKind.DURATION,
        "100ms",
        "Longest time before applied writes are committed to the store.",
        "backend_batch_interval_ms",
    ),
    _member(
        "corrupt-check-time",
        ValueKind.DURATION,
        "0s",
        "Time between two checks of every page and row of this member's store, in the background; 0 for never.",
        "corrupt_check_time_s",
    ),
    _member("initial-corrupt-check", ValueKind.BOOL, "false", "Check every row of this member's store before serving, not only pages."),
    _member("backend-batch-limit", ValueKind.INT, "10000", "Most applied writes before they are committed to the store."),
    _member(
        "grpc-keepalive-min-time", ValueKind.DURATION, "5s", "Clients that ping more often are disconnected.", "grpc_keepalive_min_time_s"
    ),
    _member(
        "grpc-keepalive-interval",
        ValueKind.DURATION,
        "2h",
        "How often the server pings an idle client; 0 for never.",
        "grpc_keepalive_interval_s",
    ),
    _member(
        "grpc-keepalive-timeout",
        ValueKind.DURATION,
        "20s",
        "How long the server waits for the answer to a ping.",
        "grpc_keepalive_timeout_s",
    ),
    _cluster("initial-advertise-peer-urls", ValueKind.URLS, "http://localhost:2380", "This member's peer URLs, as the others reach it."),
    _cluster("advertise-client-urls", ValueKind.URLS, "http://localhost:2379", "This member's client URLs, as clients reach it."),
    _cluster(
        "initial-cluster",
        ValueKind.CLUSTER,
        "default=http://localhost:2380",
        "All members for the first start: name=url,name=url (default: this member alone).",
    ),
    _cluster(
        "initial-cluster-state",
        ValueKind.TEXT,
        "new",
        "'new' for the first start of a cluster, 'existing' to join one.",
        choices=("new", "existing"),
    ),
    _cluster("initial-cluster-token", ValueKind.TEXT, "etcd-cluster", "Tells clusters apart that were started from the same URLs."),
    _cluster("strict-reconfig-check", ValueKind.BOOL, "true", "Refuse membership changes that would lose the quorum."),
    _cluster("max-learners", ValueKind.INT, "1", "Most learners at a time."),
    _limit(
        "memory-budget",
        ValueKind.SIZE,
        "0",
        "Memory of this member, from which the other limits follow that are not given; 0 for their own defaults.",
        "memory_budget_bytes",
    ),
    _limit(
        "log-window-entries",
        ValueKind.INT,
        "100000",
        "Most raft entries kept in memory for members that are behind.",
        "log_window.max_entries",
    ),
    _limit(
        "log-window-bytes",
        ValueKind.SIZE,
        "64MiB",
        "Most bytes of raft entries kept in memory for members that are behind.",
        "log_window.max_bytes",
    ),
    _limit(
        "log-peer-grace",
        ValueKind.DURATION,
        "10s",
        "A member heard from within this time counts as active; entries are kept for it.",
        "log_window.peer_grace_s",
    ),
    _limit(
        "snapshot-catchup-entries",
        ValueKind.INT,
        "",
        "etcd's name for --log-window-entries: kept for members that are behind, never for nobody.",
        "log_window.max_entries",
    ),
    _limit(
        "experimental-snapshot-catchup-entries",
        ValueKind.INT,
        "",
        "The name that etcd 3.5 gives --snapshot-catchup-entries.",
        "log_window.max_entries",
    ),
    _limit("wal-segment-bytes", ValueKind.SIZE, "16MiB", "Size of a segment of the write-ahead log."),
    _limit(
        "wal-retain-bytes",
        ValueKind.SIZE,
        "256MiB",
        "Closed segments kept on disk, to feed members that are behind memory; 0 keeps and serves none.",
    ),
    _limit("wal-read-cache-bytes", ValueKind.SIZE, "8MiB", "Memory for entries read back from disk, for all members that are behind."),
    _limit("max-connections", ValueKind.INT, "4096", "Most connections of clients; fewer if the process may not open that many files."),
    _limit(
        "max-concurrent-requests",
        ValueKind.INT,
        "4096",
        "Most unary calls being served at a time; more are refused with `too many requests`. gRPC holds twice as many before that; "
        "of a burst that is even more it cuts calls off, as canceled.",
    ),
    _limit("max-open-streams", ValueKind.INT, "4096", "Most streaming calls open at a time; more are refused with `too many requests`."),
    _limit(
        "max-inflight-requests",
        ValueKind.INT,
        "4096",
        "Most writes waiting for the cluster at a time; more: `too many requests`.",
    ),
    _limit(
        "max-inflight-bytes",
        ValueKind.SIZE,
        "16MiB",
        "Most bytes of writes being received or waiting for the cluster; more wait. Below 4MiB they are received one at a time.",
    ),
    _limit(
        "max-answer-bytes",
        ValueKind.SIZE,
        "16MiB",
        "Most bytes of answers being built or sent; more wait, a larger one goes alone. An eighth is for answers up to 64KiB only.",
    ),
    _limit(
        "max-uncommitted-bytes",
        ValueKind.SIZE,
        "64MiB",
        "Most bytes of entries that a leader holds uncommitted, or any member committed and not yet applied; more wait. "
        "As much of what other members forward may wait on a leader; each keeps what is beyond its share. "
        "By default at least --max-inflight-bytes for each member of --initial-cluster.",
    ),
    _limit(
        "watch-stream-bytes",
        ValueKind.SIZE,
        "1MiB",
        "Most bytes of events that wait for the client of one watch stream; beyond it its watchers are told later, from the history.",
    ),
    _limit("watch-buffer-bytes", ValueKind.SIZE, "16MiB", "Most bytes of events that wait for the clients of all watch streams; as above."),
    _limit("max-watchers", ValueKind.INT, "100000", "Most watchers at a time; more are refused."),
    _limit("peer-queue-bytes", ValueKind.SIZE, "32MiB", "Most bytes queued to one member; more are dropped, and sent again later."),
    _limit("backend-buffer-bytes", ValueKind.SIZE, "8MiB", "Most bytes applied and not yet committed to the store; then applying waits."),
    _used(Group.OBSERVABILITY, "listen-metrics-urls", ValueKind.URLS, "", "Further URLs to listen on for /metrics and /health."),
    _used(
        Group.OBSERVABILITY,
        "log-level",
        ValueKind.TEXT,
        "info",
        "Least severity that is logged.",
        choices=("debug", "info", "warn", "error", "dpanic", "panic", "fatal"),
    ),
    _used(Group.OBSERVABILITY, "log-outputs", ValueKind.LIST, "default", "Where logs go: stderr (default), stdout or file paths."),
)

_ACCEPTED: Final = tuple(
    Flag(name=name, kind=kind, default=default, help=help_text, group=Group.ACCEPTED, treatment=Treatment.ACCEPTED, choices=choices)
    for name, kind, default, help_text, choices in (
        ("logger", ValueKind.TEXT, "zap", "One JSON object per line, as zap writes it; there is no other.", ("zap",)),
        ("metrics", ValueKind.TEXT, "basic", "The histograms of 'extensive' are always there.", ("basic", "extensive")),
    )
)


def _ignored(name: str, kind: ValueKind, reason: str) -> Flag:
    return Flag(
        name=name,
        kind=kind,
        default="",
        help=reason[0].upper() + reason[1:] + ".",
        group=Group.ACCEPTED,
        treatment=Treatment.IGNORED,
        reason=reason,
    )


_GONE: Final = "it has no counterpart in kvserver"
_IGNORED: Final = (
    _ignored(
        "snapshot-count",
        ValueKind.INT,
        "the store is the snapshot and the raft log is compacted after every apply; --log-window-entries bounds what is kept",
    ),
    _ignored("max-snapshots", ValueKind.INT, "the store is the snapshot, there are no others to keep"),
    _ignored("experimental-corrupt-check-time", ValueKind.TEXT, "it is called --corrupt-check-time here, as in etcd 3.6"),
    _ignored("experimental-initial-corrupt-check", ValueKind.BOOL, "it is called --initial-corrupt-check here"),
    _ignored("max-wals", ValueKind.INT, "closed segments are kept by bytes: --wal-retain-bytes"),
    *(
        _ignored(name, ValueKind.BOOL, _GONE)
        for name in ("enable-v2", "enable-grpc-gateway", "enable-pprof", "initial-election-tick-advance")
    ),
    *(_ignored(name, ValueKind.BOOL, _GONE) for name in ("socket-reuse-address", "socket-reuse-port", "enable-log-rotation", "debug")),
    *(
        _ignored(name, ValueKind.TEXT, _GONE)
        for name in (
            "backend-bbolt-freelist-type",
            "cors",
            "host-whitelist",
            "feature-gates",
            "raft-read-timeout",
            "raft-write-timeout",
            "log-format",
            "log-package-levels",
            "log-rotation-config-json",
            "v2-deprecation",
            "bcrypt-cost",
            "auth-token-ttl",
            "max-concurrent-compactions",
            "compaction-batch-limit",
            "compaction-sleep-interval",
            "watch-progress-notify-interval",
            "warning-apply-duration",
            "bootstrap-defrag-threshold-megabytes",
            "downgrade-check-time",
            "compact-hash-check-time",
            "distributed-tracing-address",
            "distributed-tracing-service-name",
            "distributed-tracing-instance-id",
            "distributed-tracing-sampling-rate",
            "warning-unary-request-duration",
            "experimental-compact-hash-check-time",
            "experimental-compaction-batch-limit",
            "experimental-compaction-sleep-interval",
            "experimental-watch-progress-notify-interval",
            "experimental-downgrade-check-time",
            "experimental-warning-apply-duration",
            "experimental-warning-unary-request-duration",
            "experimental-bootstrap-defrag-threshold-megabytes",
            "experimental-max-learners",
            "experimental-distributed-tracing-address",
            "experimental-distributed-tracing-service-name",
            "experimental-distributed-tracing-instance-id",
            "experimental-distributed-tracing-sampling-rate",
            "experimental-backend-bbolt-freelist-type",
            "experimental-enable-v2v3",
        )
    ),
    *(
        _ignored(name, ValueKind.BOOL, _GONE)
        for name in (
            "enable-distributed-tracing",
            "memory-mlock",
            "stop-grpc-service-on-defrag",
            "experimental-compact-hash-check-enabled",
            "experimental-enable-lease-checkpoint",
            "experimental-enable-lease-checkpoint-persist",
            "experimental-enable-distributed-tracing",
            "experimental-memory-mlock",
            "experimental-txn-mode-write-with-shared-buffer",
            "experimental-stop-grpc-service-on-defrag",
            "experimental-peer-skip-client-san-verification",
        )
    ),
)


def _refused(name: str, kind: ValueKind, reason: str, harmless: tuple[str, ...] = ("",)) -> Flag:
    return Flag(
        name=name,
        kind=kind,
        default="",
        help=reason[0].upper() + reason[1:] + ".",
        group=Group.REFUSED,
        treatment=Treatment.REFUSED,
        reason=reason,
        harmless=harmless,
    )


_TLS: Final = "TLS is not supported by this version of kvserver"
_DISCOVERY: Final = "discovery is not supported by this version of kvserver; list the members in --initial-cluster"
_TLS_TEXT_FLAGS: Final = (
    "cert-file",
    "key-file",
    "trusted-ca-file",
    "client-crl-file",
    "client-cert-file",
    "client-key-file",
    "client-cert-allowed-hostname",
    "ca-file",
    "peer-cert-file",
    "peer-key-file",
    "peer-trusted-ca-file",
    "peer-crl-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-ca-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "self-signed-cert-validity",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
)
_REFUSED: Final = (
    *(_refused(name, ValueKind.TEXT, _TLS) for name in _TLS_TEXT_FLAGS),
    *(_refused(name, ValueKind.BOOL, _TLS) for name in ("client-cert-auth", "auto-tls", "peer-client-cert-auth", "peer-auto-tls")),
    _refused("auth-token", ValueKind.TEXT, "authentication is not supported by this version of kvserver", ("", "simple")),
    _refused(
        "auto-compaction-retention",
        ValueKind.TEXT,
        "automatic compaction is not supported by this version of kvserver; compact with `kvctl compaction`",
        ("", "0", "0s", "0m", "0h"),
    ),
    _refused(
        "auto-compaction-mode",
        ValueKind.TEXT,
        "automatic compaction is not supported by this version of kvserver",
        ("", "periodic", "revision"),
    ),
    _refused("force-new-cluster", ValueKind.BOOL, "a new cluster can't be forced by this version of kvserver"),
    _refused("unsafe-no-fsync", ValueKind.BOOL, "kvserver does not acknowledge what is not on disk"),
    _refused(
        "config-file", ValueKind.TEXT, "configuration files are not supported by this version of kvserver; use flags or ETCD_* variables"
    ),
    *(
        _refused(name, ValueKind.TEXT, _DISCOVERY)
        for name in ("discovery", "discovery-srv", "discovery-srv-name", "discovery-proxy", "dns-domain")
    ),
    *(_refused(name, ValueKind.TEXT, _DISCOVERY, ("", "exit", "proxy")) for name in ("discovery-fallback",)),
    _refused("proxy", ValueKind.TEXT, "the v2 proxy is not supported by kvserver", ("", "off")),
)

FLAGS: Final[tuple[Flag, ...]] = _USED + _ACCEPTED + _IGNORED + _REFUSED
_BY_NAME: Final = {flag.name: flag for flag in FLAGS}


def flag_named(name: str) -> Flag | None:
    """The flag of that name, or None."""
    return _BY_NAME.get(name)
