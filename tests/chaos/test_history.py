"""Histories survive their files, and files that are no histories are refused by name and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.testing.chaos import HistoryError, check, load
from kvserver.testing.chaos.codec import bytes_of, text_of
from kvserver.testing.chaos.files import END, OPERATIONS, Recorder
from kvserver.testing.chaos.model import Fault, History, Kind, MemberEnd, Outcome, Put, Request
from tests.chaos.correct import make_history


def write(history: History, directory: Path) -> None:
    """As a run would have: everything in the order of time."""
    recorder = Recorder(directory)
    events = []
    for each in history.operations:
        events.append((each.invoked_ns, 0, each))
        if each.completed_ns is not None:
            events.append((each.completed_ns, 1, each))
    for at_ns, is_completion, each in sorted(events, key=lambda event: (event[0], event[2].id, event[1])):
        if not is_completion:
            recorder.invoked(each.id, each.client, each.member, at_ns, each.request)
        elif each.answer is not None:
            recorder.answered(each.id, at_ns, each.request, each.answer)
        else:
            recorder.not_answered(each.id, at_ns, each.request, each.outcome, each.error)
    for fault in history.faults:
        recorder.fault(fault)
    for member, store in history.stores.items():
        recorder.store(member, store)
    recorder.end(history.members, dict(history.ends), history.trouble, dict(history.facts))
    recorder.close()


@given(st.binary(max_size=40) | st.builds(lambda head, dots: head + b"." * dots, st.binary(max_size=5), st.integers(0, 50)))
def test_every_value_survives_its_text(data: bytes) -> None:
    assert bytes_of(text_of(data)) == data
    assert json.loads(json.dumps(text_of(data))) == text_of(data)


def test_padding_takes_no_room() -> None:
    assert text_of(b"12/0/" + b"." * 4096) == "12/0/~4096"


@pytest.mark.parametrize("seed", range(3))
def test_a_history_is_the_same_after_its_files(seed: int, tmp_path: Path) -> None:
    history = make_history(seed, operations=300)
    history.faults = [Fault(kind="leader killed", kills=1, began_ns=5, ended_ns=9, members=("kv1",))]
    history.trouble = ["kv1 ended by itself"]
    write(history, tmp_path)
    again = load(tmp_path)
    assert sorted(again.operations, key=lambda each: each.id) == sorted(history.operations, key=lambda each: each.id)
    assert {member: list(store) for member, store in again.stores.items()} == {m: list(s) for m, s in history.stores.items()}
    assert dict(again.ends) == dict(history.ends)
    assert list(again.faults) == list(history.faults)
    assert list(again.trouble) == list(history.trouble)
    assert dict(again.facts) == dict(history.facts)
    assert check(again).lines() == ["no recovery: kv1 ended by itself"]


def test_counters_tell_writes_from_reads_and_fates_from_each_other(tmp_path: Path) -> None:
    history = make_history(2, operations=400)
    recorder = Recorder(tmp_path)
    for each in history.operations:
        if each.answer is not None:
            recorder.answered(each.id, 1, each.request, each.answer)
        elif each.completed_ns is not None:
            recorder.not_answered(each.id, 1, each.request, each.outcome, each.error)
    recorder.close()
    mutations = [each for each in history.operations if each.request.is_mutation and each.completed_ns is not None]
    assert recorder.counters.writes_ok == sum(each.outcome is Outcome.OK for each in mutations)
    assert recorder.counters.writes_failed == sum(each.outcome is Outcome.FAILED for each in mutations)
    assert recorder.counters.writes_unknown == sum(each.outcome is Outcome.UNKNOWN for each in mutations)


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        (OPERATIONS, '{"i":1', "operations.jsonl, line 2"),
        (OPERATIONS, '{"r":77,"t":1,"o":"ok"}', "operations.jsonl, line 2"),
        (OPERATIONS, '{"i":1,"c":"c","m":"kv1","t":0,"q":{"k":"put","s":[["p","a","b",0]]}}', "begins twice"),
        (OPERATIONS, '{"i":2,"c":"c","m":"kv1","t":0,"q":{"k":"swap","s":[]}}', "line 2"),
        (OPERATIONS, "[]", "line 2"),
        ("faults.jsonl", '{"kind": "x"}', "faults.jsonl, line 1"),
        ("kv1.changes.jsonl", '["x"]', "kv1.changes.jsonl, line 1"),
        ("kv1.changes.jsonl", '[2,["k"]]', "kv1.changes.jsonl, line 1"),
        (END, "[]", "end.json: not the end of a history"),
        (END, '{"members":1}', "end.json: not the end of a history"),
    ],
)
def test_what_is_no_history_is_refused_with_file_and_line(name: str, line: str, text: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.invoked(1, "c", "kv1", 0, Request(kind=Kind.PUT, success=(Put(key=b"a", value=b"b"),)))
    end = MemberEnd(revision=1, hash_revision=1, hash_kv=0, member_list=(), state_digest="", key_count=0)
    recorder.store("kv1", [])
    recorder.end(["kv1"], {"kv1": end}, [], {})
    recorder.close()
    assert load(tmp_path).operations[0].outcome is Outcome.UNKNOWN
    path = tmp_path / name
    path.write_text((path.read_text() if name != END else "") + line + "\n")
    with pytest.raises(HistoryError, match=text):
        check(load(tmp_path))


@pytest.mark.parametrize("missing", [OPERATIONS, "faults.jsonl", "kv1.changes.jsonl", END])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    write(make_history(1, operations=5), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(HistoryError, match=missing):
        check(load(tmp_path))
