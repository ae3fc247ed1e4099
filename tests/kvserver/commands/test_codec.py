"""The layout of replicated commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.commands import (
    CommandKind,
    MalformedCommandError,
    ProposalId,
    UnknownCommandKindError,
    UnknownCommandVersionError,
    decode,
    encode,
)
from kvserver.errors import FatalError
from kvserver.types import NodeId

_U64 = st.integers(0, 2**64 - 1)


@given(st.sampled_from(CommandKind), _U64, _U64, _U64, st.binary())
def test_what_was_encoded_is_decoded(kind: CommandKind, member: int, incarnation: int, counter: int, payload: bytes) -> None:
    proposal = ProposalId(NodeId(member), incarnation, counter)
    command = decode(encode(kind, proposal, payload))
    assert (command.kind, command.id, bytes(command.payload)) == (kind, proposal, payload)


def test_layout_is_the_documented_one() -> None:
    assert (
        encode(CommandKind.TXN, ProposalId(NodeId(1), 2, 3), b"xy").hex() == "01"
        "03" + "0000000000000001"
        "0000000000000002"
        "0000000000000003" + "7879"
    )


def test_numbers_of_kinds_never_change() -> None:
    assert {kind.name: kind.value for kind in CommandKind} == {
        "PUT": 1,
        "DELETE_RANGE": 2,
        "TXN": 3,
        "COMPACT": 4,
        "MEMBER_PUBLISH": 20,
        "LEASE_GRANT": 40,
        "LEASE_REVOKE": 41,
        "LEASE_EXPIRE": 42,
        "ALARM": 80,
    }


def test_payload_is_not_copied() -> None:
    data = encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"v" * 1000)
    assert decode(data).payload.obj is data


def test_unknown_version_stops_the_node_and_says_to_upgrade() -> None:
    data = b"\x02" + encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"")[1:]
    with pytest.raises(UnknownCommandVersionError, match=r"layout version 2.*upgrade this member") as caught:
        decode(data)
    assert isinstance(caught.value, FatalError)


def test_unknown_version_is_told_even_if_its_header_is_shorter() -> None:
    with pytest.raises(UnknownCommandVersionError):
        decode(b"\x09abc")


def test_unknown_kind_stops_the_node_and_says_to_upgrade() -> None:
    data = b"\x01\xfe" + encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"")[2:]
    with pytest.raises(UnknownCommandKindError, match=r"unknown kind 254.*upgrade this member"):
        decode(data)


@pytest.mark.parametrize("length", [0, 1, 25])
def test_truncated_command_stops_the_node(length: int) -> None:
    with pytest.raises(MalformedCommandError, match=f"{length} bytes"):
        decode(encode(CommandKind.PUT, ProposalId(NodeId(1), 1, 1), b"")[:length])
