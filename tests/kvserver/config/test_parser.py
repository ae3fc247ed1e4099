"""Command lines and environments, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.config import (
    ClusterMember,
    ConfigError,
    HelpRequested,
    Run,
    ServerConfig,
    Url,
    UsageError,
    VersionRequested,
    parse,
    version_text,
)


def config_of(*arguments: str, **environment: str) -> ServerConfig:
    invocation = parse(arguments, environment)
    assert isinstance(invocation, Run)
    return invocation.config


def error_of(*arguments: str, **environment: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(arguments, environment)
    assert "\n" not in str(caught.value)
    return caught.value


def test_no_arguments_is_a_single_node_on_the_loopback() -> None:
    config = config_of()
    assert config == ServerConfig()
    assert config.data_dir == Path("default.kvserver")
    assert [url.bind_host for url in config.listen_client_urls] == ["127.0.0.1"]
    assert config.listen_client_urls[0].port == 2379
    assert config.wal_dir == Path("default.kvserver/member/wal")
    assert config.snap_dir == Path("default.kvserver/member/snap")
    assert config.request_timeout_s == 7.0
    assert config.receive_limit_bytes == 2 * 1024 * 1024
    assert config.election_timeout_ticks == 10
    config.check_bootstrap()


@pytest.mark.parametrize("arguments", [["--name", "a"], ["--name=a"], ["-name", "a"], ["-name=a"], ["--name=b", "--name=a"]])
def test_one_or_two_dashes_and_both_ways_to_give_a_value(arguments: list[str]) -> None:
    config = config_of(*arguments)
    assert config.name == "a"
    assert config.data_dir == Path("a.kvserver")
    assert config.initial_cluster == (ClusterMember(name="a", peer_urls=(Url(host="localhost", port=2380),)),)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--pre-vote"], True), (["--pre-vote=false"], False), (["--pre-vote=F"], False), (["--pre-vote=1"], True), (["-pre-vote=0"], False)],
)
def test_booleans_are_read_as_go_reads_them(arguments: list[str], expected: bool) -> None:
    assert config_of(*arguments).pre_vote is expected


def test_a_boolean_does_not_take_the_next_argument() -> None:
    error = error_of("--pre-vote", "false")
    assert error.exit_code == 1
    assert str(error) == "'false' is not a valid flag"


def test_member_and_cluster_flags_of_a_three_node_cluster() -> None:
    cluster = "kv1=http://kv1:2380,kv2=http://kv2:2380,kv3=http://kv3:2380"
    config = config_of(
        "--name=kv2",
        "--data-dir=/data",
        "--wal-dir=/wal",
        "--listen-peer-urls=http://0.0.0.0:2380",
        "--listen-client-urls=http://0.0.0.0:2379,http://[::1]:2379",
        "--advertise-client-urls=http://kv2:2379",
        "--initial-advertise-peer-urls=http://kv2:2380",
        f"--initial-cluster={cluster}",
        "--initial-cluster-state=existing",
        "--initial-cluster-token=t",
        "--heartbeat-interval=50",
        "--election-timeout=500",
        "--log-window-bytes=1MiB",
        "--snapshot-catchup-entries=5000",
        "--log-peer-grace=2s",
        "--quota-backend-bytes=0",
        "--backend-batch-interval=10ms",
    )
    assert [member.name for member in config.initial_cluster] == ["kv1", "kv2", "kv3"]
    assert [str(url) for url in config.listen_client_urls] == ["http://0.0.0.0:2379", "http://[::1]:2379"]
    assert config.wal_dir == Path("/wal")
    assert (config.log_window.max_entries, config.log_window.max_bytes, config.log_window.peer_grace_s) == (5000, 1 << 20, 2.0)
    assert config.quota_backend_bytes == 2 << 30
    assert config.backend_batch_interval_ms == 10
    config.check_bootstrap()


def test_a_negative_quota_is_none_and_small_ones_are_taken() -> None:
    assert config_of("--quota-backend-bytes=-1").quota_backend_bytes == -1
    assert config_of("--quota-backend-bytes=1MiB").quota_backend_bytes == 1 << 20


def test_a_member_may_have_several_peer_urls() -> None:
    config = config_of(
        "--name=a",
        "--initial-cluster=a=http://10.0.0.1:1,b=http://10.0.0.3:1,a=http://10.0.0.2:1",
        "--initial-advertise-peer-urls=http://10.0.0.2:1,http://10.0.0.1:1",
    )
    assert [str(url) for url in config.initial_cluster[0].peer_urls] == ["http://10.0.0.1:1", "http://10.0.0.2:1"]
    config.check_bootstrap()


def test_advertised_peer_urls_must_match_the_initial_cluster_on_the_first_start_only() -> None:
    config = config_of("--name=a", "--initial-cluster=a=http://10.0.0.1:1", "--initial-advertise-peer-urls=http://10.0.0.9:1")
    with pytest.raises(ConfigError, match=r"--initial-cluster has a=http://.* but --initial-advertise-peer-urls is http://"):
        config.check_bootstrap()


def test_environment_sets_flags() -> None:
    config = config_of(
        ETCD_NAME="a", ETCD_DATA_DIR="/data", ETCD_PRE_VOTE="false", ETCD_LOG_WINDOW_ENTRIES="10", PATH="/bin", ETCD_ELECTION_TIMEOUT=""
    )
    assert (config.name, config.data_dir, config.pre_vote, config.log_window.max_entries) == ("a", Path("/data"), False, 10)
    assert config.election_timeout_ms == 1000


def test_the_same_flag_in_the_environment_and_on_the_command_line_is_fatal() -> None:
    error = error_of("--name=a", ETCD_NAME="a")
    assert error.exit_code == 1
    assert str(error) == "environment variable ETCD_NAME is shadowed by the flag --name: unset one of them"


def test_bad_value_in_the_environment_exits_with_1() -> None:
    error = error_of(ETCD_ELECTION_TIMEOUT="soon")
    assert error.exit_code == 1
    assert "ETCD_ELECTION_TIMEOUT: 'soon' is not an integer" in str(error)


def test_unknown_variables_and_flags_without_counterpart_warn() -> None:
    invocation = parse(
        ["--enable-v2=true", "--snapshot-count", "100", "--experimental-new", "x", "--experimental-b", "--name=a", "--experimental-c=1"],
        {"ETCD_PORT": "tcp://1", "ETCD_ENABLE_PPROF": "true", "ETCDCTL_API": "3"},
    )
    assert isinstance(invocation, Run)
    assert invocation.config.name == "a"
    warnings = "\n".join(invocation.warnings)
    for text in (
        "--enable-v2 is ignored",
        "--snapshot-count is ignored: the store is the snapshot",
        "--experimental-new is ignored",
        "--experimental-b is ignored",
        "--experimental-c is ignored",
        "ETCD_PORT is not known",
        "ETCD_ENABLE_PPROF is ignored",
    ):
        assert text in warnings
    assert len(invocation.warnings) == 7


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--cert-file=/x", "TLS is not supported"),
        ("--peer-auto-tls", "TLS is not supported"),
        ("--client-cert-auth=true", "TLS is not supported"),
        ("--auth-token=jwt", "authentication is not supported"),
        ("--config-file=/x", "configuration files are not supported"),
        ("--force-new-cluster", "can't be forced"),
        ("--auto-compaction-retention=1h", "automatic compaction is not supported"),
        ("--discovery=http://x", "--initial-cluster"),
        ("--unsafe-no-fsync", "not on disk"),
    ],
)
def test_what_would_be_dangerous_to_ignore_is_refused(argument: str, reason: str) -> None:
    error = error_of(argument)
    assert error.exit_code == 1
    assert reason in str(error)
    assert argument.partition("=")[0] in str(error)


@pytest.mark.parametrize(
    "argument",
    [
        "--cert-file=",
        "--auto-tls=false",
        "--auth-token=simple",
        "--auto-compaction-retention=0",
        "--auto-compaction-mode=revision",
        "--logger=zap",
    ],
)
def test_refused_flags_that_ask_for_nothing_are_let_through(argument: str) -> None:
    assert config_of(argument) == ServerConfig()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["-help"], ["--name=a", "--help"]])
def test_help_is_requested(arguments: list[str]) -> None:
    assert isinstance(parse(arguments, {}), HelpRequested)


def test_version_is_requested() -> None:
    assert isinstance(parse(["--version"], {}), VersionRequested)
    assert isinstance(parse(["--version=false"], {}), Run)
    assert version_text().splitlines()[0].startswith("kvserver Version: ")
    assert version_text().splitlines()[1] == "etcd API Version: 3.6.0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nonsense"], "flag provided but not defined: -nonsense"),
        (["--nonsense=1"], "flag provided but not defined: -nonsense"),
        (["--data-dri", "x"], "did you mean --data-dir?"),
        (["--name"], "flag needs an argument: --name"),
        (["---name=a"], "bad flag syntax: ---name=a"),
        (["--=a"], "bad flag syntax: --=a"),
        (["--election-timeout=x"], "invalid value for --election-timeout: 'x' is not an integer"),
        (["--pre-vote=maybe"], "is not a boolean"),
        (["--log-window-bytes=1XB"], "is not a size"),
        (["--log-peer-grace=10"], "is not a duration"),
        (["--initial-cluster-state=old"], "'old' is not one of new, existing"),
        (["--log-level=loud"], "is not one of debug, info"),
        (["--logger=capnslog"], "is not one of zap"),
        (["--listen-peer-urls=localhost:2380"], "URL must have the form http://host:port"),
        (["--listen-peer-urls=http://localhost"], "with a port"),
        (["--listen-peer-urls=http://localhost:99999"], "with a port from 0 to 65535"),
        (["--listen-peer-urls=http://:2380"], "http://host:port"),
        (["--listen-peer-urls=http://a b:1"], "blanks"),
        (["--listen-peer-urls=http://[::1:1"], "--listen-peer-urls"),
        (["--listen-peer-urls=http://localhost:1/path"], "must not contain a path"),
        (["--listen-peer-urls=http://u:p@localhost:1"], "must not contain a user"),
        (["--listen-peer-urls=https://localhost:1"], "TLS is not supported"),
        (["--listen-peer-urls=unix://localhost:1"], "unix sockets are not supported"),
        (["--listen-peer-urls=http://127.0.0.1:1,http://127.0.0.1:1"], "is given twice"),
        (["--initial-cluster=a"], "expected name=http://host:port"),
        (["--initial-cluster==http://a:1"], "expected name=http://host:port"),
        (["--initial-cluster=a=http://h:1,b=http://h:1"], "given twice (for 'a' and 'b')"),
    ],
)
def test_a_line_that_cannot_be_read_exits_with_2(arguments: list[str], text: str) -> None:
    error = error_of(*arguments)
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert text in str(error)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--listen-client-urls=http://127.0.0.1:1"], "--listen-client-urls needs --advertise-client-urls beside it"),
        (
            ["--listen-peer-urls=http://example.com:1"],
            "http://example.com:1 can't be listened on: its host must be an IP address or localhost",
        ),
        (["--listen-peer-urls="], "--listen-peer-urls must not be empty"),
        (["--advertise-client-urls="], "--advertise-client-urls must not be empty"),
        (["--initial-advertise-peer-urls="], "--initial-advertise-peer-urls must not be empty"),
        (["--name="], "--name must not be empty"),
        (["--name=a,b"], "must not contain"),
        (["--initial-cluster=a=http://h:1"], "--initial-cluster names a, but not this member: --name is 'default'"),
        (["--initial-cluster-token="], "--initial-cluster-token must not be empty"),
        (
            ["--election-timeout=400"],
            "--election-timeout[400ms] must be at least 5 times --heartbeat-interval[100ms]",
        ),
        (["--election-timeout=60000"], "--election-timeout[60000ms] must be at most 50000ms"),
        (["--heartbeat-interval=0"], "--heartbeat-interval[0ms] must be at least 1ms"),
        (["--max-request-bytes=10"], "--max-request-bytes[10] must be between"),
        (["--quota-backend-bytes=1000"], "--quota-backend-bytes[1000] must be between"),
        (["--log-window-entries=0"], "--log-window-entries[0] must be between"),
        (["--snapshot-catchup-entries=0"], "--snapshot-catchup-entries[0] must be between"),
        (["--experimental-snapshot-catchup-entries=-1"], "--experimental-snapshot-catchup-entries[-1] must be between"),
        (["--log-peer-grace=0"], "--log-peer-grace[0s] must be between"),
        (["--max-inflight-bytes=1MiB"], "--max-inflight-bytes[1048576] must be between"),
        (["--listen-metrics-urls=http://127.0.0.1:2379"], "both use http://127.0.0.1:2379"),
        (["--listen-peer-urls=http://localhost:2379"], "give each a port of its own"),
        (["--snapshot-catchup-entries=5", "--log-window-entries=5"], "give one of them"),
        (["--log-outputs=,"], "--log-outputs must name"),
        (["serve"], "'serve' is not a valid flag"),
        (["--", "x"], "'x' is not a valid flag"),
        (["-"], "'-' is not a valid flag"),
    ],
)
def test_a_configuration_that_cannot_be_used_exits_with_1(arguments: list[str], text: str) -> None:
    error = error_of(*arguments)
    assert error.exit_code == 1
    assert text in str(error)


def test_http_urls_are_listed_once() -> None:
    config = config_of("--listen-client-http-urls=http://127.0.0.1:1", "--listen-metrics-urls=http://127.0.0.1:1,http://127.0.0.1:2")
    assert [url.port for url in config.http_urls] == [1, 2]


@given(
    st.lists(
        st.text(alphabet="-=ab1,:/. n\0é", max_size=12) | st.sampled_from(["--name", "-h", "--pre-vote", "--listen-peer-urls"]), max_size=5
    )
)
def test_any_line_is_either_read_or_refused_in_one_line(arguments: list[str]) -> None:
    refusal = refusal_of(arguments)
    assert refusal is None or (refusal.exit_code in (1, 2) and len(str(refusal).splitlines()) == 1)


def refusal_of(arguments: list[str]) -> ConfigError | None:
    try:
        parse(arguments, {})
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("arguments", "environment", "max_entries"),
    [
        ([], {}, 100_000),
        (["--snapshot-catchup-entries=5000"], {}, 5000),
        (["--experimental-snapshot-catchup-entries=5000"], {}, 5000),
        ([], {"ETCD_SNAPSHOT_CATCHUP_ENTRIES": "5000"}, 5000),
        (["--snapshot-count=10000"], {}, 100_000),
        ([], {"ETCD_SNAPSHOT_COUNT": "10000"}, 100_000),
    ],
)
def test_etcds_catch_up_entries_are_the_entry_cap_only_when_given(
    arguments: list[str], environment: dict[str, str], max_entries: int
) -> None:
    invocation = parse(arguments, environment)
    assert isinstance(invocation, Run)
    assert invocation.config.log_window.max_entries == max_entries
    is_count = any("COUNT" in name.upper() for name in (*arguments, *environment))
    explained = [text for text in invocation.warnings if "the raft log is compacted after every apply; --log-window-entries bounds" in text]
    assert len(explained) == is_count
