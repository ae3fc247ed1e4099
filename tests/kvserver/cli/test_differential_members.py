"""The commands that change the cluster, kvctl and etcdctl side by side.

Alone: each tool has an etcd of its own, a single member, whose id is small (a matter of the cluster token), so that the padding of ids
shows and a new member, whose id etcd makes from the time, always comes behind it. Together: both tools, in turn, build one cluster.
Masked: the client port and the new member's id.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvserver.pb import rpc_pb2 as pb

pytestmark = pytest.mark.etcd

Answer = tuple[int, bytes, bytes]
Call = Callable[[str, list[str], bytes], Answer]

TOKEN = "padded-225696"
"""With this one the id of the first member is below 2**46."""

SYNC_LIMIT_S = 20.0


@dataclass
class Side:
    """One tool with its server. `{new}` and `{first}` in an argument stand for the ids of its members."""

    server: Any
    call: Call
    ids: dict[str, int] = field(default_factory=dict)

    def run(self, line: str) -> Answer:
        """Words of a line (`~` is an empty one, `_` within one a blank); ids are masked in the answer."""
        words = [
            ("" if word == "~" else word.replace("_", " ")).format(**{k: f"{v:x}" for k, v in self.ids.items()}) for word in line.split()
        ]
        code, out, err = self.call(self.server.endpoint, words, b"")
        found = re.search(rb"Member +([0-9a-f]+) added|\"member\":\{\"ID\":(\d+)", out)
        if found:
            self.ids["new"] = int(found[1], 16) if found[1] else int(found[2])
        own_words = b"".join(each for each in err.splitlines(keepends=True) if not each.startswith(b'{"level"'))
        return code, self._mask(out), self._mask(own_words)

    def _mask(self, text: bytes) -> bytes:
        text = text.replace(b"127.0.0.1:%d" % self.server.client_port, b"127.0.0.1:12379")
        new = self.ids.get("new")
        return text if new is None else text.replace(b"%16x" % new, b"NEW").replace(b"%x" % new, b"NEW").replace(b"%d" % new, b"NEW")


@pytest.fixture
def ours(kvctl: Any) -> Call:
    """kvctl, called like etcdctl."""

    def call(endpoint: str, arguments: list[str], stdin: bytes) -> Answer:
        outcome = kvctl(f"--endpoints={endpoint}", *arguments, stdin=stdin)
        return outcome.code, outcome.stdout, outcome.stderr

    return call


@pytest.fixture(scope="module")
def servers(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Two single members."""
    with launch(tmp_path_factory.mktemp("a"), token=TOKEN) as first, launch(tmp_path_factory.mktemp("b"), token=TOKEN) as second:
        yield first, second


def make_sides(servers: tuple[Any, Any], etcdctl: Call, ours: Call) -> tuple[Side, Side]:
    sides = Side(servers[0], etcdctl), Side(servers[1], ours)
    for side in sides:
        code, out, _ = etcdctl(side.server.endpoint, ["member", "list", "-w", "json"], b"")
        assert code == 0
        side.ids = {("first" if member.get("name") else "new"): member["ID"] for member in json.loads(out)["members"]}
        assert 0 < side.ids["first"] < 2**46
    return sides


@pytest.fixture
def sides(servers: tuple[Any, Any], etcdctl: Call, ours: Call) -> tuple[Side, Side]:
    return make_sides(servers, etcdctl, ours)


def compare(sides: tuple[Side, Side], lines: list[str]) -> None:
    theirs, ours = sides
    for line in lines:
        expected, actual = theirs.run(line), ours.run(line)
        assert actual == expected, line


LIFE_OF_A_LEARNER = [
    "member add n2 --learner --peer-urls=http://b.invalid:1,http://b.invalid:2",
    "member list",
    "member list -w json",
    "member add n3 --learner --peer-urls=http://c.invalid:1",
    "member add n3 --peer-urls=http://b.invalid:1",
    "member update {first} --peer-urls=http://b.invalid:1",
    "member promote {new}",
    "member promote {new} -w json",
    "member update {new} --peer-urls=http://d.invalid:1",
    "member list",
    "member update {new} --peer-urls=http://e.invalid:1,http://e.invalid:2 -w json",
    "member remove {new}",
    "member remove {new}",
    "member promote {new}",
    "member update {new} --peer-urls=http://b.invalid:1",
    "member list",
    "member add ~ --learner --peer-urls=http://f.invalid:1,_http://g.invalid:2",
    "member remove {new} -w json",
    'member add "é --learner=true --peer-urls=http://h.invalid:1 -w json',
    "member remove {new}",
    'member add a"é --learner --peer-urls=HTTP://i.invalid:1',
    "member remove {new}",
    "member update {first} --peer-urls=http://127.0.0.1:2381",
    "member update {first} --peer-urls=http://127.0.0.1:2380 -w json",
]

REFUSALS = [
    "member add",
    "member add a b",
    "member add a http://b:1 HTTPS://c:1",
    "member add a",
    "member add a --peer-urls=",
    "member add a --peer-urls=http://127.0.0.1:2380",
    "member add a --learner --peer-urls=http://127.0.0.1:2380",
    "member remove",
    "member remove 1 2",
    "member remove ~",
    "member remove zz",
    "member remove 0x1f",
    "member remove 1",
    "member remove 0",
    "member remove 0000000000000000001",
    "member remove FFFFFFFFFFFFFFFF",
    "member remove 10000000000000000",
    "member promote",
    "member promote 1 2",
    "member promote zz",
    "member promote 1",
    "member promote {first}",
    "member update",
    "member update 1",
    "member update 1 2 --peer-urls=http://a:1",
    "member update zz",
    "member update zz --peer-urls=http://a:1",
    "member update 1 --peer-urls=http://a:1",
    "member update 1 --peer-urls=http://a:1/x",
    "move-leader",
    "move-leader 1 2",
    "move-leader zz",
    "move-leader ~",
    "move-leader 10000000000000000",
    "move-leader 1",
    "move-leader {first}",
    "move-leader {first} -w json",
    "move-leader {first} -w protobuf",
    "move-leader {first} -w table -w xyz",
    "member remove {first} -w xyz",
    "--endpoints= member remove 1",
    "--command-timeout=1ns member remove 1",
    "--command-timeout=1ns move-leader 1",
]

URLS = [
    *(
        "http://a",
        "http://a:1/",
        "http://a:1/x",
        ",",
        ":",
        "a:1",
        "//a:1",
        "http:a:1",
        "ftp://a:1",
        "127.0.0.1:1",
        "localhost:1",
        "1http://a:1",
    ),
    *(
        "http://[::1",
        "http://[::1]x:1",
        "http://[::1]:1",
        "http://[fe80::1%25en0]:1",
        "http://[fe80::1%25%23]:1",
        "http://[a[]:1",
        "http://::1",
    ),
    *(
        "http://a_b:1",
        "http://a%zz:1",
        "http://a%41:1",
        "http://%:",
        "http://é%4:1",
        "http://a:x",
        "http://a:1:2",
        "http://a:",
        "http://:1",
    ),
    *(
        "http://a:1?x",
        "http://a:1#f",
        "http://a:1#%",
        "http://u:p@a:1",
        "http://^@a:1",
        "http://a\x01:1",
        "http://a:1,_http://b:1_",
        "http://a:99999",
    ),
    *("unix://a:1", "unixs://a:1", "HTTPS://a:1", "http://a:1,http://b", "///a:1", "*", "http://", "http:", "http://é:1", "http://a\\b:1"),
]


def test_a_learner_comes_and_goes_alike(sides: tuple[Side, Side]) -> None:
    compare(sides, LIFE_OF_A_LEARNER)


def test_refusals_have_the_same_text_and_code(sides: tuple[Side, Side]) -> None:
    compare(sides, REFUSALS)


def test_urls_are_judged_alike(sides: tuple[Side, Side]) -> None:
    """On a member that doesn't exist: what passes the tool's own checks changes nothing."""
    compare(sides, [f"member update 1 --peer-urls={url}" for url in URLS])


def test_protobuf_is_the_message_as_it_came(sides: tuple[Side, Side]) -> None:
    """The tool prints the bytes of the wire; the ids in them differ, so the messages are compared."""
    seen = []
    for side in sides:
        steps: tuple[tuple[str, Any], ...] = (
            ("member add p --learner --peer-urls=http://p.invalid:1", pb.MemberAddResponse),
            ("member update {new} --peer-urls=http://q.invalid:1", pb.MemberUpdateResponse),
            ("member remove {new}", pb.MemberRemoveResponse),
        )
        messages = []
        for line, kind in steps:
            words = [word.format(**{k: f"{v:x}" for k, v in side.ids.items()}) for word in line.split()]
            code, out, err = side.call(side.server.endpoint, [*words, "-w", "protobuf"], b"")
            assert (code, err) == (0, b"")
            message = kind.FromString(out)
            assert message.SerializeToString() == out
            if isinstance(message, pb.MemberAddResponse):
                side.ids["new"] = message.member.ID
            messages.append(side._mask(str(message).encode()))
        seen.append(messages)
    assert seen[0] == seen[1]


def test_a_voter_that_stops_the_cluster_is_still_reported_alike(launch: Any, tmp_path: Path, etcdctl: Call, ours: Call) -> None:
    """Two voters, one running: nothing can be committed any more, so nothing may be asked behind the change."""
    with launch(tmp_path / "a", token=TOKEN) as first, launch(tmp_path / "b", token=TOKEN) as second:
        sides = make_sides((first, second), etcdctl, ours)
        compare(sides, ["member add n2 --peer-urls=http://b.invalid:1", "member list"])


@pytest.mark.parametrize("write_out", ["fields", "table"])
def test_unsupported_formats_are_refused_before_anything_is_sent(sides: tuple[Side, Side], write_out: str) -> None:
    """etcdctl changes the cluster first and complains afterwards, with the same words."""
    refusal = (4, b"", f"Error: {write_out} not supported as output format\n".encode())
    ours = sides[1]
    before = ours.run("member list -w json")
    for line in ("member add x --learner --peer-urls=http://x.invalid:1", "member remove {first}", "member promote {first}"):
        assert ours.run(f"{line} -w {write_out}") == refusal
    assert ours.run(f"member update {{first}} --peer-urls=http://x.invalid:1 -w {write_out}") == refusal
    assert ours.run(f"move-leader {{first}} -w {write_out}") == refusal == sides[0].run(f"move-leader {{first}} -w {write_out}")
    assert ours.run("member list -w json") == before


# --- one cluster of three ----------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Trio:
    """Three members; the first leads at the start. `promoted` is what each tool said when it promoted one, its id masked."""

    endpoints: list[str]
    ids: list[int]
    promoted: list[Answer]


def environment_of(out: bytes) -> dict[str, str]:
    """The ETCD_ block of `member add`, as a shell would read it."""
    return dict(re.findall(r'^(ETCD_\w+)="(.*)"$', out.decode(), re.MULTILINE))


def wait_promoted(call: Call, endpoint: str, member_id: int) -> Answer:
    """Promote as soon as the learner has caught up."""
    deadline = time.monotonic() + SYNC_LIMIT_S
    while True:
        code, out, err = call(endpoint, ["member", "promote", f"{member_id:x}"], b"")
        if b"in sync with leader" not in err or time.monotonic() > deadline:
            return code, out.replace(b"%16x" % member_id, b"NEW"), b""


@contextmanager
def three_members(launch: Any, ports: list[tuple[int, int]], directory: Path, tools: tuple[Call, Call]) -> Iterator[Trio]:
    """One member is started alone; then each tool adds a learner, starts it with what the tool printed, and promotes it."""
    with ExitStack() as running:
        first = running.enter_context(launch(directory / "n1", ports=ports[0]))
        trio = Trio(endpoints=[first.endpoint], ids=[], promoted=[])
        for number, tool in ((2, tools[0]), (3, tools[1])):
            url = f"http://127.0.0.1:{ports[number - 1][1]}"
            code, out, err = tool(first.endpoint, ["member", "add", f"n{number}", "--learner", f"--peer-urls={url}"], b"")
            assert (code, err) == (0, b"")
            joining = environment_of(out)
            assert joining["ETCD_NAME"] == f"n{number}"
            member = running.enter_context(launch(directory / f"n{number}", ports=ports[number - 1], joining=joining))
            trio.endpoints.append(member.endpoint)
            trio.promoted.append(wait_promoted(tool, first.endpoint, int(out.split()[1], 16)))
        _, out, _ = tools[0](first.endpoint, ["member", "list", "-w", "json"], b"")
        by_name = {member["name"]: member["ID"] for member in json.loads(out)["members"]}
        trio.ids = [by_name[name] for name in ("n1", "n2", "n3")]
        yield trio


@pytest.fixture
def trio(launch: Any, three_pairs_of_ports: list[tuple[int, int]], tmp_path: Path, etcdctl: Call, ours: Call) -> Iterator[Trio]:
    """What `three_members` makes."""
    with three_members(launch, three_pairs_of_ports, tmp_path, (etcdctl, ours)) as found:
        yield found


def test_a_cluster_grows_and_its_leadership_moves_alike(trio: Trio, etcdctl: Call, ours: Call, unused_endpoint: str) -> None:
    assert trio.promoted[0] == trio.promoted[1]
    assert trio.promoted[0][1].startswith(b"Member NEW promoted in cluster ")
    n1, n2, n3 = trio.ids
    everyone = ",".join(trio.endpoints)

    def leader() -> int:
        code, out, _ = etcdctl(trio.endpoints[0], ["endpoint", "status", "-w", "json"], b"")
        assert code == 0
        return int(json.loads(out)[0]["Status"]["leader"])

    def move(tool: Call, endpoints: str, source: int, target: int, *flags: str) -> Answer:
        """Masked: who was told, and whom. A busy machine may have moved leadership meanwhile: `source` has it first."""
        if source != leader():
            assert etcdctl(everyone, ["move-leader", f"{source:x}"], b"")[0] == 0
        code, out, err = tool(endpoints, ["move-leader", f"{target:x}", *flags], b"")
        return code, out.replace(b"%x" % source, b"SOURCE").replace(b"%x" % target, b"TARGET"), err

    assert move(ours, everyone, n1, n2) == move(etcdctl, everyone, n2, n3) == (0, b"Leadership transferred from SOURCE to TARGET\n", b"")
    assert move(ours, everyone, n3, n1, "-w", "json") == move(etcdctl, everyone, n1, n2, "-w", "json") == (0, b"{}\n", b"")
    followers = f"{trio.endpoints[2]},{trio.endpoints[0]}"
    refusal = move(etcdctl, followers, n2, n1)
    assert move(ours, followers, n2, n1) == refusal
    assert refusal == (128, b"", f"Error: no leader endpoint given at [{followers.replace(',', ' ')}]\n".encode())
    assert move(ours, f"{unused_endpoint},{everyone}", n2, n3) == (0, b"Leadership transferred from SOURCE to TARGET\n", b"")
    code, out, err = ours(f"{unused_endpoint},{trio.endpoints[0]}", ["move-leader", f"{n1:x}", "--dial-timeout=200ms"], b"")
    assert (code, out) == (128, b"")
    assert err.decode().splitlines() == [
        f"Failed to get the status of endpoint {unused_endpoint} (cannot connect: connection refused)",
        f"Error: no leader endpoint given at [{unused_endpoint} {trio.endpoints[0]}]",
    ]


def test_moving_leadership_with_nobody_there_is_exit_code_2(ours: Call, unused_endpoint: str) -> None:
    code, out, err = ours(unused_endpoint, ["move-leader", "1", "--dial-timeout=200ms"], b"")
    assert (code, out, err) == (2, b"", f"Error: cannot connect: {unused_endpoint}: connection refused\n".encode())
