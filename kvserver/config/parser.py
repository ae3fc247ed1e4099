"""From a command line and an environment to a `ServerConfig`.

Purpose: reads flags as Go's flag package does (`-name x`, `--name x`, `--name=x`, `--flag`, `--flag=false`, the last one wins, `--` ends
the flags), then `ETCD_*` variables, and derives what depends on other flags.

Rules
- The same flag on the command line and in the environment is an error (exit 1): nobody should have to guess which one wins.
- An empty variable is as good as none. An unknown `ETCD_*` variable is a warning (Kubernetes makes some for a service named etcd).
- Client URLs that are listened on must be advertised: `--listen-client-urls` without `--advertise-client-urls` is an error (exit 1).
- `--initial-cluster` defaults to this member alone, at its advertised peer URLs; `--initial-advertise-peer-urls` to the default URL.
- `--help` and `--version` are answered whatever else is on the line before an error.

Nothing is printed and nothing exits here. Source: etcd's configuration documentation; Go's flag package.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kvserver.config.budget import calls_bytes, derive, other_members
from kvserver.config.errors import ConfigError, UsageError, ValueSyntaxError
from kvserver.config.flags import FLAGS, Flag, Treatment, environment_name, flag_named
from kvserver.config.model import ETCD_API_VERSION, RECEIVE_HEADROOM_BYTES, LogWindowConfig, ServerConfig, check_window_entries
from kvserver.config.urls import ClusterMember, Url
from kvserver.config.values import ValueKind, read_value
from kvserver.version import __version__

__all__ = ["HelpRequested", "Invocation", "Run", "VersionRequested", "parse", "version_text"]

_HELP_NAMES: Final = frozenset({"h", "help"})
_ENVIRONMENT_PREFIX: Final = "ETCD_"
_EXPERIMENTAL: Final = "experimental-"
_ENTRY_CAP_NAMES: Final = ("snapshot-catchup-entries", "experimental-snapshot-catchup-entries", "log-window-entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Start a server; the warnings are to be logged once there is a log."""

    config: ServerConfig
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HelpRequested:
    """Print the help text and exit with 0."""


@dataclass(frozen=True, slots=True)
class VersionRequested:
    """Print the version and exit with 0."""


Invocation = Run | HelpRequested | VersionRequested


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Invocation:
    """Read what the operator wants.

    Args:
        arguments: the command line without the program's name.
        environment: the process's environment.

    Raises:
        UsageError: the command line can't be read (exit code 2).
        ConfigError: it can be read and can't be used (exit code 1).
    """
    warnings: list[str] = []
    given: dict[str, str] = {}
    for name, text in _tokens(arguments):
        if name in _HELP_NAMES:
            return HelpRequested()
        if name == "version":
            if _value(_VERSION_FLAG, text, "--version") is True:
                return VersionRequested()
            continue
        given[name] = text
    values = {flag.name: value for flag, value in _read_given(given, warnings)}
    values.update(_read_environment(environment, given, warnings))
    config = _build(values, warnings)
    return Run(config=config, warnings=tuple(warnings))


def version_text() -> str:
    """What `--version` prints: the version of kvserver, the client API it speaks, the interpreter and the machine."""
    return (
        f"kvserver Version: {__version__}\n"
        f"etcd API Version: {ETCD_API_VERSION}\n"
        f"Python Version: {platform.python_version()}\n"
        f"OS/Arch: {platform.system().lower()}/{platform.machine()}\n"
    )


_VERSION_FLAG: Final = Flag(name="version", kind=ValueKind.BOOL, default="false", help="", group=FLAGS[0].group)


def _tokens(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--" or not argument.startswith("-") or argument == "-":
            rest = arguments[position:] if argument == "--" else arguments[position - 1 :]
            if rest:
                raise ConfigError(f"{rest[0]!r} is not a valid flag")
            return
        name, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {argument}")
        if not equals:
            follows = arguments[position] if position < len(arguments) else None
            text, consumed = _separate_value(name, follows)
            position += consumed
        yield name, text


def _separate_value(name: str, follows: str | None) -> tuple[str, int]:
    """The value of a flag written without `=`, and how many arguments it took."""
    flag = flag_named(name)
    if name in _HELP_NAMES or name == "version" or (flag is not None and flag.kind is ValueKind.BOOL):
        return "true", 0
    if flag is None:
        if not name.startswith(_EXPERIMENTAL):
            raise _unknown(name)
        return ("true", 0) if follows is None or follows.startswith("-") else (follows, 1)
    if follows is None:
        raise UsageError(f"flag needs an argument: --{name}")
    return follows, 1


def _read_given(given: Mapping[str, str], warnings: list[str]) -> Iterator[tuple[Flag, object]]:
    for name, text in given.items():
        flag = flag_named(name)
        if flag is None:
            if not name.startswith(_EXPERIMENTAL):
                raise _unknown(name)
            warnings.append(f"--{name} is ignored: kvserver has no such experiment")
        elif _treat(flag, text, f"--{name}", warnings):
            yield flag, _value(flag, text, f"--{name}")


def _read_environment(environment: Mapping[str, str], given: Mapping[str, str], warnings: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    known = {environment_name(flag.name): flag for flag in FLAGS}
    for variable in sorted(environment):
        text = environment[variable]
        if not variable.startswith(_ENVIRONMENT_PREFIX) or not text:
            continue
        flag = known.get(variable)
        if flag is None:
            warnings.append(f"environment variable {variable} is not known and ignored")
            continue
        if flag.name in given:
            raise ConfigError(f"environment variable {variable} is shadowed by the flag --{flag.name}: unset one of them")
        try:
            if _treat(flag, text, variable, warnings):
                values[flag.name] = _value(flag, text, variable)
        except UsageError as error:
            raise ConfigError(str(error)) from error
    return values


def _treat(flag: Flag, text: str, origin: str, warnings: list[str]) -> bool:
    """Warn, refuse or accept as the table says; True when the value is used."""
    match flag.treatment:
        case Treatment.USED:
            return True
        case Treatment.ACCEPTED:
            _value(flag, text, origin)
        case Treatment.IGNORED:
            warnings.append(f"{origin} is ignored: {flag.reason}")
        case Treatment.REFUSED:
            asks_for_nothing = _value(flag, text, origin) is False if flag.kind is ValueKind.BOOL else text in flag.harmless
            if not asks_for_nothing:
                raise ConfigError(f"{origin}={text}: {flag.reason}")
    return False


def _value(flag: Flag, text: str, origin: str) -> object:
    try:
        value = read_value(flag.kind, text)
    except ValueSyntaxError as error:
        raise UsageError(f"invalid value for {origin}: {error}") from error
    if flag.choices and value not in flag.choices:
        raise UsageError(f"invalid value for {origin}: {text!r} is not one of {', '.join(flag.choices)}")
    return value


def _unknown(name: str) -> UsageError:
    import difflib  # only here: an unknown flag is the one case that needs it, and --version has to be fast

    close = difflib.get_close_matches(name, [flag.name for flag in FLAGS if flag.treatment is Treatment.USED], n=1)
    hint = f"; did you mean --{close[0]}?" if close else ""
    return UsageError(f"flag provided but not defined: -{name}{hint}")


def _build(values: dict[str, Any], warnings: list[str]) -> ServerConfig:
    if "listen-client-urls" in values and "advertise-client-urls" not in values:
        raise ConfigError(
            "--listen-client-urls needs --advertise-client-urls beside it: what is listened on and what clients are told may differ"
        )
    synonyms = [name for name in _ENTRY_CAP_NAMES if name in values]
    if len(synonyms) > 1:
        raise ConfigError(f"--{synonyms[0]} and --{synonyms[1]} set the same limit: give one of them")
    for synonym in synonyms:
        check_window_entries(synonym, values[synonym])
    fields: dict[str, Any] = {}
    window: dict[str, Any] = {}
    for name, value in values.items():
        flag = flag_named(name)
        assert flag is not None
        if flag.field.startswith("log_window."):
            window[flag.field.removeprefix("log_window.")] = value
        else:
            fields[flag.field] = value
    _derive(fields)
    warnings.extend(_apply_budget(fields, window))
    _provide_for_all_members(fields)
    return ServerConfig(**fields, log_window=LogWindowConfig(**window))


def _derive(fields: dict[str, Any]) -> None:
    """Turn texts into paths, resolve values that stand for a default, and fill in what depends on another flag."""
    name: str = fields.get("name", ServerConfig.__dataclass_fields__["name"].default)
    fields["data_dir"] = Path(fields.get("data_dir") or f"{name}.kvserver")
    if "dedicated_wal_dir" in fields:
        fields["dedicated_wal_dir"] = Path(fields["dedicated_wal_dir"]) if fields["dedicated_wal_dir"] else None
    if "backend_batch_interval_ms" in fields:
        fields["backend_batch_interval_ms"] = round(fields["backend_batch_interval_ms"] * 1000)
    for field in ("quota_backend_bytes", "backend_batch_interval_ms", "backend_batch_limit"):
        if fields.get(field) == 0:  # etcd's way to say "the default"
            del fields[field]
    if not fields.get("initial_cluster"):
        urls: tuple[Url, ...] = fields.get("initial_advertise_peer_urls", (Url(host="localhost", port=2380),))
        fields["initial_cluster"] = (ClusterMember(name=name, peer_urls=tuple(sorted(urls))),)


def _provide_for_all_members(fields: dict[str, Any]) -> None:
    """Let the leader's uncommitted tail hold what the clients of all members may have under way, unless it was given."""
    defaults = ServerConfig.__dataclass_fields__
    members = len({member.name for member in fields["initial_cluster"]})
    wanted_bytes = members * fields.get("max_inflight_bytes", defaults["max_inflight_bytes"].default)
    if wanted_bytes > defaults["max_uncommitted_bytes"].default:
        fields.setdefault("max_uncommitted_bytes", wanted_bytes)


def _calls_bytes(fields: Mapping[str, Any]) -> int:
    """What the calls and connections cost that are allowed."""
    return calls_bytes(
        connections=fields["max_connections"], requests=fields["max_concurrent_requests"], streams=fields["max_open_streams"]
    )


def _apply_budget(fields: dict[str, Any], window: dict[str, Any]) -> list[str]:
    """Fill in the limits that follow from `--memory-budget` and were not given; returns a warning if those that were given break it."""
    budget_bytes = fields.get("memory_budget_bytes", 0)
    if not budget_bytes:
        return []
    request_bytes = fields.get("max_request_bytes", ServerConfig.__dataclass_fields__["max_request_bytes"].default)
    peers = other_members(fields["initial_cluster"])
    budget = derive(budget_bytes, receive_limit_bytes=request_bytes + RECEIVE_HEADROOM_BYTES, peers=peers)
    window.setdefault("max_bytes", budget.log_window_bytes)
    fields.setdefault("max_inflight_bytes", budget.inflight_bytes)
    fields.setdefault("max_uncommitted_bytes", max(budget.uncommitted_bytes, (peers + 1) * fields["max_inflight_bytes"]))
    for field, limit in (
        ("max_answer_bytes", budget.answer_bytes),
        ("watch_buffer_bytes", budget.watch_bytes),
        ("backend_buffer_bytes", budget.backend_buffer_bytes),
        ("peer_queue_bytes", budget.peer_queue_bytes),
        ("wal_read_cache_bytes", budget.wal_read_cache_bytes),
        ("max_connections", budget.connections),
        ("max_concurrent_requests", budget.requests),
        ("max_open_streams", budget.streams),
    ):
        fields.setdefault(field, limit)
    in_force = replace(
        budget,
        log_window_bytes=window["max_bytes"],
        inflight_bytes=fields["max_inflight_bytes"],
        answer_bytes=fields["max_answer_bytes"],
        watch_bytes=fields["watch_buffer_bytes"],
        uncommitted_bytes=fields["max_uncommitted_bytes"],
        backend_buffer_bytes=fields["backend_buffer_bytes"],
        peer_queue_bytes=fields["peer_queue_bytes"],
        wal_read_cache_bytes=fields["wal_read_cache_bytes"],
        calls_bytes=max(budget.calls_bytes, _calls_bytes(fields)),
    )
    if in_force.sum_bytes <= budget_bytes:
        return []
    return [f"the limits that were given add up to {in_force.sum_bytes} bytes, more than --memory-budget[{budget_bytes}]"]
