"""A relay between members that can make one of them slow, or all of them distant: a process of its own, not to disturb who measures.

Purpose: a slow follower, the same way for every system. In etcd the follower dials the leader and the leader answers with the log on that
connection; in kvserver every member dials its peers. So a relay stands before *every* member, and throttles the connections that the slow
member has a part in, whichever side dialled.

Rules: who dialled is found in /proc: the owner of the connecting socket. Orders come on stdin, one JSON object per line: `{"pid": 12,
"port": 2380, "bytes_per_s": 1000000}` makes the process that listens on that port slow, `{"bytes_per_s": 0}` ends it; `{"delay_s": 0.02}`
lets everything in every direction of every connection arrive that much later (bench/delay.py). The relay ends when its stdin does, so it
can't outlive the process that started it. Each direction of each connection has the rate for itself.

Caveats: Linux only; buffers of the sockets (some MB) come on top of what the rate lets pass.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.delay import DelayLine

PIECE_BYTES: Final = 64 * 1024
START_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One relay: what connects to `listen_port` reaches `target_port`, both on 127.0.0.1."""

    listen_port: int
    target_port: int


def socket_inode(table: str, local_port: int) -> str | None:
    """The inode of the socket whose local end is `local_port` in a /proc/net/tcp table that has a remote end; None if it has none."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[1].endswith(f":{local_port:04X}") and not fields[2].endswith(":0000"):
            return fields[9]
    return None


def _connections() -> str:
    """The kernel's table of TCP sockets: made when it is read, so that reading it never waits for a disk."""
    return Path("/proc/net/tcp").read_text()


def owns_socket(pid: int, inode: str) -> bool:
    """Whether a process has that socket open; False when it is gone."""
    wanted = f"socket:[{inode}]"
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                return True
        except OSError:  # closed while we looked
            continue
    return False


def pause_s(sent_bytes: int, elapsed_s: float, bytes_per_s: float) -> float:
    """How long to wait so that `sent_bytes` since the start took as long as the rate wants; 0 without a rate."""
    return max(0.0, sent_bytes / bytes_per_s - elapsed_s) if bytes_per_s > 0 else 0.0


class Relay:
    """All links of one cluster, whom to throttle, and how far apart the members are."""

    def __init__(self) -> None:
        self._slow_pid = 0
        self._slow_port = 0
        self._bytes_per_s = 0.0
        self._delay_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def order(self, line: bytes) -> None:
        """Take one order (module docstring)."""
        wish = json.loads(line)
        self._delay_s = float(wish.get("delay_s", self._delay_s))
        self._bytes_per_s = float(wish.get("bytes_per_s", self._bytes_per_s))
        self._slow_pid, self._slow_port = int(wish.get("pid", self._slow_pid)), int(wish.get("port", self._slow_port))

    async def serve(self, link: Link) -> asyncio.Server:
        """Listen for one link."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._carry(link, reader, writer)

        return await asyncio.start_server(accept, "127.0.0.1", link.listen_port)

    async def _carry(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled_from: int = writer.get_extra_info("peername")[1]
        inode = socket_inode(_connections(), dialled_from)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", link.target_port)
        except OSError:  # the member is down: its peer sees a closed connection, as without a relay
            writer.close()
            return
        there, back = DelayLine(lambda: self._delay_s), DelayLine(lambda: self._delay_s)
        ways = (
            _take_in(reader, there),
            self._pump(link, inode, there, up_writer),
            _take_in(up_reader, back),
            self._pump(link, inode, back, writer),
        )
        tasks = {asyncio.create_task(way, name=f"relay-{link.listen_port}") for way in ways}
        self._tasks |= tasks
        await asyncio.wait(tasks)
        self._tasks -= tasks

    async def _pump(self, link: Link, inode: str | None, line: DelayLine, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop()
        known_pid, is_dialler = 0, False
        began_s, sent_bytes, rate = clock.time(), 0, 0.0
        try:
            while piece := await line.take():
                if known_pid != self._slow_pid:
                    known_pid, is_dialler = self._slow_pid, inode is not None and owns_socket(self._slow_pid, inode)
                wanted = self._bytes_per_s if is_dialler or link.target_port == self._slow_port else 0.0
                if wanted != rate:
                    began_s, sent_bytes, rate = clock.time(), 0, wanted
                writer.write(piece)
                await writer.drain()
                sent_bytes += len(piece)
                await asyncio.sleep(pause_s(sent_bytes, clock.time() - began_s, rate))
        except OSError:
            return  # one end is gone; the other is closed below
        finally:
            writer.close()
            line.end()  # nobody takes any more: who reads for it must not wait for room


async def _take_in(reader: asyncio.StreamReader, line: DelayLine) -> None:
    """Put what comes on the line, until there is no more or nobody takes it."""
    try:
        while not line.is_ended and (piece := await reader.read(PIECE_BYTES)):
            await line.put(piece)
    except OSError:
        pass  # as an end: the other side is closed when it has what came before
    await line.put(b"")


async def relay(links: Sequence[Link]) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    relays = Relay()
    servers = [await relays.serve(link) for link in links]
    print("ready", flush=True)
    while line := await orders.readline():
        relays.order(line)
    for server in servers:
        server.close()


class ProxyProcess:
    """The relay as a child process."""

    def __init__(self, links: Sequence[Link]) -> None:
        command = [sys.executable, __file__, *(f"{link.listen_port}:{link.target_port}" for link in links)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != b"ready":
            self.stop()
            raise RuntimeError("the relay between members did not start")

    def throttle(self, pid: int, port: int, bytes_per_s: float) -> None:
        """Let the member with this process and peer port have that rate from now on, per connection and direction."""
        self._order({"pid": pid, "port": port, "bytes_per_s": bytes_per_s})

    def release(self) -> None:
        """Throttle nobody."""
        self._order({"bytes_per_s": 0})

    def delay(self, delay_s: float) -> None:
        """Let everything in each direction of each connection arrive that much later from now on."""
        self._order({"delay_s": delay_s})

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _order(self, wish: dict[str, float]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish).encode() + b"\n")
        self._process.stdin.flush()


def main() -> int:
    """Run the relay: `proxy.py LISTEN:TARGET ...`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("links", nargs="+", metavar="LISTEN:TARGET", help="ports on 127.0.0.1")
    pairs = [text.split(":") for text in parser.parse_args().links]
    asyncio.run(relay([Link(listen_port=int(listen), target_port=int(target)) for listen, target in pairs]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
