"""One figure for the memory of a member: how it is split, when it is refused, and that flags of their own win."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.config import ConfigError, Run, ServerConfig, parse
from kvserver.config.budget import (
    BASE_BYTES,
    LEAST_PEERS,
    MAX_BUDGET_BYTES,
    Budget,
    calls_bytes,
    derive,
    least_budget_bytes,
    peer_frame_bytes,
    peer_receive_bytes,
)
from kvserver.node.assembly import MAX_SIZE_PER_MSG_BYTES
from kvserver.node.proposal_batches import MAX_PROPOSAL_BATCH_BYTES
from kvserver.peer.inbound import BACK_LIMITS
from kvserver.peer.request_frames import MAX_REQUESTS_SIZE_BYTES

MIB = 1 << 20
RECEIVE_BYTES = ServerConfig().receive_limit_bytes
LIMITS = (
    "log_window_bytes",
    "inflight_bytes",
    "other_request_bytes",
    "answer_bytes",
    "uncommitted_bytes",
    "backend_buffer_bytes",
    "peer_queue_bytes",
    "wal_read_cache_bytes",
    "calls_bytes",
)

budgets = st.integers(0, 1 << 34)
requests = st.integers(1 << 16, 16 * MIB)
peer_counts = st.integers(0, 8)


def derived(extra_bytes: int, request_bytes: int, peers: int) -> Budget:
    return derive(least_budget_bytes(request_bytes, peers=peers) + extra_bytes, receive_limit_bytes=request_bytes, peers=peers)


def run_of(*arguments: str, **environment: str) -> Run:
    invocation = parse(arguments, environment)
    assert isinstance(invocation, Run)
    return invocation


@given(budgets, requests, peer_counts)
def test_the_parts_add_up_to_the_budget_but_for_rounding(extra_bytes: int, request_bytes: int, peers: int) -> None:
    budget = derived(extra_bytes, request_bytes, peers)
    assert 0 <= budget.total_bytes - budget.sum_bytes < len(budget.parts()) + budget.peers
    assert budget.parts()["base"] == BASE_BYTES


@given(budgets, budgets, requests, peer_counts)
def test_no_part_shrinks_when_the_budget_grows(one: int, other: int, request_bytes: int, peers: int) -> None:
    small, large = derived(min(one, other), request_bytes, peers), derived(max(one, other), request_bytes, peers)
    for limit in LIMITS:
        assert getattr(small, limit) <= getattr(large, limit), limit


@given(budgets, requests, peer_counts)
def test_every_part_holds_a_largest_request(extra_bytes: int, request_bytes: int, peers: int) -> None:
    budget = derived(extra_bytes, request_bytes, peers)
    for limit in LIMITS:
        assert getattr(budget, limit) >= min(request_bytes, 64 * MIB), limit


@given(budgets, requests, peer_counts)
def test_more_peers_never_make_a_part_larger(extra_bytes: int, request_bytes: int, peers: int) -> None:
    budget_bytes = least_budget_bytes(request_bytes, peers=9) + extra_bytes
    few = derive(budget_bytes, receive_limit_bytes=request_bytes, peers=peers)
    many = derive(budget_bytes, receive_limit_bytes=request_bytes, peers=peers + 1)
    assert many.peer_queue_bytes <= few.peer_queue_bytes
    assert many.log_window_bytes <= few.log_window_bytes


@given(budgets, requests, peer_counts)
def test_the_uncommitted_tail_holds_what_the_clients_of_all_members_have_under_way(extra: int, request_bytes: int, peers: int) -> None:
    budget = derived(extra, request_bytes, peers)
    assert budget.uncommitted_bytes >= (budget.peers + 1) * budget.inflight_bytes


@given(budgets, budgets, requests, peer_counts)
def test_calls_and_connections_cost_no_more_than_their_part_and_never_become_fewer(one: int, other: int, size: int, peers: int) -> None:
    small, large = derived(min(one, other), size, peers), derived(max(one, other), size, peers)
    cost = calls_bytes(connections=small.connections, requests=small.requests, streams=small.streams)
    assert 0.9 * small.calls_bytes < cost <= small.calls_bytes
    for count in ("connections", "requests", "streams"):
        assert 0 < getattr(small, count) <= getattr(large, count)


def test_what_a_peer_may_send_is_what_the_peer_room_lets_in() -> None:
    assert ServerConfig(memory_budget_bytes=128_000_000).peer_frame_bytes == peer_frame_bytes(RECEIVE_BYTES)
    assert peer_frame_bytes(RECEIVE_BYTES) >= MAX_SIZE_PER_MSG_BYTES + ServerConfig().max_request_bytes
    assert MAX_PROPOSAL_BATCH_BYTES <= MAX_SIZE_PER_MSG_BYTES
    assert peer_receive_bytes(RECEIVE_BYTES) - peer_frame_bytes(RECEIVE_BYTES) == MAX_REQUESTS_SIZE_BYTES + BACK_LIMITS.bulk_size_bytes


def test_a_member_alone_counts_as_one_of_three() -> None:
    budget = derive(256 * MIB, receive_limit_bytes=RECEIVE_BYTES, peers=0)
    assert budget == derive(256 * MIB, receive_limit_bytes=RECEIVE_BYTES, peers=LEAST_PEERS)


def test_the_shares_of_the_documented_example() -> None:
    parts = derive(128_000_000, receive_limit_bytes=RECEIVE_BYTES).parts()
    assert {name: round(part / 1e6, 1) for name, part in parts.items()} == {
        "base": 41.9,
        "log_window_and_pins": 7.3,
        "writes": 5.5,
        "other_requests": 8.4,
        "answers": 5.5,
        "watch": 1.8,
        "uncommitted": 16.4,
        "store_buffer_and_pages": 7.3,
        "peer_queues": 7.3,
        "from_peers": 8.4,
        "wal_read_cache": 3.6,
        "calls_and_connections": 14.6,
    }


def test_a_budget_that_is_too_small_is_refused_with_the_least_one() -> None:
    least_bytes = least_budget_bytes(RECEIVE_BYTES)
    assert least_bytes == 96 * MIB
    derive(least_bytes, receive_limit_bytes=RECEIVE_BYTES)
    with pytest.raises(ConfigError, match=rf"--memory-budget\[{least_bytes - 1}\] must be at least {least_bytes}: .*--max-request-bytes"):
        derive(least_bytes - 1, receive_limit_bytes=RECEIVE_BYTES)
    with pytest.raises(ConfigError, match="must be at most"):
        derive(MAX_BUDGET_BYTES + 1, receive_limit_bytes=RECEIVE_BYTES)
    with pytest.raises(ConfigError, match="must be at least"):
        parse(["--memory-budget=-1"], {})


def test_larger_requests_need_a_larger_budget() -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        parse(["--memory-budget=100MiB", "--max-request-bytes=10MiB"], {})
    assert run_of("--memory-budget=310MiB", "--max-request-bytes=10MiB").config.max_inflight_bytes > 10 * MIB


def test_the_flag_sets_the_limits_that_were_not_given() -> None:
    invocation = run_of("--memory-budget=128MB")
    config, budget = invocation.config, derive(128_000_000, receive_limit_bytes=RECEIVE_BYTES)
    assert invocation.warnings == ()
    assert config.memory_budget_bytes == 128_000_000
    assert config.log_window.max_bytes == budget.log_window_bytes
    assert config.max_inflight_bytes == budget.inflight_bytes
    assert config.max_answer_bytes == budget.answer_bytes
    assert config.max_uncommitted_bytes == budget.uncommitted_bytes
    assert config.backend_buffer_bytes == budget.backend_buffer_bytes
    assert config.peer_queue_bytes == budget.peer_queue_bytes
    assert run_of(ETCD_MEMORY_BUDGET="128MB").config == config


def test_flags_of_their_own_win() -> None:
    config = run_of("--memory-budget=128MB", "--log-window-bytes=4MiB", ETCD_PEER_QUEUE_BYTES="5MiB").config
    assert (config.log_window.max_bytes, config.peer_queue_bytes) == (4 * MIB, 5 * MIB)
    assert config.max_inflight_bytes == derive(128_000_000, receive_limit_bytes=RECEIVE_BYTES).inflight_bytes


def test_flags_that_break_the_budget_are_warned_of() -> None:
    invocation = run_of("--memory-budget=128MB", "--log-window-bytes=64MiB")
    assert invocation.config.log_window.max_bytes == 64 * MIB
    assert len(invocation.warnings) == 1
    assert "more than --memory-budget[128000000]" in invocation.warnings[0]


def test_the_members_of_the_initial_cluster_are_counted() -> None:
    cluster = ",".join(f"m{number}=http://10.0.0.{number}:2380" for number in range(1, 6))
    config = run_of(
        "--memory-budget=256MB", "--name=m1", f"--initial-cluster={cluster}", "--initial-advertise-peer-urls=http://10.0.0.1:2380"
    ).config
    assert config.peer_queue_bytes == derive(256_000_000, receive_limit_bytes=RECEIVE_BYTES, peers=4).peer_queue_bytes


def test_a_larger_cluster_has_room_for_the_writes_of_all_members_without_a_budget_too() -> None:
    def uncommitted_bytes(size: int, *flags: str) -> int:
        cluster = ",".join(f"m{number}=http://10.0.0.{number}:2380" for number in range(1, size + 1))
        initial = ("--name=m1", f"--initial-cluster={cluster}", "--initial-advertise-peer-urls=http://10.0.0.1:2380")
        return run_of(*initial, *flags).config.max_uncommitted_bytes

    assert [uncommitted_bytes(size) for size in (1, 3, 4, 5, 7)] == [64 * MIB, 64 * MIB, 64 * MIB, 80 * MIB, 112 * MIB]
    assert uncommitted_bytes(5, "--max-uncommitted-bytes=20MiB") == 20 * MIB
    assert uncommitted_bytes(3, "--max-inflight-bytes=40MiB") == 120 * MIB
    assert uncommitted_bytes(3, "--memory-budget=1GiB", "--max-inflight-bytes=100MiB") == 300 * MIB


def test_the_counts_follow_from_the_budget_and_flags_of_their_own_win() -> None:
    budget = derive(128_000_000, receive_limit_bytes=RECEIVE_BYTES)
    config = run_of("--memory-budget=128MB", "--max-connections=50").config
    assert (config.max_connections, config.max_concurrent_requests, config.max_open_streams) == (50, budget.requests, budget.streams)
    (warning,) = run_of("--memory-budget=128MB", "--max-concurrent-requests=4096").warnings
    assert "more than --memory-budget[128000000]" in warning


def test_a_cluster_that_grows_beyond_what_was_counted_is_known_by_how_much() -> None:
    config = run_of("--memory-budget=128MB").config
    each = config.peer_queue_bytes + peer_receive_bytes(RECEIVE_BYTES)
    assert [config.beyond_budget_bytes(peers) for peers in (0, 2, 3, 4)] == [0, 0, each, 2 * each]
    assert ServerConfig().beyond_budget_bytes(8) == 0


def test_without_the_flag_the_limits_are_their_own() -> None:
    assert run_of("--memory-budget=0").config == ServerConfig()
