"""The table of flags agrees with the configuration, the help text and docs/flags.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvserver.config import LogWindowConfig, Run, ServerConfig, help_text, parse
from kvserver.config.flags import FLAGS, Flag, Treatment, environment_name
from kvserver.config.render import markdown_tables
from kvserver.config.values import ValueKind, read_value

pytestmark = pytest.mark.docs

USED = [flag for flag in FLAGS if flag.treatment is Treatment.USED]
DOCS = Path(__file__).parents[3] / "docs" / "flags.md"

# Flags of the contract that this version must know (the bold ones and those that go with them).
CONTRACT = [
    "name",
    "data-dir",
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "snapshot-count",
    "snapshot-catchup-entries",
    "quota-backend-bytes",
    "max-request-bytes",
    "heartbeat-interval",
    "election-timeout",
    "wal-dir",
    "max-txn-ops",
    "max-concurrent-streams",
    "backend-batch-interval",
    "backend-batch-limit",
    "enable-grpc-gateway",
    "feature-gates",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "strict-reconfig-check",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "pre-vote",
    "max-learners",
    "force-new-cluster",
    "cert-file",
    "key-file",
    "trusted-ca-file",
    "client-cert-auth",
    "auto-tls",
    "peer-cert-file",
    "peer-key-file",
    "peer-trusted-ca-file",
    "peer-client-cert-auth",
    "peer-auto-tls",
    "auth-token",
    "bcrypt-cost",
    "listen-metrics-urls",
    "logger",
    "log-level",
    "log-outputs",
    "metrics",
    "config-file",
    "enable-v2",
    "experimental-initial-corrupt-check",
]


def default_of(flag: Flag) -> object:
    owner: type = ServerConfig
    field = flag.field
    if field.startswith("log_window."):
        owner, field = LogWindowConfig, field.removeprefix("log_window.")
    return next(f.default for f in dataclasses.fields(owner) if f.name == field)


def test_names_are_unique() -> None:
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


def test_every_flag_of_the_contract_is_known() -> None:
    assert {flag.name for flag in FLAGS} >= set(CONTRACT)


@pytest.mark.parametrize("flag", [flag for flag in USED if flag.default], ids=lambda flag: flag.name)
def test_stated_default_is_the_fields_default(flag: Flag) -> None:
    value = read_value(flag.kind, flag.default)
    if flag.name == "backend-batch-interval":
        value = round(float(str(value)) * 1000)
    assert value == default_of(flag)


@pytest.mark.parametrize("flag", USED, ids=lambda flag: flag.name)
def test_every_used_flag_fills_an_existing_field(flag: Flag) -> None:
    assert default_of(flag) is not None or flag.name == "wal-dir"


@pytest.mark.parametrize("flag", USED, ids=lambda flag: flag.name)
def test_every_used_flag_works_from_the_command_line_and_the_environment(flag: Flag) -> None:
    text = {ValueKind.TEXT: "x", ValueKind.INT: "7", ValueKind.BOOL: "false", ValueKind.LIST: "stderr"}.get(flag.kind, flag.default)
    samples = {
        "max-request-bytes": "1MiB",
        "listen-metrics-urls": "http://127.0.0.1:1",
        "listen-client-http-urls": "http://127.0.0.1:1",
        "name": "default",
        "max-inflight-bytes": "100MB",
        "election-timeout": "2000",
    }
    text = samples.get(flag.name, flag.choices[0] if flag.choices else text)
    more = ["--advertise-client-urls=http://a:1"] if flag.name == "listen-client-urls" else []
    by_flag = parse([f"--{flag.name}={text}", *more], {})
    by_variable = parse(more, {environment_name(flag.name): text})
    assert isinstance(by_flag, Run)
    assert by_flag == by_variable
    assert by_flag.warnings == ()
    gives_the_default = text == flag.default and flag.name != "listen-client-urls"
    assert (by_flag.config == ServerConfig()) == gives_the_default


def test_help_names_every_flag() -> None:
    text = help_text()
    assert [flag.name for flag in FLAGS if f"--{flag.name}" not in text] == []


def test_docs_hold_the_table_as_it_is() -> None:
    assert markdown_tables().strip() in DOCS.read_text(encoding="utf-8"), "paste what kvserver.config.render.markdown_tables() returns"
