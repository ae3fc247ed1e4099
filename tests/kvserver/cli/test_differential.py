"""kvctl and etcdctl side by side: the same command lines, each against an etcd of its own, must print the same and exit alike.

Masked: ports, times, sizes, raft indexes, etcdctl's own log lines on stderr; ids are the same on both sides. The known differences stand at
the end, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.etcd

Step = tuple[list[str], bytes]


def step(line: str, stdin: bytes = b"") -> Step:
    """Words of a line; `~` stands for an empty argument."""
    return ["" if word == "~" else word for word in line.split()], stdin


class Side:
    """One CLI with its server, and what has to be masked in its output."""

    def __init__(self, server: Any, call: Callable[[str, list[str], bytes], tuple[int, bytes, bytes]]) -> None:
        self.server = server
        self._call = call

    def run(self, arguments: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        code, out, err = self._call(self.server.endpoint, arguments, stdin)
        return (
            code,
            self._mask(out),
            self._mask(b"".join(line for line in err.splitlines(keepends=True) if not line.startswith(b'{"level"'))),
        )

    def _mask(self, text: bytes) -> bytes:
        text = text.replace(b"127.0.0.1:%d" % self.server.client_port, b"127.0.0.1:12379")
        text = re.sub(rb'"took":"[^"]+"|took = \S+|"Took" : \S+|[\d.]+ms', b"TOOK", text)
        text = re.sub(rb"\d+ kB|(?<=[sS]ize\" : )\d+|(?<=ize\":)\d+|(?<=InUse\":)\d+", b"SIZE", text)
        text = re.sub(rb"(?i)(\"raft(?:applied)?index\" ?: ?)\d+", rb"\1INDEX", text)
        return re.sub(rb"(?m)(, |\| +)\d+(, | +\| +)\d+(, $| +\| +\|$)", rb"\1INDEX\2INDEX\3", text)


@pytest.fixture
def sides(etcd: Any, twin: Any, kvctl: Any, etcdctl: Any) -> tuple[Side, Side]:
    def call(endpoint: str, arguments: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        outcome = kvctl(f"--endpoints={endpoint}", *arguments, stdin=stdin)
        return outcome.code, outcome.stdout, outcome.stderr

    return Side(etcd, etcdctl), Side(twin, call)


def compare(sides: tuple[Side, Side], steps: list[Step], *, loose_layout: bool = False) -> None:
    theirs, ours = sides
    for arguments, stdin in steps:
        expected, actual = theirs.run(arguments, stdin), ours.run(arguments, stdin)
        if loose_layout:
            expected, actual = _loosened(expected), _loosened(actual)
        assert actual == expected, f"{arguments} {stdin!r}"


def _loosened(outcome: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
    code, out, err = outcome
    return code, re.sub(rb" +", b" ", re.sub(rb"-+", b"-", out)), err


KEY_VALUES = [
    step("put a 1"),
    step("put a 2 --prev-kv"),
    step("put b 2 --prev-kv -w json"),
    step("put b 3 --prev-kv -w json"),
    step("put b 4 --prev-kv -w fields"),
    step("put b 4 --prev-kv -w protobuf"),
    step("put c", b"from\nstdin\x00\xff"),
    step("put e b c"),
    step("put -- -dash -value"),
    step("put --prev-kv=false a 2"),
    step("put --prev-kv=true a 2"),
    step("put a --ignore-value"),
    step("put a --ignore-value=true --prev-kv"),
    step("put a --ignore-lease x"),
    step("get a"),
    step("get nosuch"),
    step("get nosuch -w json"),
    step("get nosuch -w fields"),
    step("get a -w protobuf"),
    step("get c -w fields"),
    step("get c -w json"),
    step("get c --hex"),
    step("get c --hex -w fields"),
    step("get c --hex -w json"),
    step("get ~ --prefix"),
    step("get ~ --from-key"),
    step("get ~ --prefix=true"),
    step("get a --prefix=false"),
    step("get ~ --prefix -w json"),
    step("get ~ --prefix -w=json"),
    step("get ~ --prefix -wfields"),
    step("get ~ --prefix --write-out fields"),
    step("get ~ --prefix --limit 2 -w json"),
    step("get ~ --prefix --limit=2 -w fields"),
    step("get ~ --prefix --keys-only"),
    step("get ~ --prefix --keys-only -w json"),
    step("get ~ --prefix --print-value-only"),
    step("get ~ --prefix --print-value-only --hex"),
    step("get a --keys-only --print-value-only"),
    step("get a c"),
    step("get b --from-key --limit 1"),
    step("get a b c"),
    step("get a --rev 2"),
    step("get a --rev=-1"),
    step("get a --limit=-1"),
    step("get a --consistency s"),
    step("get ~ --prefix --order=DESCEND"),
    step("get ~ --prefix --order descend --sort-by Modify"),
    step("get ~ --prefix --sort-by=create --order ASCEND"),
    step("get ~ --prefix --sort-by=version"),
    step("get ~ --prefix --sort-by=value --order=descend"),
    step("del c --prev-kv"),
    step("del nosuch"),
    step("del -w json e --prev-kv"),
    step("del -w fields b --prev-kv"),
    step("del -w json nosuch"),
    step("put x1 1"),
    step("put x2 1"),
    step("put x3 1"),
    step("del x1 x3 --prev-kv"),
    step("del x --prefix --prev-kv -w fields"),
    step("del ~ --from-key --prev-kv --hex"),
]

ERRORS = [
    step("get"),
    step("get a z --prefix"),
    step("get a z --from-key"),
    step("get a --from-key --prefix"),
    step("get a --consistency=x"),
    step("get a --order foo"),
    step("get a --sort-by foo"),
    step("get ~"),
    step("get a --rev=1000000"),
    step("get a --print-value-only -w json"),
    step("get a -w table"),
    step("get a -w xyz"),
    step("put"),
    step("put a"),
    step("put a x --ignore-value"),
    step("put nokey --ignore-value"),
    step("put nokey --ignore-lease x"),
    step("put a 5 --lease=zz"),
    step("put a 5 --lease=12"),
    step("put ~ x"),
    step("put big", b"x" * 1_600_000),
    step("put big", b"x" * 2_100_000),
    step("del"),
    step("del a b c"),
    step("del --prefix --from-key a"),
    step("del --prefix a b"),
    step("compaction"),
    step("compaction abc"),
    step("compaction 1 2"),
    step("compaction 1000000"),
    step("--endpoints= get a"),
    step("--command-timeout=1ns get a"),
]

TXNS = [
    step("put k 1"),
    step("put k2 1"),
    step("txn", b'value("k") = "1"\n\nput k 2\nget k\n\nput k 3\n\n'),
    step("txn", b'value("k") = "1"\n\nput k 2\nget k\n\nput k 3\ndel k2 --prev-kv\nget --prefix k\n\n'),
    step("txn -w json", b'value("k") = "3"\n\nput k 3 --prev-kv\nget k\ndel nope\nget nope\n\n\n'),
    step("txn -w fields", b'value("k") = "3"\n\nput k 3 --prev-kv\nget k\ndel nope\n\n\n'),
    step("txn -w protobuf", b'value("k") = "3"\n\nput k 3 --prev-kv\nget k\ndel nope\n\n\n'),
    step("txn -i", b'\nput "a b" "c\\nd"\nget "a b"\n\n\n'),
    step("txn --interactive=false", b"\n\n\n"),
    step("txn -w json", b"\n\n\n"),
    step("txn", b'mod("k") > "0"  \n  ver("k") != "77"\nc("k") < "9999"\ncreate("k") > "1"\nversion("k") > "0"\n\nget k\n\nget k2\n\n'),
    step("txn", b'mod("k") = "3" trailing\n\nget k\n\nget k2\n\n'),
    step("txn", b"mod(`k`) > `0`\n\nget k\n\nget k2\n\n"),
    step("txn -w fields", b'\nput z "\\xff\\u00e9\\t\\101"\nget z\n\n\n'),
    step("txn", b'\nput z a"b"c \nget z\n\n\n'),
    step("txn", b"\nput z abc def\n\n\n"),
    step("txn", b'\nget z k5\nget "" --prefix --limit 2\nget --limit=1 "" --prefix --keys-only\nget z --rev 2\n\n\n'),
    step("txn", b'\nget k --consistency=s --order=descend\ndel z --prev-kv\ndel "" --prefix --prev-kv\n\n\n'),
    step("txn --hex", b"\nput k 1 --prev-kv\nput k5 1\nget k\n\n\n"),
]

TXN_ERRORS = [
    step("txn", b""),
    step("txn", b"\n\n"),
    step("txn", b"foo\n"),
    step("txn", b'bar("k") = "3"\n'),
    step("txn", b'mod ("k") = "3"\n'),
    step("txn", b'mod("k") = "x"\n'),
    step("txn", b'mod("k") = 3\n'),
    step("txn", b'mod("k") = "99999999999999999999"\n'),
    step("txn", b'mod(k) = "3"\n'),
    step("txn", b'mod("k")="3"\n'),
    step("txn", b"mod('k') = \"3\"\n"),
    step("txn", b"\nput\n"),
    step("txn", b"\nfoo bar\n"),
    step("txn", b"\ndel\n"),
    step("txn", b"\nput k\n"),
    step("txn", b"\nget k --prefix --from-key\n"),
    step("txn", b"\nput k 1\nput k 2\n\n\n"),
    step("txn", b"\nput k 1\n"),
    step("txn", b"\nput k 1"),
    step("txn foo", b"\nput k 1\n\n\n"),
]

CLUSTER = [
    step("member list"),
    step("member list -w json"),
    step("member list -w fields"),
    step("member list --hex"),
    step("member list extra"),
    step("endpoint health"),
    step("endpoint health -w json"),
    step("endpoint health -w fields"),
    step("endpoint health --cluster"),
    step("endpoint hashkv"),
    step("endpoint hashkv -w json"),
    step("endpoint hashkv -w fields"),
    step("endpoint hashkv --rev 3"),
    step("endpoint hashkv --cluster -w json"),
    step("endpoint hashkv --rev 100000"),
    step("endpoint status"),
    step("endpoint status -w json"),
    step("endpoint status -w fields"),
    step("endpoint --cluster status -w fields"),
    step("endpoint status -w protobuf"),
]

TABLES = [
    step("member list -w table"),
    step("endpoint hashkv -w table"),
]


def test_key_values_look_the_same_in_every_format(sides: tuple[Side, Side]) -> None:
    compare(sides, KEY_VALUES)


def test_errors_have_the_same_text_and_code(sides: tuple[Side, Side]) -> None:
    compare(sides, ERRORS)


def test_transactions_look_the_same(sides: tuple[Side, Side]) -> None:
    compare(sides, TXNS)


def test_malformed_transactions_are_refused_alike(sides: tuple[Side, Side]) -> None:
    compare(sides, [(arguments, stdin) for arguments, stdin in TXN_ERRORS])


def test_members_and_endpoints_look_the_same(sides: tuple[Side, Side]) -> None:
    compare(sides, CLUSTER)


def test_tables_look_the_same(sides: tuple[Side, Side]) -> None:
    compare(sides, TABLES)


def test_tables_with_times_and_indexes_look_the_same_but_for_the_widths_of_those(sides: tuple[Side, Side]) -> None:
    """The exact layout is proven in test_output.py."""
    lines = ("endpoint health -w table", "endpoint --cluster health -w table", "endpoint status --write-out=table")
    compare(sides, [step(line) for line in lines], loose_layout=True)


def test_compaction_looks_the_same(sides: tuple[Side, Side]) -> None:
    compare(
        sides,
        [
            step("put compacted 1"),
            step("put compacted 2"),
            step("compaction 3"),
            step("compaction 3"),
            step("compaction 4 --physical -w json"),
            step("get compacted --rev 2"),
            step("endpoint hashkv -w json"),
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        # etcdctl prints a whole usage page behind these; kvctl points to --help
        (["get", "a", "--nosuch"], b"", 1),
        (["get", "a", "--limit=abc"], b"", 1),
        (["get", "a", "--prefix=maybe"], b"", 1),
        (["get", "a", "--limit"], b"", 1),
        (["get", "-x"], b"", 1),
        (["nosuch"], b"", 1),
        (["--command-timeout=5", "get", "a"], b"", 1),
        (["txn"], b"\nget k --nosuch\n", 3),
        (["txn"], b"\nget k -w json\n", 3),
    ],
)
def test_where_etcdctl_prints_usage_kvctl_gives_the_same_error_line(
    sides: tuple[Side, Side], arguments: list[str], stdin: bytes, code: int
) -> None:
    theirs, ours = (side.run(arguments, stdin) for side in sides)
    assert (theirs[0], ours[0]) == (code, code)
    line = next(line for line in ours[2].splitlines() if line.startswith(b"Error: "))
    assert line.replace(b'"kvctl"', b'"etcdctl"') in theirs[2].splitlines()
    assert b"--limit" not in ours[1]


def test_where_etcdctl_panics_kvctl_does_not(sides: tuple[Side, Side]) -> None:
    ours = sides[1]
    assert ours.run(["txn"], b'mod("k") ~ "3"\n') == (3, b"", b'Error: malformed comparison: mod("k") ~ "3" (unknown operator ~)\n')
    assert ours.run(["txn"], b'lease("nokey") = "0"\n\n\n\n') == (0, b"SUCCESS\n", b"")


def test_unsupported_format_is_refused_before_anything_is_sent(sides: tuple[Side, Side]) -> None:
    """etcdctl writes first and complains afterwards."""
    ours = sides[1]
    assert ours.run(["put", "never", "1", "-w", "table"], b"") == (4, b"", b"Error: table not supported as output format\n")
    assert ours.run(["get", "never"], b"") == (0, b"", b"")
