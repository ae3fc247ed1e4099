"""Writers that keep a log of what was acknowledged, and a check of every member against that log.

Purpose: the proof behind "nothing acknowledged is lost". Each writer puts keys that nobody else uses, never the same key twice (a put
that failed may still have happened), and turns to the next endpoint when a call fails.

Rules: synchronous gRPC in threads, so that it also measures a process that is itself being killed; times are monotonic seconds.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import grpc

from kvserver.pb import rpc_pb2

CALL_TIMEOUT_S: Final = 1.0
PAGE_KEYS: Final = 1000
_CHANNEL_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", 256 << 20),
]


class KvCalls:
    """The few KV and Maintenance calls that checks need, on one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._channel = grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        self._put = self._channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString, rpc_pb2.PutResponse.FromString)
        self._delete = self._channel.unary_unary(
            "/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest.SerializeToString, rpc_pb2.DeleteRangeResponse.FromString
        )
        self._range = self._channel.unary_unary(
            "/etcdserverpb.KV/Range", rpc_pb2.RangeRequest.SerializeToString, rpc_pb2.RangeResponse.FromString
        )
        self._compact = self._channel.unary_unary(
            "/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest.SerializeToString, rpc_pb2.CompactionResponse.FromString
        )
        self._hash = self._channel.unary_unary(
            "/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest.SerializeToString, rpc_pb2.HashKVResponse.FromString
        )
        self._status = self._channel.unary_unary(
            "/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest.SerializeToString, rpc_pb2.StatusResponse.FromString
        )

    def put(self, key: bytes, value: bytes, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """Put and return the revision. Raises grpc.RpcError."""
        answer: rpc_pb2.PutResponse = self._put(rpc_pb2.PutRequest(key=key, value=value), timeout=timeout_s)
        return answer.header.revision

    def delete(self, key: bytes, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """Delete one key and return how many were there. Raises grpc.RpcError."""
        answer: rpc_pb2.DeleteRangeResponse = self._delete(rpc_pb2.DeleteRangeRequest(key=key), timeout=timeout_s)
        return answer.deleted

    def compact(self, revision: int, timeout_s: float = 30.0) -> None:
        """Compact through `revision`, and wait until what was overwritten is removed. Raises grpc.RpcError."""
        self._compact(rpc_pb2.CompactionRequest(revision=revision, physical=True), timeout=timeout_s)

    def range(self, request: rpc_pb2.RangeRequest, timeout_s: float = 30.0) -> rpc_pb2.RangeResponse:
        """Range. Raises grpc.RpcError."""
        answer: rpc_pb2.RangeResponse = self._range(request, timeout=timeout_s)
        return answer

    def hash_kv(self, revision: int, timeout_s: float = 30.0) -> int:
        """The hash of the store through `revision`. Raises grpc.RpcError."""
        answer: rpc_pb2.HashKVResponse = self._hash(rpc_pb2.HashKVRequest(revision=revision), timeout=timeout_s)
        return answer.hash

    def status(self, timeout_s: float = 5.0) -> rpc_pb2.StatusResponse:
        """The member's status. Raises grpc.RpcError."""
        answer: rpc_pb2.StatusResponse = self._status(rpc_pb2.StatusRequest(), timeout=timeout_s)
        return answer

    def pairs(self, prefix: bytes) -> dict[bytes, tuple[bytes, int]]:
        """Every key under `prefix` on this member (after a linearizable read, so that it has caught up): value and mod_revision."""
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        pinned = self.range(rpc_pb2.RangeRequest(key=prefix, range_end=end, count_only=True)).header.revision
        found: dict[bytes, tuple[bytes, int]] = {}
        start = prefix
        while True:
            page = self.range(rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=pinned, serializable=True))
            found.update((pair.key, (pair.value, pair.mod_revision)) for pair in page.kvs)
            if not page.more:
                return found
            start = page.kvs[-1].key + b"\0"

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One acknowledged put."""

    value: bytes
    revision: int
    at_s: float


class AcknowledgedWriters:
    """`writers` threads that put until the block is left; `acknowledged` is then the truth that every member must hold."""

    def __init__(self, endpoints: Sequence[str], *, prefix: bytes, writers: int = 4, value_size_bytes: int = 64) -> None:
        self.acknowledged: dict[bytes, Acknowledged] = {}
        self.failed = 0
        self._prefix = prefix
        self._value_size_bytes = value_size_bytes
        self._endpoints = list(endpoints)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._threads = [threading.Thread(target=self._write, args=(number,), name=f"writer-{number}") for number in range(writers)]

    def __enter__(self) -> AcknowledgedWriters:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def add_endpoint(self, endpoint: str) -> None:
        """Writers that turn to the next endpoint may from now on turn to this one as well."""
        with self._lock:
            self._endpoints.append(endpoint)

    def count(self) -> int:
        """Acknowledged puts so far."""
        with self._lock:
            return len(self.acknowledged)

    def wait_more(self, puts: int, timeout_s: float) -> bool:
        """Wait until `puts` more are acknowledged; False when that took longer than `timeout_s`."""
        with self._progress:
            goal = len(self.acknowledged) + puts
            return self._progress.wait_for(lambda: len(self.acknowledged) >= goal, timeout_s)

    def pause_after_s(self, moment_s: float) -> float:
        """How long after `moment_s` the next put was acknowledged that was *answered* later than that moment.

        Raises:
            LookupError: none was.
        """
        with self._lock:
            later = [ack.at_s for ack in self.acknowledged.values() if ack.at_s > moment_s]
        if not later:
            raise LookupError("no put was acknowledged after that moment")
        return min(later) - moment_s

    def longest_gap_s(self, since_s: float) -> float:
        """The longest time without an acknowledgement since `since_s`."""
        with self._lock:
            times = sorted(ack.at_s for ack in self.acknowledged.values() if ack.at_s >= since_s)
        return max((after - before for before, after in itertools.pairwise([since_s, *times])), default=0.0)

    def _write(self, number: int) -> None:
        chosen = number % len(self._endpoints)
        calls = KvCalls(self._endpoints[chosen])
        for count in itertools.count():
            if self._stop.is_set():
                break
            key = self._prefix + b"%d/%08d" % (number, count)
            value = key.ljust(self._value_size_bytes, b".")
            try:
                revision = calls.put(key, value)
            except grpc.RpcError:
                with self._lock:
                    self.failed += 1
                    chosen = (chosen + 1) % len(self._endpoints)
                calls.close()
                calls = KvCalls(self._endpoints[chosen])
                self._stop.wait(0.02)  # a refused connection fails at once: don't spin
                continue
            with self._progress:
                self.acknowledged[key] = Acknowledged(value, revision, time.monotonic())
                self._progress.notify_all()
        calls.close()


def differences(endpoint: str, prefix: bytes, acknowledged: dict[bytes, Acknowledged]) -> list[str]:
    """What the member at `endpoint` lacks or holds otherwise; empty when every acknowledged put is there as it was acknowledged."""
    calls = KvCalls(endpoint)
    try:
        held = calls.pairs(prefix)
    finally:
        calls.close()
    found = []
    for key, ack in acknowledged.items():
        if key not in held:
            found.append(f"{endpoint}: {key!r} (revision {ack.revision}) is lost")
        elif held[key] != (ack.value, ack.revision):
            found.append(f"{endpoint}: {key!r} is {held[key]}, acknowledged as {(ack.value, ack.revision)}")
    return found


def hashes(endpoints: Sequence[str]) -> set[int]:
    """HashKV of every endpoint at one common revision: one element when the members are equal."""
    calls = [KvCalls(endpoint) for endpoint in endpoints]
    try:
        # A linearizable read on each member makes it catch up with everything committed before.
        revisions = [call.range(rpc_pb2.RangeRequest(key=b"\0", count_only=True)).header.revision for call in calls]
        return {call.hash_kv(min(revisions)) for call in calls}
    finally:
        for call in calls:
            call.close()
