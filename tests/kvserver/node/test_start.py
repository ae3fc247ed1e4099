"""Starting and failing to start: what is left behind, and what is said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvserver import commands
from kvserver.commands import CommandKind, ProposalId
from kvserver.config import ServerConfig, parse
from kvserver.errors import NotEnoughStartedMembersError
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import Node
from kvserver.node.directory import open_data_directory
from kvserver.node.driver import Driver
from kvserver.node.node import PeerListenError
from kvserver.node.space import SpaceEvent
from kvserver.pb.rpc_pb2 import PutRequest
from kvserver.rpc import ListenError
from kvserver.server import Server
from kvserver.testing.ports import PortAllocator
from kvserver.types import NodeId
from raft.messages import Message, MessageType
from raft.types import Entry, EntryType, Index, Term


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


LOG = Logger(SilentOutput())


def config_for(root: Path, peer_port: int, client_port: int) -> ServerConfig:
    invocation = parse(
        [
            "--name=a",
            f"--data-dir={root}",
            f"--listen-client-urls=http://127.0.0.1:{client_port}",
            f"--advertise-client-urls=http://127.0.0.1:{client_port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-cluster=a=http://127.0.0.1:{peer_port}",
        ],
        {},
    )
    return invocation.config  # type: ignore[union-attr]


async def test_a_peer_port_in_use_is_one_clear_error_and_the_directory_can_be_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = PortAllocator()
    peer, client = ports.next_port(), ports.next_port()
    config = config_for(tmp_path, peer, client)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as squatter:
        squatter.bind(("127.0.0.1", peer))
        squatter.listen()
        with pytest.raises(ListenError, match=str(peer)):
            await Server(config, log=LOG).run()
        with pytest.raises(PeerListenError, match=str(peer)):  # taken between the look and the bind
            await Node.start(config, metrics=Metrics(version="test"), log=LOG)
        monkeypatch.setattr("kvserver.server.check_free", lambda url: None)
        with pytest.raises(PeerListenError, match=str(peer)) as raised:  # so the server says it, too: one error and no group
            await Server(config, log=LOG).run()
        assert isinstance(raised.value.__cause__, OSError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("wal", "snapshot", "store"))]
    node = await Node.start(config, metrics=Metrics(version="test"), log=LOG)
    await node.wait_published()
    await node.stop()


async def test_a_client_port_that_is_taken_meanwhile_is_one_error_and_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = PortAllocator()
    peer, client = ports.next_port(), ports.next_port()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as squatter:
        squatter.bind(("127.0.0.1", client))
        squatter.listen()
        monkeypatch.setattr("kvserver.server.check_free", lambda url: None)
        with pytest.raises(ListenError, match=str(client)):
            await Server(config_for(tmp_path, peer, client), log=LOG).run()


def test_every_directory_that_is_made_is_made_durable_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "deep" / "data"
    open_data_directory(root, root / "member" / "wal").close()
    assert synced == [str(tmp_path), str(tmp_path / "deep"), str(root), str(root / "member")]
    synced.clear()
    open_data_directory(root, root / "member" / "wal").close()
    assert synced == []


async def test_the_last_voter_can_not_be_removed_and_nothing_breaks_even_without_the_strict_check(tmp_path: Path) -> None:
    ports = PortAllocator()
    config = replace(config_for(tmp_path, ports.next_port(), ports.next_port()), strict_reconfig_check=False)
    for _ in range(2):  # the second life applies nothing again, but the refused entry is in its log
        node = await Node.start(config, metrics=Metrics(version="test"), log=LOG)
        try:
            await node.wait_published()
            with pytest.raises(NotEnoughStartedMembersError):
                await node.reconfiguration.remove(node.member_id, deadline_s=node.now_s() + 5.0)
            await node.wait_published()
            assert list(node.store.members) == [node.member_id]
            assert node.store.conf_state.voters == (node.member_id,)
            assert not node.store.removed_ids
        finally:
            await node.stop()


_SIGNALLED = """
import asyncio, os, signal, sys
from kvserver import server

class Stuck:
    def __init__(self, *_, **__): self.asked = 0
    def ask_stop(self, reason): self.asked += 1; print("asked", flush=True)
    async def run(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # a repetition: it changes nothing
        while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            await asyncio.sleep(0.01)
        assert self.asked == 2
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(30)

server.Server, server.FORCIBLE_AFTER_S = Stuck, 0.1
asyncio.run(server.serve(None, log=None))
"""


def test_a_stop_that_hangs_is_ended_by_a_later_signal() -> None:
    ended = subprocess.run([sys.executable, "-c", _SIGNALLED], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "asked\nasked\n"), ended.stderr


async def test_a_write_that_was_held_back_is_refused_when_the_disk_is_full_by_the_time_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = PortAllocator()
    config = config_for(tmp_path, ports.next_port(), ports.next_port())
    node = await Node.start(config, metrics=Metrics(version="test"), log=LOG)
    try:
        await node.wait_published()
        raw, last = node.driver.raw, node.driver.raw.last_index
        behind_bytes = config.max_uncommitted_bytes
        monkeypatch.setattr(Driver, "unapplied_bytes", property(lambda self: behind_bytes))
        for counter in (1, 2):
            data = commands.encode(CommandKind.PUT, ProposalId(NodeId(9), 1, counter), PutRequest(key=b"k").SerializeToString())
            forwarded = Entry(index=Index(0), term=Term(0), type=EntryType.NORMAL, data=data)
            message = Message(type=MessageType.PROP, from_=NodeId(9), to=node.member_id, entries=(forwarded,))
            node._parts.handler.on_message(message, Index(0))
            node.driver._run_turn()
            assert raw.last_index == last, "held"
            assert node.forwarded.is_waiting
            if counter == 1:
                node.space.note_store(OSError("full"))
                behind_bytes = 0
                node.driver._run_turn()
                assert (raw.last_index, node.forwarded.held_bytes) == (last, 0)
                node.space.note_store(None)
                node.space._note(SpaceEvent.STORE_FREE, "")
                behind_bytes = config.max_uncommitted_bytes
        behind_bytes = 0
        node.driver._run_turn()
        assert raw.last_index == last + 1, "there is space again"
    finally:
        await node.stop()
