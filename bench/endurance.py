"""`make bench-endurance`: does memory grow with time, and with the number of keys?

    python bench/endurance.py puts                                 # 200,000 puts of 256 B, three members
    python bench/endurance.py puts --nodes 1 --puts 50000
    python bench/endurance.py keys                                 # 1,000,000 keys of 256 B on one member, then a restart

`puts` loads the leader with closed-loop clients over a limited set of keys and fits a line through the samples of anonymous memory of
each member, the first tenth left out: its slope, per 100,000 puts, beside the spread of the samples round it. Growth counts as noise
while what the line gains over the run is less than twice that spread.

`keys` fills one member by transactions of 128 puts, looks at its memory, starts it anew and times that until it answers a
linearizable read.

Exit codes: 0 within the bounds (no growth; below 150 MB anonymous and 10 s to start); 1 beyond them, or failed; 2 a wrong option.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from bench.members import SYSTEMS, Cluster, Deadline, Member
from bench.report import MB, megabytes, table
from bench.sampling import Sample, Sampler, peak, slope_per_s
from bench.workloads import LoadProcess, Workload
from kvserver.pb import rpc_pb2
from kvserver.testing.load import KvCalls
from kvserver.testing.ports import PortAllocator

WARM_UP_SHARE: Final = 0.1
MOST_ANONYMOUS_BYTES: Final = 150 * MB
LONGEST_START_S: Final = 10.0
TXN_PUTS: Final = 128  # etcd's --max-txn-ops
FILLERS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The line through a member's samples: `slope_bytes` for each 100,000 puts, `gain_bytes` over the run, `spread_bytes` round it."""

    mean_bytes: float
    peak_bytes: int
    slope_bytes: float
    gain_bytes: float
    spread_bytes: float

    @property
    def is_noise(self) -> bool:
        """The line gains no more than twice what the samples scatter round it."""
        return self.gain_bytes <= 2 * self.spread_bytes


def trend(samples: Sequence[Sample], from_s: float, to_s: float, puts: int) -> Trend:
    """The trend of anonymous memory during a load of `puts` in [from_s, to_s], without its warm-up.

    Raises:
        ValueError: fewer than three samples.
    """
    seconds = to_s - from_s
    warm_s = from_s + WARM_UP_SHARE * seconds
    points = [(each.at_s - warm_s, float(each.anonymous_bytes)) for each in samples if warm_s <= each.at_s <= to_s]
    if len(points) < 3:
        raise ValueError("too few samples for a trend")
    slope = slope_per_s(points)
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    residuals = [y - mean_y - slope * (x - mean_x) for x, y in points]
    return Trend(
        mean_bytes=mean_y,
        peak_bytes=peak(samples).anonymous_bytes,
        slope_bytes=slope * seconds / puts * 100_000,
        gain_bytes=slope * (points[-1][0] - points[0][0]),
        spread_bytes=math.sqrt(sum(each * each for each in residuals) / (len(points) - 2)),
    )


@contextmanager
def running(options: argparse.Namespace, nodes: int) -> Iterator[tuple[Cluster, Member, Deadline]]:
    """A cluster in a temporary directory, its leader, and the run's deadline."""
    deadline = Deadline(options.seconds)
    with (
        tempfile.TemporaryDirectory(prefix="kvserver-bench-", dir=options.directory) as directory,
        Cluster(SYSTEMS[options.system], Path(directory), size=nodes, ports=PortAllocator()) as cluster,
    ):
        cluster.start(deadline)
        yield cluster, cluster.leader(deadline), deadline


def sampler_of(cluster: Cluster) -> Sampler:
    """Samples every member of the cluster."""

    def pid_of(member: Member) -> Callable[[], int | None]:
        return lambda: member.pid

    return Sampler({member.name: pid_of(member) for member in cluster.members})


def put_for_long(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Load the leader; the figures, and whether memory stayed."""
    workload = Workload(puts=options.puts, value_bytes=options.value_bytes, clients=options.clients, key_count=options.key_count)
    with running(options, options.nodes) as (cluster, leader, deadline):
        with sampler_of(cluster) as sampler:
            load = LoadProcess(leader.endpoint, workload, prefix="bench/long", puts=options.puts, seconds=deadline.left_s())
            try:
                done = load.result()
            finally:
                load.kill()
        puts, seconds = len(done.done_s), done.ended_s - done.began_s
        trends = {name: trend(samples, done.began_s, done.ended_s, puts) for name, samples in sampler.series.items()}
    print(f"{puts} puts of {options.value_bytes} B by {options.clients} clients in {seconds:.0f} s: {puts / seconds:,.0f} puts/s\n")
    rows = [
        [name, megabytes(each.mean_bytes), megabytes(each.peak_bytes)]
        + [f"{value / MB:+.2f}" for value in (each.slope_bytes, each.gain_bytes, each.spread_bytes)]
        + ["yes" if each.is_noise else "NO"]
        for name, each in trends.items()
    ]
    header = ["member", "mean anon MB", "peak anon MB", "MB for each 100,000 puts", "gain MB", "spread MB", "noise"]
    print(table(header, rows))
    figures = {
        "puts": puts,
        "seconds": seconds,
        "failures": done.failures,
        "members": {name: asdict(each) for name, each in trends.items()},
    }
    return figures, puts == options.puts and all(each.is_noise for each in trends.values())


async def fill(endpoint: str, keys: int, value_bytes: int) -> None:
    """Put `keys` keys, 128 to a transaction, all different."""
    starts = iter(range(0, keys, TXN_PUTS))
    block = os.urandom(1 << 20)

    def put(number: int) -> rpc_pb2.RequestOp:
        at = number * 131 % (len(block) - value_bytes)
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"bench/%09d" % number, value=block[at : at + value_bytes]))

    async def filler() -> None:
        async with grpc.aio.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest.SerializeToString, rpc_pb2.TxnResponse.FromString)
            for start in starts:
                await call(rpc_pb2.TxnRequest(success=[put(number) for number in range(start, min(start + TXN_PUTS, keys))]), timeout=60)

    await asyncio.gather(*(filler() for _ in range(FILLERS)))


def hold_many_keys(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Fill a member and restart it; the figures, and whether they are within the bounds."""
    with running(options, 1) as (cluster, member, deadline):
        with sampler_of(cluster) as filling:
            began_s = time.monotonic()
            uvloop.run(fill(member.endpoint, options.keys, options.value_bytes))
            fill_s = time.monotonic() - began_s
        member.kill()
        with sampler_of(cluster) as starting:
            began_s = time.monotonic()
            member.start()
            member.wait_ready(deadline)
            start_s = time.monotonic() - began_s
            calls = KvCalls(member.endpoint)
            try:
                count = calls.range(rpc_pb2.RangeRequest(key=b"bench/", range_end=b"bench0", count_only=True)).count
            finally:
                calls.close()
    if count != options.keys:
        raise RuntimeError(f"{options.keys} keys were put, {count} are there")
    peaks = {
        "filling": peak(filling.series[member.name]).anonymous_bytes,
        "after the restart": peak(starting.series[member.name]).anonymous_bytes,
    }
    print(f"{count} keys of {options.value_bytes} B, put in {fill_s:.0f} s; killed and started again: answers after {start_s:.2f} s\n")
    print(table(["phase", "peak anon MB"], [[phase, megabytes(value)] for phase, value in peaks.items()]))
    figures = {"keys": count, "fill_s": fill_s, "start_s": start_s, "peak_anonymous_bytes": peaks}
    return figures, max(peaks.values()) < MOST_ANONYMOUS_BYTES and start_s < LONGEST_START_S


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=list(SYSTEMS), default="kvserver")
    parser.add_argument("--seconds", type=float, default=3600.0, help="bound on the run")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--directory", type=Path, default=None, help="where the members' data goes (default: the system's temporary one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "endurance")
    commands = parser.add_subparsers(required=True, dest="measurement")
    puts = commands.add_parser("puts", help="a long loop of puts")
    puts.set_defaults(measure=put_for_long)
    puts.add_argument("--puts", type=int, default=200_000)
    puts.add_argument("--clients", type=int, default=50)
    puts.add_argument("--key-count", type=int, default=10_000, help="so many keys are put over and over")
    puts.add_argument("--nodes", type=int, choices=(1, 3), default=3)
    keys = commands.add_parser("keys", help="many keys, and a start with them")
    keys.set_defaults(measure=hold_many_keys)
    keys.add_argument("--keys", type=int, default=1_000_000)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure, print, and write the figures."""
    options = parse()
    figures, is_within = options.measure(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.measurement}.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {options.out}")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
