"""The page of /debug/raft over a real member in this process: it is JSON, it adds up, and every field is documented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvserver.api import encode_page
from kvserver.config import ServerConfig, parse
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import DebugPages, Node, NodeStatus
from kvserver.node.accounting import OWNERS, accounted_bytes
from kvserver.testing.ports import PortAllocator
from kvserver.types import Index, NodeId

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "memory.md").read_text()
STRANGER = NodeId(0xB)


class SilentOutput:
    def write_line(self, line: str) -> None:
        del line


def config_for(root: Path) -> ServerConfig:
    port = PortAllocator().next_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--name=a", f"--data-dir={root}", f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}"]
    return parse([*flags, f"--initial-cluster=a={url}"], {}).config  # type: ignore[union-attr]


def keys_of(value: Any) -> Iterator[str]:
    """Every field's name, nested ones included."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield key
            yield from keys_of(below)
    elif isinstance(value, list):
        for each in value:
            yield from keys_of(each)


async def test_the_page_is_documented_json_that_adds_up(tmp_path: Path) -> None:
    config, metrics = config_for(tmp_path), Metrics(version="test")
    node = await Node.start(config, metrics=metrics, log=Logger(SilentOutput()))
    try:
        await node.wait_published()
        node.transport.add_peer(STRANGER, ["http://127.0.0.1:1"])  # nobody there: a peer about which nothing is known
        page = json.loads(encode_page(DebugPages(node, config, metrics).raft_page()))
        assert page["member"] == {"id": f"{node.member_id:x}", "name": "a"}
        assert (page["raft"]["role"], page["raft"]["leader"]) == ("leader", page["member"])
        window = page["window"]
        parts = [window[part] for part in ("slack", "held", "unsafe")]
        assert sum(part["entries"] for part in parts) == window["entries"] == node.window.entry_count
        assert sum(part["bytes"] for part in parts) == window["bytes"] == page["accounted_bytes"]["log_window"] > 0
        assert window["limits"] == {"entries": 100_000, "bytes": 64 << 20, "peer_grace_s": 10.0}
        assert tuple(page["accounted_bytes"]) == OWNERS
        (peer,) = page["peers"]
        assert peer["id"] == "b"
        unknown = ("state", "match_index", "next_index", "lag_entries", "lag_bytes", "contact_age_s", "pin", "hold")
        assert {key: peer[key] for key in unknown} == dict.fromkeys(unknown)
        undocumented = {key for key in keys_of({**page, "compactions": {}}) if f"`{key}`" not in DOCUMENT}
        assert not undocumented
        assert NodeStatus(node, config).node_state().accounted_bytes.keys() == set(OWNERS)
    finally:
        await node.stop()


async def test_a_pin_is_shown_with_what_it_holds_and_how_long_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, metrics = config_for(tmp_path), Metrics(version="test")
    node = await Node.start(config, metrics=metrics, log=Logger(SilentOutput()))
    try:
        await node.wait_published()
        await node.store.commit()
        progress = next(state for _, state, _ in node.driver.raw.progress()).copy()
        tracked = [*node.driver.raw.progress(), (STRANGER, progress, True)]
        monkeypatch.setattr(type(node.driver.raw), "progress", lambda self: tracked)
        pinned = Index(node.window.first_index())
        node.book.pin(STRANGER, pinned)
        (peer,) = DebugPages(node, config, metrics).raft_page()["peers"]  # type: ignore[misc]
        assert peer["pin"] == {"index": pinned, "remaining_s": None}, "its snapshot is still on the way"
        node.book.unpin_later(STRANGER, node.now_s())
        page: Any = DebugPages(node, config, metrics).raft_page()
        (peer,) = page["peers"]
        assert 25.0 < peer["pin"]["remaining_s"] <= 30.0
        assert peer["hold"]["claim"] == "snapshot"
        assert peer["hold"]["entries"] == page["raft"]["durable_index"] - pinned > 0
        assert peer["hold"]["remaining_s"] == pytest.approx(peer["pin"]["remaining_s"], abs=0.1)
        held_by = {key: value for key, value in page["window"]["held_by"].items() if key != "remaining_s"}
        assert held_by == {"id": "b", "name": "", "claim": "snapshot", "entries": peer["hold"]["entries"], "bytes": peer["hold"]["bytes"]}
    finally:
        monkeypatch.undo()
        await node.stop()


async def test_every_owner_counts_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tmp_path)
    node = await Node.start(config, metrics=Metrics(version="test"), log=Logger(SilentOutput()))
    try:
        await node.wait_published()
        sources = {
            "log_window": (type(node.window), "size_bytes"),
            "unstable_tail": (type(node.driver.raw), "unstable_bytes"),
            "proposals": (type(node.proposals), "pending_bytes"),
            "applying": (type(node.apply_queue), "queued_bytes"),
            "store_buffer": (type(node.store), "buffered_bytes"),
            "snapshot_transfers": (type(node.transport), "snapshot_buffer_bytes"),
            "reads_waiting": (type(node.reads), "waiting_count"),
        }
        for number, (owner, name) in enumerate(sources.values(), start=1):
            monkeypatch.setattr(owner, name, property(lambda _, figure=number: figure * 10))
        counted = accounted_bytes(node)
        assert [counted[owner] for owner in sources] == [10, 20, 30, 40, 50, 60, 70 * 2048]
        assert counted["peer_queues"] == 0
    finally:
        monkeypatch.undo()
        await node.stop()
