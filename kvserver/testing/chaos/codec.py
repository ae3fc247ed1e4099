"""How a history's values look as JSON: short arrays, because a long run writes millions of them.

    bytes      text: Latin-1; nine or more trailing dots as "~<count>"; what holds a "~" or begins with "hex:" as "hex:<digits>"
    Kv         [key, value, create_revision, mod_revision, version]
    Put        ["p", key, value, wants previous]          result  ["p", previous Kv or null]
    Delete     ["d", key, end, wants previous]            result  ["d", deleted, [previous Kv, ...]]
    Range      ["g", key, end, revision]                  result  ["g", [Kv, ...], count]
    Compare    [key, target, relation, operand: text or number]
    Request    {"k": kind, "s": [success], "f": [failure], "c": [compares], "z": 1 if serializable}; empty ones are left out
    Answer     {"v": header revision, "r": [results], "n": 1 if the compares did not hold}
    Revised    [revision, [key, value or null, create_revision, version], ...]

Rules: lossless for every value; decoding something else raises ValueError, TypeError, KeyError or IndexError, which the reader turns into
an error that names the line.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

from kvserver.testing.chaos.model import (
    Action,
    Answer,
    Change,
    Compare,
    Delete,
    DeleteResult,
    Kind,
    Kv,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Request,
    Result,
    Revised,
    Target,
)

_MIN_DOTS: Final = 9


def text_of(data: bytes) -> str:
    """Bytes as JSON text."""
    text = data.decode("latin-1")
    if "~" in text or text.startswith("hex:"):
        return "hex:" + data.hex()
    stripped = text.rstrip(".")
    dots = len(text) - len(stripped)
    return text if dots < _MIN_DOTS else f"{stripped}~{dots}"


def bytes_of(text: str) -> bytes:
    """The opposite of `text_of`."""
    if text.startswith("hex:"):
        return bytes.fromhex(text[4:])
    stripped, mark, dots = text.partition("~")
    return stripped.encode("latin-1") + (b"." * int(dots) if mark else b"")


def encode_kv(kv: Kv) -> list[object]:
    """A Kv as JSON."""
    return [text_of(kv.key), text_of(kv.value), kv.create_revision, kv.mod_revision, kv.version]


def decode_kv(data: Any) -> Kv:
    """The opposite of `encode_kv`."""
    key, value, create_revision, mod_revision, version = data
    return Kv(bytes_of(key), bytes_of(value), int(create_revision), int(mod_revision), int(version))


def encode_request(request: Request) -> dict[str, object]:
    """A Request as JSON."""
    found: dict[str, object] = {"k": request.kind.value, "s": [_encode_action(each) for each in request.success]}
    if request.failure:
        found["f"] = [_encode_action(each) for each in request.failure]
    if request.compares:
        found["c"] = [[text_of(each.key), each.target.value, each.relation.value, _operand(each.operand)] for each in request.compares]
    if request.serializable:
        found["z"] = 1
    return found


def decode_request(data: Any) -> Request:
    """The opposite of `encode_request`."""
    return Request(
        kind=Kind(data["k"]),
        success=tuple(_decode_action(each) for each in data["s"]),
        failure=tuple(_decode_action(each) for each in data.get("f", ())),
        compares=tuple(_decode_compare(each) for each in data.get("c", ())),
        serializable=bool(data.get("z", 0)),
    )


def encode_answer(answer: Answer) -> dict[str, object]:
    """An Answer as JSON."""
    found: dict[str, object] = {"v": answer.revision, "r": [_encode_result(each) for each in answer.results]}
    if not answer.succeeded:
        found["n"] = 1
    return found


def decode_answer(data: Any) -> Answer:
    """The opposite of `encode_answer`."""
    return Answer(revision=int(data["v"]), results=tuple(_decode_result(each) for each in data["r"]), succeeded=not data.get("n", 0))


def encode_revised(revised: Revised) -> list[object]:
    """A Revised as JSON."""
    changes = [
        [text_of(each.key), None if each.value is None else text_of(each.value), each.create_revision, each.version]
        for each in revised.changes
    ]
    return [revised.revision, *changes]


def decode_revised(data: Any) -> Revised:
    """The opposite of `encode_revised`."""
    changes = tuple(
        Change(bytes_of(key), None if value is None else bytes_of(value), int(create_revision), int(version))
        for key, value, create_revision, version in data[1:]
    )
    return Revised(int(data[0]), changes)


def _operand(operand: bytes | int) -> str | int:
    return operand if isinstance(operand, int) else text_of(operand)


def _decode_compare(data: Any) -> Compare:
    key, target, relation, operand = data
    return Compare(
        key=bytes_of(key),
        target=Target(target),
        relation=Relation(relation),
        operand=bytes_of(operand) if isinstance(operand, str) else int(operand),
    )


def _encode_action(action: Action) -> list[object]:
    match action:
        case Put():
            return ["p", text_of(action.key), text_of(action.value), int(action.wants_previous)]
        case Delete():
            return ["d", text_of(action.key), text_of(action.end), int(action.wants_previous)]
        case Range():
            return ["g", text_of(action.key), text_of(action.end), action.revision]
        case unknown:
            assert_never(unknown)


def _decode_action(data: Any) -> Action:
    kind, key, second, number = data
    match kind:
        case "p":
            return Put(key=bytes_of(key), value=bytes_of(second), wants_previous=bool(number))
        case "d":
            return Delete(key=bytes_of(key), end=bytes_of(second), wants_previous=bool(number))
        case "g":
            return Range(key=bytes_of(key), end=bytes_of(second), revision=int(number))
        case _:
            raise ValueError(f"unknown kind of action {kind!r}")


def _encode_result(result: Result) -> list[object]:
    match result:
        case PutResult():
            return ["p", None if result.previous is None else encode_kv(result.previous)]
        case DeleteResult():
            return ["d", result.deleted, [encode_kv(each) for each in result.previous]]
        case RangeResult():
            return ["g", [encode_kv(each) for each in result.kvs], result.count]
        case unknown:
            assert_never(unknown)


def _decode_result(data: Any) -> Result:
    match data[0]:
        case "p":
            return PutResult(previous=None if data[1] is None else decode_kv(data[1]))
        case "d":
            return DeleteResult(deleted=int(data[1]), previous=tuple(decode_kv(each) for each in data[2]))
        case "g":
            return RangeResult(kvs=tuple(decode_kv(each) for each in data[1]), count=int(data[2]))
        case _:
            raise ValueError(f"unknown kind of result {data[0]!r}")
