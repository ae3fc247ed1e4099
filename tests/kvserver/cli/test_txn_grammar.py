"""What a transaction's lines mean."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.golang import quote, to_text
from kvserver.cli.txn import parse_compare, parse_op, read_txn, split_words
from kvserver.pb import rpc_pb2 as pb

C = pb.Compare


@pytest.mark.parametrize(
    ("line", "compare"),
    [
        ('mod("k") > "0"', C(target=C.MOD, result=C.GREATER, key=b"k", mod_revision=0)),
        ('m("k") < "7"', C(target=C.MOD, result=C.LESS, key=b"k", mod_revision=7)),
        ('c("k") = "7"', C(target=C.CREATE, result=C.EQUAL, key=b"k", create_revision=7)),
        ('create("k") != "-7"', C(target=C.CREATE, result=C.NOT_EQUAL, key=b"k", create_revision=-7)),
        ('ver("k") = "1"', C(target=C.VERSION, result=C.EQUAL, key=b"k", version=1)),
        ('version("k")   =   "1"', C(target=C.VERSION, result=C.EQUAL, key=b"k", version=1)),
        ('val("a\\"(b") = ") x"', C(target=C.VALUE, result=C.EQUAL, key=b'a"(b', value=b") x")),
        ("value(`k`) = `\\x`", C(target=C.VALUE, result=C.EQUAL, key=b"k", value=b"\\x")),
        ('lease("k") = "1f"', C(target=C.LEASE, result=C.EQUAL, key=b"k", lease=31)),
    ],
)
def test_compares(line: str, compare: pb.Compare) -> None:
    parsed = parse_compare(line)
    assert parsed == compare
    assert parsed.WhichOneof("target_union") == compare.WhichOneof("target_union")


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_any_key_and_value_can_be_compared(key: bytes, value: bytes) -> None:
    assert parse_compare(f"val({quote(key)}) = {quote(value)}") == C(target=C.VALUE, result=C.EQUAL, key=key, value=value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('put "a b" c', ["put", "a b", "c"]),
        ("put 'a \"b' 'c\\n'", ["put", 'a "b', "c\\n"]),
        ('put k "\\xff"', ["put", "k", to_text(b"\xff")]),
        ('put z a"b"c', ["put", "z", 'a"b"c']),
        ('get ""', ["get", ""]),
        ("", []),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert split_words(line) == words


@pytest.mark.parametrize(
    ("line", "op"),
    [
        ("put k v --lease=1f --prev-kv", pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"v", lease=31, prev_kv=True))),
        ('put k ""', pb.RequestOp(request_put=pb.PutRequest(key=b"k"))),
        ("put k --ignore-value", pb.RequestOp(request_put=pb.PutRequest(key=b"k", ignore_value=True))),
        ("put -- -k -v", pb.RequestOp(request_put=pb.PutRequest(key=b"-k", value=b"-v"))),
        ("get a --prefix --limit 3", pb.RequestOp(request_range=pb.RangeRequest(key=b"a", range_end=b"b", limit=3))),
        ("del a c", pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"c"))),
        ('del "" --prefix', pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"))),
    ],
)
def test_requests(line: str, op: pb.RequestOp) -> None:
    assert parse_op(line) == op


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", ExitCode.INVALID_INPUT),
        (b"\n\n", ExitCode.INVALID_INPUT),
        (b"\nput k v\n\nput k w", ExitCode.INVALID_INPUT),
        (b"\nput k\n\n\n", ExitCode.BAD_ARGUMENTS),
        (b"\nget k --endpoints=x:1\n\n\n", ExitCode.INVALID_INPUT),
        (b"\nget --help\n\n\n", ExitCode.INVALID_INPUT),
        (b"\nget k --limit=x\n\n\n", ExitCode.INVALID_INPUT),
        (b"\ncompaction 3\n\n\n", ExitCode.INVALID_INPUT),
        (b'\nput k "\\q"\n\n\n', ExitCode.INVALID_INPUT),
    ],
)
def test_incomplete_or_foreign_input_is_refused(text: bytes, code: ExitCode) -> None:
    with pytest.raises(CliError) as caught:
        read_txn(io.BytesIO(text), lambda _: None)
    assert caught.value.code == code


def test_prompts_come_before_their_sections() -> None:
    seen: list[str] = []
    request = read_txn(io.BytesIO(b'ver("k") = "0"\n\nput k v\n\nget k\n\n'), seen.append)
    assert seen == ["compares:", "success requests (get, put, del):", "failure requests (get, put, del):"]
    assert (len(request.compare), len(request.success), len(request.failure)) == (1, 1, 1)
