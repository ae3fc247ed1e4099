"""A real server with injected faults: the log's failed sync ends it, a fault that is over does not."""

from __future__ import annotations

import pytest

from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import NodeProcess, member_flags

pytestmark = pytest.mark.process


def test_a_sync_that_fails_ends_the_server_with_one_line_and_the_next_start_needs_no_help(tmp_path):
    ports = PortAllocator()
    client, peer, http = ports.next_port(), ports.next_port(), ports.next_port()
    node = NodeProcess(
        name="kv1",
        directory=tmp_path,
        client_port=client,
        peer_port=peer,
        http_port=http,
        flags=member_flags("kv1", tmp_path / "data", client, peer, http, f"kv1=http://127.0.0.1:{peer}"),
        faults=["fdatasync:EIO:path=*.wal"],
    )
    try:
        node.start(wait_ready=False)
        assert node.wait_ended(30.0) == 1
        (event,) = node.log_events("the member stops")
        assert "Nothing more is acknowledged" in str(event["reason"])
        node.faults = ()
        node.start()
    finally:
        node.kill()
