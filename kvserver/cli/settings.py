"""The global flags of kvctl, and what they come to together with the environment.

Rules: every global flag has an environment variable, KVCTL_FLAG_NAME or (etcdctl's) ETCDCTL_FLAG_NAME; KVCTL_ wins between the two; the
same flag on the command line and in the environment is an error, as in etcdctl. `resolve` is pure. Flags that etcdctl has and this version
can't honour are refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag
from kvserver.cli.golang import GoSyntaxError, parse_bool, parse_duration_s

FORMATS: Final = ("simple", "json", "table", "fields", "protobuf")

GLOBAL_FLAGS: Final = (
    Flag(name="endpoints", kind="list", default="127.0.0.1:2379", help="servers to talk to, separated by commas"),
    Flag(name="dial-timeout", default="2s", help="how long to look for a server that can be reached"),
    Flag(name="command-timeout", default="5s", help="how long a command may take once connected"),
    Flag(name="keepalive-time", default="2s", help="interval of connection keepalive pings (10s at least is used)"),
    Flag(name="keepalive-timeout", default="6s", help="how long to wait for the answer to a keepalive ping"),
    Flag(name="write-out", letter="w", default="simple", help="output format: fields, json, protobuf, simple or table"),
    Flag(name="hex", kind="bool", help="print keys and values as hexadecimal in the simple format"),
    Flag(name="user", help="user name, or name:password"),
    Flag(name="password", help="password of --user, which then must not contain one"),
    Flag(name="debug", kind="bool", help="print the effective settings to stderr"),
    Flag(name="cacert", help="not supported yet: bundle of CA certificates to verify servers with"),
    Flag(name="cert", help="not supported yet: certificate file to identify with"),
    Flag(name="key", help="not supported yet: key file of --cert"),
    Flag(name="insecure-transport", kind="bool", default="true", help="plain TCP; false (TLS) is not supported yet"),
    Flag(name="insecure-skip-tls-verify", kind="bool", help="not supported yet: don't verify server certificates"),
    Flag(name="discovery-srv", letter="d", help="not supported: domain whose SRV records name the endpoints"),
    Flag(name="discovery-srv-name", help="not supported: service name in --discovery-srv"),
    Flag(name="insecure-discovery", kind="bool", default="true", help="accepted for etcdctl's sake, without effect"),
)

_UNSUPPORTED: Final = ("cacert", "cert", "key", "insecure-skip-tls-verify", "discovery-srv", "discovery-srv-name")
_NOT_FLAGS: Final = frozenset({"API", "WATCH_KEY", "WATCH_RANGE_END"})
"""ETCDCTL_ variables that mean something to etcdctl without being flags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The global flags, resolved and checked."""

    endpoints: tuple[str, ...]
    dial_timeout_s: float
    command_timeout_s: float
    keepalive_time_s: float
    keepalive_timeout_s: float
    write_out: str
    hex: bool
    user: str
    password: str
    debug: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(typed: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from what was typed (parameter name -> value) and the environment. Raises `CliError`."""
    values: dict[str, Any] = {}
    for flag in GLOBAL_FLAGS:
        values[flag.name] = _value_of(flag, typed, environment)
    _refuse_unsupported(values)
    if values["write-out"] not in FORMATS:
        raise CliError("unsupported output format", ExitCode.BAD_FEATURE)
    user, password = _credentials(values["user"], values["password"])
    return Settings(
        endpoints=tuple(each for each in values["endpoints"] if each),
        dial_timeout_s=_positive_s("dial-timeout", values),
        command_timeout_s=_positive_s("command-timeout", values),
        keepalive_time_s=_positive_s("keepalive-time", values),
        keepalive_timeout_s=_positive_s("keepalive-timeout", values),
        write_out=values["write-out"],
        hex=values["hex"],
        user=user,
        password=password,
        debug=_shown(values) if values["debug"] else (),
        warnings=_unrecognized(environment),
    )


def _value_of(flag: Flag, typed: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    suffix = flag.name.upper().replace("-", "_")
    variable = next((name for name in (f"KVCTL_{suffix}", f"ETCDCTL_{suffix}") if name in environment), None)
    if flag.parameter in typed:
        if variable is not None:
            hint = "either unset environment variable or disable flag"
            raise CliError(f'conflicting environment variable "{variable}" is shadowed by corresponding command-line flag ({hint})')
        value = typed[flag.parameter]
        return _split(value) if flag.kind == "list" else value
    text = flag.default if variable is None else environment[variable]
    if flag.kind == "list":
        return _split((text,))
    if flag.kind != "bool":
        return text
    try:
        return parse_bool(text or "false")
    except GoSyntaxError as error:
        raise CliError(f'invalid value "{text}" for {variable}: {error}') from None


def _split(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in value.split(","))


def _positive_s(name: str, values: Mapping[str, Any]) -> float:
    try:
        duration_s = parse_duration_s(values[name])
    except GoSyntaxError as error:
        raise CliError(f'invalid argument "{values[name]}" for "--{name}" flag: {error}') from None
    if duration_s <= 0:
        raise CliError(f'invalid argument "{values[name]}" for "--{name}" flag: must be positive')
    return duration_s


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if values[name]:
            raise CliError(f"--{name} is not supported by this version of kvctl", ExitCode.BAD_FEATURE)
    if not values["insecure-transport"]:
        raise CliError("--insecure-transport=false: TLS is not supported by this version of kvctl", ExitCode.BAD_FEATURE)


def _credentials(user: str, password: str) -> tuple[str, str]:
    if not user:
        return "", ""
    name, colon, inline = user.partition(":")
    if password:
        return user, password
    if not colon:
        raise CliError("--user needs a password: give name:password, or --password", ExitCode.BAD_ARGUMENTS)
    return name, inline


def _shown(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The effective settings as environment variables; the password is not among them."""
    lines = []
    for name in sorted(values):
        value = values[name]
        text = ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
        if name in ("password", "user") and text:
            text = "***"
        lines.append(f"KVCTL_{name.upper().replace('-', '_')}={text}")
    return tuple(lines)


def _unrecognized(environment: Mapping[str, str]) -> tuple[str, ...]:
    known = {flag.name.upper().replace("-", "_") for flag in GLOBAL_FLAGS} | _NOT_FLAGS
    strange = sorted(
        name
        for name in environment
        for prefix in ("KVCTL_", "ETCDCTL_")
        if name.startswith(prefix) and name.removeprefix(prefix) not in known
    )
    return tuple(f"unrecognized environment variable {name}" for name in strange)
