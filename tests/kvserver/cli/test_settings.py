"""Global flags, where they may stand, and the environment."""

from __future__ import annotations

import pytest

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag, FlagOption, normalize
from kvserver.cli.settings import resolve

OPTIONS = [
    FlagOption(Flag(name="prefix", kind="bool", help="h")),
    FlagOption(Flag(name="interactive", kind="bool", letter="i", help="h")),
    FlagOption(Flag(name="order", help="h")),
    FlagOption(Flag(name="write-out", letter="w", help="h")),
]


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("--prefix k", "--prefix=true k"),
        ("--prefix=false k", "--prefix=false k"),
        ("-i k", "--interactive=true k"),
        ("-i=false", "--interactive=false"),
        ("-w=json", "--write-out=json"),
        ("-wjson", "-wjson"),
        ("-w --prefix", "-w --prefix"),  # a value that looks like a flag
        ("--order --prefix --prefix", "--order --prefix --prefix=true"),
        ("--order=--prefix", "--order=--prefix"),
        ("-- --prefix -w=json", "-- --prefix -w=json"),
        ("--unknown --prefix", "--unknown --prefix=true"),
        ("--order", "--order"),
        ("--prefix=", "--prefix="),
    ],
)
def test_normalize(typed: str, normal: str) -> None:
    assert normalize(typed.split(), OPTIONS) == normal.split()


def test_defaults_are_etcdctls() -> None:
    settings = resolve({}, {})
    assert settings.endpoints == ("127.0.0.1:2379",)
    assert (settings.dial_timeout_s, settings.command_timeout_s) == (2.0, 5.0)
    assert (settings.keepalive_time_s, settings.keepalive_timeout_s) == (2.0, 6.0)
    assert (settings.write_out, settings.hex, settings.user, settings.debug, settings.warnings) == ("simple", False, "", (), ())


def test_endpoints_add_up_and_split_at_commas() -> None:
    assert resolve({"endpoints": ("a:1,b:2", "", "c:3")}, {}).endpoints == ("a:1", "b:2", "c:3")


def test_kvctl_variables_beat_etcdctls() -> None:
    environment = {"ETCDCTL_ENDPOINTS": "old:1", "KVCTL_ENDPOINTS": "new:1,new:2", "ETCDCTL_HEX": "true", "KVCTL_COMMAND_TIMEOUT": "1m"}
    settings = resolve({}, environment)
    assert (settings.endpoints, settings.hex, settings.command_timeout_s) == (("new:1", "new:2"), True, 60.0)


def test_a_flag_given_twice_over_is_an_error() -> None:
    with pytest.raises(CliError) as caught:
        resolve({"write_out": "json"}, {"ETCDCTL_WRITE_OUT": "json"})
    assert caught.value.text == (
        'conflicting environment variable "ETCDCTL_WRITE_OUT" is shadowed by corresponding command-line flag '
        "(either unset environment variable or disable flag)"
    )
    assert caught.value.code == ExitCode.ERROR


def test_unknown_variables_are_pointed_out() -> None:
    settings = resolve({}, {"KVCTL_FOO": "1", "ETCDCTL_API": "3", "ETCDCTL_WATCH_KEY": "k", "PATH": "x"})
    assert settings.warnings == ("unrecognized environment variable KVCTL_FOO",)


@pytest.mark.parametrize(
    ("typed", "environment", "text"),
    [
        ({"command_timeout": "5"}, {}, 'invalid argument "5" for "--command-timeout" flag: time: missing unit in duration "5"'),
        ({"dial_timeout": "-1s"}, {}, 'invalid argument "-1s" for "--dial-timeout" flag: must be positive'),
        ({}, {"KVCTL_HEX": "maybe"}, 'invalid value "maybe" for KVCTL_HEX: strconv.ParseBool: parsing "maybe": invalid syntax'),
        ({"write_out": "xml"}, {}, "unsupported output format"),
        ({"cacert": "ca.pem"}, {}, "--cacert is not supported by this version of kvctl"),
        ({}, {"ETCDCTL_CERT": "c.pem"}, "--cert is not supported by this version of kvctl"),
        ({"insecure_transport": False}, {}, "--insecure-transport=false: TLS is not supported by this version of kvctl"),
        ({"user": "root"}, {}, "--user needs a password: give name:password, or --password"),
    ],
)
def test_refusals(typed: dict[str, object], environment: dict[str, str], text: str) -> None:
    with pytest.raises(CliError) as caught:
        resolve(typed, environment)
    assert caught.value.text == text


def test_credentials() -> None:
    assert (lambda s: (s.user, s.password))(resolve({"user": "root:a:b"}, {})) == ("root", "a:b")
    assert (lambda s: (s.user, s.password))(resolve({"user": "ro:ot", "password": "p"}, {})) == ("ro:ot", "p")


def test_debug_shows_no_password() -> None:
    lines = resolve({"debug": True, "user": "root:secret"}, {}).debug
    assert "KVCTL_ENDPOINTS=127.0.0.1:2379" in lines
    assert "KVCTL_USER=***" in lines
    assert "secret" not in "".join(lines)
