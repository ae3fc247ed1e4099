"""An answer's results against what the reference store gives: one sentence per difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvserver.testing.chaos.model import Answer, DeleteResult, PutResult, RangeResult, Request, Result
from kvserver.testing.chaos.show import show_bytes, show_kv, show_kvs
from kvserver.testing.chaos.violations import ViolationKind

_READ = {True: "serializable", False: "linearizable"}


def compare_answer(request: Request, answer: Answer, expected: Sequence[Result]) -> Iterator[tuple[ViolationKind, str]]:
    """What is wrong with the results; nothing if all is well."""
    if len(answer.results) != len(expected):
        yield ViolationKind.WRONG_ANSWER, f"{len(answer.results)} results for {len(expected)} operations"
        return
    for said, right in zip(answer.results, expected, strict=True):
        if said != right:
            yield _difference(request, said, right)


def _difference(request: Request, said: Result, right: Result) -> tuple[ViolationKind, str]:
    match said, right:
        case PutResult(), PutResult():
            return ViolationKind.WRONG_PREVIOUS, f"previous key-value {show_kv(said.previous)}, should be {show_kv(right.previous)}"
        case DeleteResult(), DeleteResult() if said.deleted != right.deleted:
            return ViolationKind.WRONG_ANSWER, f"{said.deleted} keys deleted, should be {right.deleted}"
        case DeleteResult(), DeleteResult():
            return ViolationKind.WRONG_PREVIOUS, f"previous key-values {show_kvs(said.previous)}, should be {show_kvs(right.previous)}"
        case RangeResult(), RangeResult():
            return ViolationKind.WRONG_READ, f"{_READ[request.serializable]} read of {_read_difference(said, right)}"
        case _:
            return ViolationKind.WRONG_ANSWER, f"a {type(said).__name__} in the place of a {type(right).__name__}"


def _read_difference(said: RangeResult, right: RangeResult) -> str:
    if said.kvs == right.kvs:
        return f"{len(right.kvs)} keys gave a count of {said.count}, should be {right.count}"
    said_keys, right_keys = {kv.key: kv for kv in said.kvs}, {kv.key: kv for kv in right.kvs}
    for key in sorted(said_keys.keys() | right_keys.keys()):
        if said_keys.get(key) != right_keys.get(key):
            return f"{show_bytes(key)} gave {show_kv(said_keys.get(key))}, should be {show_kv(right_keys.get(key))}"
    return f"{len(right.kvs)} keys gave them in another order or more than once"
