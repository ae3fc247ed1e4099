"""Who a new member is, by the answers of the members that are there; and that nobody takes part twice with an empty directory."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kvserver.apply import Store
from kvserver.config import ServerConfig, parse
from kvserver.logs import Logger
from kvserver.node import bootstrap, joining
from kvserver.node.bootstrap import BootstrapError
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import open_data_directory
from kvserver.node.joining import JoinError, ask_cluster, has_taken_part
from kvserver.types import ClusterId, NodeId

OWN_URL = "http://127.0.0.1:7001"
Serve = Callable[[bytes], Awaitable[str]]


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


LOG = Logger(SilentOutput())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers late: that is not what is tested here."""
    monkeypatch.setattr(joining, "ASK_TIMEOUT_S", 60.0)


@pytest.fixture
def host() -> str:
    """A loopback address of this test alone: what other tests and clusters of this machine dial on 127.0.0.1 does not come here, and
    nobody else answers here."""
    return ".".join(["127", *(str(random.SystemRandom().randrange(1, 255)) for _ in range(3))])


@pytest.fixture
def silent_url(host: str) -> Iterator[str]:
    """An address at which nobody answers: the port is taken, and nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind((host, 0))
        yield f"http://{host}:{taken.getsockname()[1]}"


@pytest.fixture
async def serve(host: str) -> AsyncIterator[Serve]:
    """Peer ports that answer every request with the given bytes."""
    servers: list[asyncio.Server] = []

    async def start(answer: bytes) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                return  # the test ends
            finally:
                writer.close()

        server = await asyncio.start_server(handle, host, 0)
        servers.append(server)
        return f"http://{host}:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


def row(member_id: int, url: str, name: str = "", *, has_run: bool = False) -> dict[str, object]:
    client_urls = ["http://127.0.0.1:2379"] if has_run else []
    return {"id": member_id, "name": name, "peerURLs": [url], "clientURLs": client_urls, "isLearner": False}


def page(*members: dict[str, object], removed: tuple[int, ...] = (), cluster_id: int = 99) -> bytes:
    body = json.dumps({"cluster_id": cluster_id, "members": members, "removed": removed}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def config_for(*urls: str, root: Path = Path("unused"), state: str = "existing") -> ServerConfig:
    others = [f"m{number}={url}" for number, url in enumerate(urls)]
    invocation = parse(
        [
            "--name=new",
            f"--data-dir={root}",
            f"--initial-advertise-peer-urls={OWN_URL}",
            f"--initial-cluster={','.join([*others, f'new={OWN_URL}'])}",
            f"--initial-cluster-state={state}",
        ],
        {},
    )
    return invocation.config  # type: ignore[union-attr]


async def test_a_member_that_lags_does_not_hide_what_another_knows(serve: Serve) -> None:
    lagging = await serve(page(row(1, "http://127.0.0.1:7100", "m0")))
    current = await serve(page(row(1, "http://127.0.0.1:7100", "m0"), row(5, OWN_URL)))
    invitation = await ask_cluster(config_for(lagging, current))
    assert (invitation.member_id, invitation.cluster_id, sorted(invitation.members)) == (5, 99, [1, 5])


async def test_an_id_that_somebody_knows_as_removed_is_nobodys(serve: Serve) -> None:
    lagging = await serve(page(row(4, OWN_URL)))
    current = await serve(page(row(5, OWN_URL), removed=(4,)))
    assert (await ask_cluster(config_for(lagging, current))).member_id == 5
    with pytest.raises(JoinError, match="member add"):
        await ask_cluster(config_for(lagging, await serve(page(removed=(4,)))))


async def test_a_member_that_took_part_may_not_come_back_empty_handed(serve: Serve) -> None:
    url = await serve(page(row(5, OWN_URL, "new", has_run=True)))
    with pytest.raises(JoinError, match="already taken part"):
        await ask_cluster(config_for(url))


async def test_members_of_different_clusters_are_refused(serve: Serve) -> None:
    first, second = await serve(page(row(5, OWN_URL))), await serve(page(row(5, OWN_URL), cluster_id=98))
    with pytest.raises(JoinError, match="different clusters"):
        await ask_cluster(config_for(first, second))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe garbage\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\n\r\n{"cluster_id": 1, "members": [{"id": "x"}], "removed": []}',
        b'HTTP/1.1 200 OK\r\n\r\n{"cluster_id": 1, "members": null, "removed": []}',
        page(row(5, "ftp://nonsense")),
    ],
)
async def test_an_answer_that_is_no_page_is_passed_over(serve: Serve, answer: bytes) -> None:
    bad, good = await serve(answer), await serve(page(row(5, OWN_URL)))
    assert (await ask_cluster(config_for(bad, good))).member_id == 5
    with pytest.raises(JoinError, match="could be asked"):
        await ask_cluster(config_for(bad))


async def test_a_founding_member_is_told_whether_it_was_there_before(serve: Serve, silent_url: str) -> None:
    fresh = await serve(page(row(5, OWN_URL, "new")))  # a founder's name is known from the flags
    assert not await has_taken_part(config_for(fresh), NodeId(5), ClusterId(99))
    assert await has_taken_part(config_for(fresh, await serve(page(row(5, OWN_URL, "new", has_run=True)))), NodeId(5), ClusterId(99))
    assert await has_taken_part(config_for(await serve(page(removed=(5,)))), NodeId(5), ClusterId(99))
    assert not await has_taken_part(config_for(silent_url), NodeId(5), ClusterId(99))


async def test_a_founding_member_is_refused_where_another_member_is_of_another_cluster(serve: Serve) -> None:
    restored = await serve(page(row(5, OWN_URL, "new")))
    with pytest.raises(
        JoinError,
        match=r"new, empty cluster 64, but .* of cluster 63, which was .*only if no member .* has served yet, restore the same snapshot",
    ):
        await has_taken_part(config_for(restored), NodeId(5), ClusterId(100))


async def begin(config: ServerConfig) -> bootstrap.Origin:
    """Start from the directory and crash at once: nothing is committed on the way out."""
    directory = open_data_directory(config.data_dir, config.wal_dir)
    store = Store.open(directory.store)
    try:
        origin = await bootstrap.begin(config, directory, store, WindowLimits(), LOG)
        origin.wal.close()
        return origin
    finally:
        await store.close(commit=False)
        directory.close()


async def test_a_founding_member_with_an_empty_directory_is_refused_when_it_took_part(
    serve: Serve, silent_url: str, tmp_path: Path
) -> None:
    known = row(1, "http://127.0.0.1:7100", "m0")
    config = config_for(silent_url, root=tmp_path / "first", state="new")
    origin = await begin(config)
    url = await serve(page(known, row(origin.member_id, OWN_URL, "new", has_run=True)))
    again = config_for(url, root=tmp_path / "second", state="new")
    own = bootstrap.members_of(again)
    own_id = next(member.id for member in own.values() if member.name == "new")
    assert own_id == origin.member_id
    with pytest.raises(BootstrapError, match="already been bootstrapped"):
        await begin(again)


async def test_a_joining_member_that_crashes_right_after_its_first_start_can_start_again(serve: Serve, tmp_path: Path) -> None:
    config = config_for(await serve(page(row(1, "http://127.0.0.1:7100", "m0"), row(5, OWN_URL))), root=tmp_path)
    assert (await begin(config)).member_id == 5
    again = await begin(config)
    assert (again.member_id, again.cluster_id, again.window.last_index()) == (5, 99, 0)
