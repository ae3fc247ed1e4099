"""The load: clients that put values, in a closed loop or at a rate, the same for every system, in a process of its own.

Purpose: `Workload` says what is written, `LoadProcess` runs it beside the caller and can be told to end early, `LoadResult` is what
happened.

Rules: every put has another value (a window at a random place of a block of random bytes, so that nothing compresses and nothing is
shared); a put that fails is counted by its status and made again, after 20 ms; only acknowledged puts count as puts. With a rate, put
number n is due n / rate seconds after the start and its latency counts from then, however late it was sent (an open loop, as long as a
client is free). Times are CLOCK_MONOTONIC seconds, which all processes of a machine share.

    python bench/workloads.py --endpoint 127.0.0.1:2379 --puts 1000 --value-bytes 1000000 --clients 50
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import grpc
import uvloop
from google.protobuf.message import Message

from bench.signals import deferred
from kvserver.pb import rpc_pb2

UNBOUNDED: Final = 1 << 40
MAX_CONNECTIONS: Final = 10
CALL_TIMEOUT_S: Final = 30.0
RETRY_PAUSE_S: Final = 0.02
FEWEST_PUTS: Final = 20
_END_TIMEOUT_S: Final = CALL_TIMEOUT_S + 15.0
_Put: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Message, rpc_pb2.PutResponse]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`puts` values of `value_bytes`, each under a key of its own, all under one, or in turn under `key_count` keys (0: no such limit), by
    `clients` that each wait for their answer.

    `rate_per_s` is that of all clients together; 0: each sends its next put when it has the answer.
    """

    puts: int
    value_bytes: int
    is_one_key: bool = False
    clients: int = 1
    rate_per_s: float = 0.0
    key_count: int = 0

    def scaled(self, scale: float) -> int:
        """The puts of a quick look: `scale` of them, but not so few that nothing can be seen."""
        return max(FEWEST_PUTS, round(self.puts * scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load did between `began_s` and `ended_s`; `done_s` are the times of the acknowledged puts, in order."""

    began_s: float
    ended_s: float
    done_s: Sequence[float]
    latencies_s: Sequence[float]
    failures: dict[str, int]

    def puts_between(self, from_s: float, to_s: float) -> int:
        """Acknowledged puts in the half-open [from_s, to_s)."""
        return sum(from_s <= at_s < to_s for at_s in self.done_s)


@dataclass(slots=True)
class _Tally:
    done_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    is_over: bool = False


class LoadProcess:
    """The load of one endpoint as a child process; it has begun (an answer came) when the constructor returns."""

    def __init__(self, endpoint: str, workload: Workload, *, prefix: str, puts: int, seconds: float) -> None:
        command = [sys.executable, __file__, f"--endpoint={endpoint}", f"--prefix={prefix}", f"--puts={puts}", f"--seconds={seconds:.3f}"]
        command += [f"--value-bytes={workload.value_bytes}", f"--clients={workload.clients}"]
        command += ["--one-key"] if workload.is_one_key else []
        command += [f"--rate={workload.rate_per_s}"] if workload.rate_per_s else []
        command += [f"--key-count={workload.key_count}"] if workload.key_count else []
        self._seconds = seconds
        with deferred():
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, bufsize=0
            )  # readline() must not take what communicate() reads
        try:
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() != b"begun":
                raise RuntimeError("the load did not start")
        except BaseException:  # SIGTERM, too: nobody else knows the process yet
            self.kill()
            raise

    def end(self) -> LoadResult:
        """Tell the clients to end after the puts that they wait for, and return what happened."""
        self._process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> LoadResult:
        """Wait for the load to end by itself (its puts are done or its seconds are over).

        Raises:
            RuntimeError: it failed.
        """
        try:
            text, _ = self._process.communicate(timeout=self._seconds + _END_TIMEOUT_S)
        finally:
            self.kill()
        if self._process.returncode:
            raise RuntimeError(f"the load failed with exit code {self._process.returncode}")
        try:
            return LoadResult(**json.loads(text))
        except ValueError as error:
            raise RuntimeError(f"the load's result can't be read: {error}") from error

    def kill(self) -> None:
        """End it at once and wait for it; nothing when it has ended."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def run_load(options: argparse.Namespace) -> LoadResult:
    """Put until the puts are acknowledged, the seconds are over or SIGTERM comes."""
    tally = _Tally()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(tally, "is_over", True))
    channel_options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(options.endpoint, options=channel_options) for _ in range(min(MAX_CONNECTIONS, options.clients))]
    block = os.urandom(2 * options.value_bytes + 4096)
    dice = random.Random()
    numbers = itertools.count()
    turn = asyncio.Lock()
    began_s = time.monotonic()

    async def wait_due(number: int) -> float | None:
        """When the put was due, once it is; None without a rate."""
        if not options.rate:
            return None
        due_s: float = began_s + number / options.rate
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        return due_s

    async def client(channel: grpc.aio.Channel) -> None:
        put: _Put = channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString, rpc_pb2.PutResponse.FromString)
        while True:
            async with turn:  # one client waits for its time, the others for their turn: so nobody sleeps past the end
                if tally.is_over or (number := next(numbers)) >= options.puts:
                    return
                due_s = await wait_due(number)
            if tally.is_over:
                return
            key = options.prefix if options.one_key else f"{options.prefix}/{number % options.key_count:09d}"
            start = dice.randrange(options.value_bytes + 4096)
            request = rpc_pb2.PutRequest(key=key.encode(), value=block[start : start + options.value_bytes])
            while not await _put(put, request, tally, due_s):
                if tally.is_over or time.monotonic() - began_s > options.seconds:
                    return
            if time.monotonic() - began_s > options.seconds:
                tally.is_over = True

    await asyncio.gather(*(client(channels[number % len(channels)]) for number in range(options.clients)))
    ended_s = time.monotonic()
    if not tally.done_s:
        print("begun", flush=True)  # nobody shall wait for a first answer that never came
    for channel in channels:
        await channel.close()
    return LoadResult(began_s=began_s, ended_s=ended_s, done_s=tally.done_s, latencies_s=tally.latencies_s, failures=dict(tally.failures))


async def _put(put: _Put, request: rpc_pb2.PutRequest, tally: _Tally, due_s: float | None) -> bool:
    sent_s = time.monotonic() if due_s is None else due_s
    try:
        await put(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        tally.failures[error.code().name] += 1
        await asyncio.sleep(RETRY_PAUSE_S)
        return False
    now_s = time.monotonic()
    tally.done_s.append(now_s)
    tally.latencies_s.append(now_s - sent_s)
    if len(tally.done_s) == 1:
        print("begun", flush=True)
    return True


def main() -> int:
    """Run a load and print its `LoadResult` as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--prefix", default="bench/load", help="of the keys, or the key itself with --one-key")
    parser.add_argument("--puts", type=int, default=UNBOUNDED)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most")
    parser.add_argument("--value-bytes", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="puts per second of all clients together (default: a closed loop)")
    parser.add_argument("--one-key", action="store_true")
    parser.add_argument("--key-count", type=int, default=UNBOUNDED, help="so many keys, in turn")
    done = uvloop.run(run_load(parser.parse_args()))
    text = json.dumps({name: getattr(done, name) for name in LoadResult.__dataclass_fields__})
    # not print: where stdout is unbuffered (PYTHONUNBUFFERED), what does not fit into the pipe at once may be lost
    with open(sys.stdout.fileno(), "wb", closefd=False) as whole:
        whole.write(text.encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
