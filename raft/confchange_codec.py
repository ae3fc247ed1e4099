"""Configuration changes as bytes: what an entry of type CONF_CHANGE or CONF_CHANGE_V2 carries.

    ConfChange            ConfChangeV2              ConfChangeSingle
    1 varint id           1 varint transition       1 varint type
    2 varint type         2 message changes (any)   2 varint node_id
    3 varint node_id      3 bytes context (if any)
    4 bytes context (if any)

Rules: protobuf, compatible with raftpb (fields without "if any" are always written, in this order). Decoding takes fields in any order,
lets the last one win, skips unknown ones, and treats empty data as the empty change; anything else raises CodecError.

Source: etcd-io/raft's raftpb for the numbers; the protobuf encoding guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, TypeVar

from raft.confchange import AnyConfChange, ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2
from raft.errors import CodecError
from raft.types import EntryType, NodeId

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_MAX_VARINT_BYTES: Final = 10
_EnumT = TypeVar("_EnumT", bound=IntEnum)


def encode_conf_change(change: AnyConfChange) -> tuple[EntryType, bytes]:
    """The entry type and data of a change."""
    if isinstance(change, ConfChange):
        data = _varint_field(1, change.id) + _varint_field(2, change.type) + _varint_field(3, change.node_id)
        return EntryType.CONF_CHANGE, data + _optional_bytes_field(4, change.context)
    data = _varint_field(1, change.transition)
    for single in change.changes:
        data += _bytes_field(2, _varint_field(1, single.type) + _varint_field(2, single.node_id))
    return EntryType.CONF_CHANGE_V2, data + _optional_bytes_field(3, change.context)


def decode_conf_change(entry_type: EntryType, data: bytes) -> AnyConfChange:
    """The change in an entry's data.

    Raises:
        CodecError: the type is NORMAL, or the data is not an encoded change.
    """
    match entry_type:
        case EntryType.CONF_CHANGE:
            return _decode_v1(data)
        case EntryType.CONF_CHANGE_V2:
            return _decode_v2(data)
        case _:
            raise CodecError(f"an entry of type {entry_type.name} holds no configuration change")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _optional_bytes_field(number: int, value: bytes) -> bytes:
    return _bytes_field(number, value) if value else b""


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >= 1 << 64:
                raise CodecError("a varint leaves 64 bits")
            return value, at + count + 1
    raise CodecError("a varint has no end")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in order; fields of fixed size are skipped."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if wire_type == _LENGTH:
            size, at = _read_varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise CodecError(f"wire type {wire_type} is unknown")
        if at + size > len(data):
            raise CodecError("a field is cut off")
        if wire_type == _LENGTH:
            yield tag >> 3, data[at : at + size]
        at += size


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise CodecError("bytes stand where a number belongs")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CodecError("a number stands where bytes belong")
    return value


def _enum(kind: Callable[[int], _EnumT], value: int | bytes) -> _EnumT:
    try:
        return kind(_number(value))
    except ValueError as error:
        raise CodecError(str(error)) from error


def _decode_v1(data: bytes) -> ConfChange:
    change_id, change_type, node_id, context = 0, ConfChangeType.ADD_NODE, 0, b""
    for number, value in _fields(data):
        if number == 1:
            change_id = _number(value)
        elif number == 2:
            change_type = _enum(ConfChangeType, value)
        elif number == 3:
            node_id = _number(value)
        elif number == 4:
            context = _bytes(value)
    return ConfChange(type=change_type, node_id=NodeId(node_id), context=context, id=change_id)


def _decode_v2(data: bytes) -> ConfChangeV2:
    transition, changes, context = ConfChangeTransition.AUTO, [], b""
    for number, value in _fields(data):
        if number == 1:
            transition = _enum(ConfChangeTransition, value)
        elif number == 2:
            changes.append(_decode_single(_bytes(value)))
        elif number == 3:
            context = _bytes(value)
    return ConfChangeV2(transition=transition, changes=tuple(changes), context=context)


def _decode_single(data: bytes) -> ConfChangeSingle:
    change_type, node_id = ConfChangeType.ADD_NODE, 0
    for number, value in _fields(data):
        if number == 1:
            change_type = _enum(ConfChangeType, value)
        elif number == 2:
            node_id = _number(value)
    return ConfChangeSingle(type=change_type, node_id=NodeId(node_id))
