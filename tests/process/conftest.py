"""Real kvserver processes for the tests in this folder; whatever a test leaves running is killed by its process id."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, ProcessCluster, member_flags


@pytest.fixture(scope="session")
def ports() -> PortAllocator:
    """One allocator for the whole run."""
    return PortAllocator()


MakeCluster = Callable[..., ProcessCluster]


@pytest.fixture
def make_cluster(tmp_path: Path, ports: PortAllocator) -> Iterator[MakeCluster]:
    """Builds (and does not start) clusters under the test's directory."""
    made: list[ProcessCluster] = []

    def make(size: int = 3, flags: tuple[str, ...] = ()) -> ProcessCluster:
        cluster = ProcessCluster(tmp_path / f"cluster{len(made)}", size=size, flags=flags, ports=ports)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        for node in cluster.nodes:
            node.kill()
    shutil.rmtree(tmp_path, ignore_errors=True)  # stores are large; pytest would keep three runs of them


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ports: PortAllocator) -> Iterator[ProcessCluster]:
    """Three healthy members that a module's tests share."""
    directory = tmp_path_factory.mktemp("shared-cluster")
    with ProcessCluster(directory, ports=ports) as shared:
        shared.start()
        yield shared
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def make_node(tmp_path: Path, ports: PortAllocator) -> Iterator[Callable[..., NodeProcess]]:
    """Builds single members with flags of the test's own on top of the usual ones."""
    made: list[NodeProcess] = []

    def make(*flags: str, name: str = "solo", directory: Path | None = None, initial_cluster: str | None = None) -> NodeProcess:
        client, peer, http = ports.next_port(), ports.next_port(), ports.next_port()
        home = directory or tmp_path / name
        initial = initial_cluster or f"{name}=http://127.0.0.1:{peer}"
        node = NodeProcess(
            name=name,
            directory=home,
            client_port=client,
            peer_port=peer,
            http_port=http,
            flags=[*member_flags(name, home / "data", client, peer, http, initial), *flags],
        )
        made.append(node)
        return node

    yield make
    for node in made:
        node.kill()
