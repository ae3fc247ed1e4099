"""Peer URLs are checked as etcd's client checks them: the texts are etcdctl 3.4.23's (test_differential_members.py compares live)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.cli.golang import GoSyntaxError
from kvserver.cli.peer_urls import split_peer_urls

FORM = 'URL address does not have the form "host:port": '
SCHEME = "URL scheme must be http, https, unix, or unixs: "
PATH = "URL must not contain a path: "


@pytest.mark.parametrize(
    "text",
    [
        "http://a:1",
        "https://a:1,http://b:2",
        "HTTP://a:1",
        "unix://a:1",
        "http://:1",
        "http://a:",
        "http://a:99999",
        "http://a:1?x",
        "http://a:1#f",
        "http://u:p@a:1",
        "http://[::1]:1",
        "http://[fe80::1%25en0]:1",
        "http://é%c3%a9:1",
    ],
)
def test_urls_that_pass_are_kept_as_they_stand(text: str) -> None:
    assert split_peer_urls(text) == tuple(text.split(","))


def test_blanks_round_a_url_are_kept_but_do_not_count() -> None:
    assert split_peer_urls("http://a:1, \u00a0http://b:2\n") == ("http://a:1", " \u00a0http://b:2\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",", SCHEME),
        ("a:1", SCHEME + "a:1"),
        ("//a:1", SCHEME + "//a:1"),
        ("http://a:1,ftp://b:1", SCHEME + "ftp://b:1"),
        ("http://a", FORM + "http://a"),
        ("http:a:1", FORM + "http:a:1"),
        ("http://a:1:2", FORM + "http://a:1:2"),
        ("http://[::1]", FORM + "http://[::1]"),
        ("http://::1", FORM + "http://::1"),
        ("http://a:1/", PATH + "http://a:1/"),
        ("http://a:1/x?y", PATH + "http://a:1/x?y"),
        (":", 'parse ":": missing protocol scheme'),
        ("127.0.0.1:1", 'parse "127.0.0.1:1": first path segment in URL cannot contain colon'),
        ("http://a:x", 'parse "http://a:x": invalid port ":x" after host'),
        ("http://[::1]x:1", 'parse "http://[::1]x:1": invalid port "x:1" after host'),
        ("http://[::1", "parse \"http://[::1\": missing ']' in host"),
        ("http://a b:1", 'parse "http://a b:1": invalid character " " in host name'),
        ("http://a%zz:1", 'parse "http://a%zz:1": invalid URL escape "%zz"'),
        ("http://a%41:1", 'parse "http://a%41:1": invalid URL escape "%41"'),
        ("http://%:", 'parse "http://%:": invalid URL escape "%:"'),
        ("http://[fe80::1%25%23]:1", 'parse "http://[fe80::1%25%23]:1": invalid URL escape "%23"'),
        ("http://a:1#%", 'parse "http://a:1#%": invalid URL escape "%"'),
        ("http://a\x01:1", 'parse "http://a\\x01:1": net/url: invalid control character in URL'),
        ("http://^@a:1", 'parse "http://^@a:1": net/url: invalid userinfo'),
    ],
)
def test_urls_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(GoSyntaxError) as caught:
        split_peer_urls(text)
    assert str(caught.value) == message


@given(st.text(st.sampled_from("ht:p/[]%25@#?,. \x01\udcffé"), max_size=20))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        urls = split_peer_urls(text)
    except GoSyntaxError:
        return
    assert ",".join(urls) == text
