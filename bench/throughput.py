"""`make bench`: puts per second on a single node, beside a bare grpc.aio echo of the same message sizes, alternating in one run.

Only the ratio means anything: machines differ, and this one may be noisy. Two generators: h2load (Debian package nghttp2-client; cheap,
so the server is the ceiling; one key) when it is installed, and `bench/generator.py` (grpc.aio, unique keys; the generator costs as much
as the server). The server's revision must have grown by the number of puts, or the run fails.

    python bench/throughput.py [--rounds 5] [--size 256] [--json bench/out/throughput.json]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from kvserver.pb import rpc_pb2
from kvserver.testing.ports import PortAllocator
from kvserver.testing.processes import ProcessCluster

HERE = Path(__file__).parent
CONCURRENCIES = {1: (1, 1, 2_000), 100: (10, 10, 10_000)}  # concurrency: (connections, streams per connection, calls)


@contextmanager
def echo_server(port: int) -> Iterator[str]:
    """The bare echo, as a process."""
    process = subprocess.Popen([sys.executable, str(HERE / "echo_server.py"), str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise RuntimeError("the echo server did not start")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def run_h2load(target: str, concurrency: int, value_size_bytes: int) -> float:
    """Puts per second by h2load."""
    connections, streams, calls = CONCURRENCIES[concurrency]
    body = rpc_pb2.PutRequest(key=b"bench/key", value=b"v" * value_size_bytes).SerializeToString()
    with tempfile.NamedTemporaryFile() as frame:
        frame.write(b"\0" + len(body).to_bytes(4, "big") + body)
        frame.flush()
        command = ["h2load", f"-n{calls}", f"-c{connections}", f"-m{streams}", "-d", frame.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{target}/etcdserverpb.KV/Put"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"([\d.]+) req/s", text)
    if found is None or f"{calls} succeeded" not in text:
        raise RuntimeError(f"h2load against {target} failed:\n{text}")
    return float(found.group(1))


def run_aio(target: str, concurrency: int, value_size_bytes: int) -> float:
    """Puts per second by the grpc.aio generator."""
    calls = CONCURRENCIES[concurrency][2] // 2
    command = [sys.executable, str(HERE / "generator.py"), target, f"--total={calls}"]
    command += [f"--concurrency={concurrency}", f"--value-size={value_size_bytes}"]
    rate: float = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rate"]
    return rate


def revision(target: str) -> int:
    """The store's revision, by a serializable range."""
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=rpc_pb2.RangeRequest.SerializeToString,
            response_deserializer=rpc_pb2.RangeResponse.FromString,
        )
        answer: rpc_pb2.RangeResponse = call(rpc_pb2.RangeRequest(key=b"bench/none"), timeout=5)
    return answer.header.revision


def measure(rounds: int, value_size_bytes: int) -> list[dict[str, object]]:
    """All rows: generator x concurrency, each with the medians of both servers and their ratio."""
    generators: dict[str, Callable[[str, int, int], float]] = {"grpc.aio": run_aio}
    if shutil.which("h2load"):
        generators = {"h2load": run_h2load, **generators}
    ports = PortAllocator()
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        echo_server(ports.next_port()) as echo,
        ProcessCluster(Path(directory), size=1, ports=ports) as cluster,
    ):
        cluster.start()
        target = cluster.nodes[0].endpoint
        for name, generator in generators.items():
            for concurrency in CONCURRENCIES:
                rates: dict[str, list[float]] = {echo: [], target: []}
                before, puts = revision(target), 0
                for number in range(rounds + 1):
                    for server in (echo, target):
                        rate = generator(server, concurrency, value_size_bytes)
                        if number:  # the first round warms up
                            rates[server].append(rate)
                    puts += CONCURRENCIES[concurrency][2] // (1 if name == "h2load" else 2)
                if revision(target) - before != puts:
                    raise RuntimeError(f"{puts} puts were acknowledged, but the revision grew by {revision(target) - before}")
                ours, theirs = statistics.median(rates[target]), statistics.median(rates[echo])
                rows.append(
                    {
                        "generator": name,
                        "concurrency": concurrency,
                        "echo_per_s": round(theirs),
                        "puts_per_s": round(ours),
                        "range": [round(min(rates[target])), round(max(rates[target]))],
                        "ratio": round(ours / theirs, 3),
                    }
                )
    return rows


def main() -> int:
    """Measure, print a Markdown table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="bytes of a value")
    parser.add_argument("--json", type=Path, default=HERE / "out" / "throughput.json")
    options = parser.parse_args()
    rows = measure(options.rounds, options.size)
    print(f"puts of {options.size} B, single node, median of {options.rounds} alternating rounds\n")
    print("| generator | concurrency | bare echo /s | kvserver puts /s (range) | ratio |\n|---|---|---|---|---|")
    for row in rows:
        low, high = row["range"]  # type: ignore[misc]
        print(
            f"| {row['generator']} | {row['concurrency']} | {row['echo_per_s']} | {row['puts_per_s']} ({low}-{high}) | {row['ratio']:.0%} |"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
