"""`make cluster`: three members on 127.0.0.1 that stay up until Ctrl-C; their data survives in the directory given (default
.run/cluster)."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from kvserver.testing.processes import NodeProcess, NodeStartError, member_flags

PORTS = {"kv1": (2379, 2380, 2378), "kv2": (22379, 22380, 22378), "kv3": (32379, 32380, 32378)}


def main(arguments: list[str]) -> int:
    """Run the cluster; the exit code is 1 when a member can't start or ends by itself."""
    directory = Path(arguments[0] if arguments else ".run/cluster").resolve()
    initial = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer, _) in PORTS.items())
    nodes = [
        NodeProcess(
            name=name,
            directory=directory / name,
            client_port=client,
            peer_port=peer,
            http_port=http,
            flags=member_flags(name, directory / name / "data", client, peer, http, initial),
        )
        for name, (client, peer, http) in PORTS.items()
    ]
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        for node in nodes:
            node.start(wait_ready=False)
        for node in nodes:
            node.wait_ready()
        print(f"kvserver cluster is up (data and logs in {directory}):")
        for node in nodes:
            print(f"  {node.name}  {node.endpoint}  pid {node.pid}  http://127.0.0.1:{node.http_port}/health")
        print(f"\n  kvctl --endpoints={','.join(node.endpoint for node in nodes)} put hello world\n\nCtrl-C stops it.", flush=True)
        while not stop.wait(0.5):
            ended = [node.name for node in nodes if not node.is_running]
            if ended:
                print(f"{', '.join(ended)} ended by itself; see log.jsonl in its directory", file=sys.stderr)
                return 1
    except NodeStartError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for node in nodes:
            node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
