"""What is sent: serialized requests, made as cheaply as possible.

Rules
- The value is made once, of random bytes, so that nobody on the way can compress it; every put carries it.
- Keys are etcd's benchmark's: the number as a signed varint, padded with zero bytes to the key size. In sequence they run through the key
  space again and again; else they are drawn from it at random.
- A serialized message is the concatenation of its fields' serializations (protobuf's encoding), so the value is serialized once too.

Source: etcd's tools/benchmark (put, txn-mixed) for key layout and meaning of the flags.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kvserver.pb import rpc_pb2 as pb


class Kind(StrEnum):
    """Which RPC a request is for."""

    READ = "range"
    WRITE = "put"


class Load(Protocol):
    """A workload."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it may consist of, in the report's order."""

    def request(self, number: int) -> tuple[Kind, bytes]:
        """Request `number`, serialized."""


def varint(number: int) -> bytes:
    """A number that isn't negative as Go's PutVarint writes it: doubled, then seven bits a byte, lowest first."""
    rest = number << 1
    result = bytearray()
    while rest > 0x7F:
        result.append(rest & 0x7F | 0x80)
        rest >>= 7
    result.append(rest)
    return bytes(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpace:
    """`size` different keys of `key_size_bytes`; raises ValueError if the keys are too short for so many."""

    size: int
    key_size_bytes: int
    is_sequential: bool
    randomness: random.Random

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError("--key-space-size must be positive")
        needed_bytes = len(varint(self.size - 1))
        if self.key_size_bytes < needed_bytes:
            raise ValueError(f"{self.size} different keys need --key-size={needed_bytes} at least")

    def key(self, number: int) -> bytes:
        """The key of request `number`."""
        chosen = number % self.size if self.is_sequential else self.randomness.randrange(self.size)
        return varint(chosen).ljust(self.key_size_bytes, b"\x00")


class PutLoad:
    """Puts of one value to the keys of a space."""

    kinds = (Kind.WRITE,)

    def __init__(self, keys: KeySpace, value_size_bytes: int) -> None:
        self._keys = keys
        self._value_field = pb.PutRequest(value=os.urandom(value_size_bytes)).SerializeToString()

    def request(self, number: int) -> tuple[Kind, bytes]:
        """A put."""
        return Kind.WRITE, pb.PutRequest(key=self._keys.key(number)).SerializeToString() + self._value_field


class RangeLoad:
    """One range request, again and again."""

    kinds = (Kind.READ,)

    def __init__(self, request: pb.RangeRequest) -> None:
        self._body = request.SerializeToString()

    def request(self, number: int) -> tuple[Kind, bytes]:
        """The range request."""
        return Kind.READ, self._body


class MixedLoad:
    """Reads and puts of single keys of one space, `reads_per_write` of the former for each of the latter, in random order."""

    kinds = (Kind.READ, Kind.WRITE)

    def __init__(self, puts: PutLoad, keys: KeySpace, *, reads_per_write: float, is_serializable: bool) -> None:
        self._puts = puts
        self._keys = keys
        self._read_share = reads_per_write / (1 + reads_per_write)
        self._is_serializable = is_serializable

    def request(self, number: int) -> tuple[Kind, bytes]:
        """A put, or a read of a key that a put may have written."""
        if self._keys.randomness.random() >= self._read_share:
            return self._puts.request(number)
        return Kind.READ, pb.RangeRequest(key=self._keys.key(number), serializable=self._is_serializable).SerializeToString()
