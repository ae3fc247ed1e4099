"""`kvserver wal` and `kvserver check` on directories that are sound, damaged, incomplete, in use, or none."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands
from kvserver.__main__ import run
from kvserver.apply import Applier, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.inspect.position import read_position
from kvserver.node.compaction import WindowLimits
from kvserver.pb.rpc_pb2 import PutRequest
from kvserver.types import ClusterId, ConfState, Member, NodeId
from raft.types import Entry, EntryType, HardState, Index, Term
from wal import DamagedError, Marker, Metadata, Wal

LAST = 80
OWN = Metadata(0xC1, 0x51)
Run = Callable[..., tuple[int, str, str]]


def entry(index: int) -> Entry:
    request = PutRequest(key=b"key%02d" % index, value=b"value" * 30 + b"%d" % index)
    data = commands.encode(CommandKind.PUT, ProposalId(NodeId(1), 1, index), request.SerializeToString())
    return Entry(term=Term(2), index=Index(index), type=EntryType.NORMAL, data=data)


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A member's directory as a clean stop leaves it."""
    root = tmp_path / "data"
    (root / "member" / "snap").mkdir(parents=True)
    (root / "member" / "lock").touch()
    store = Store.open(root / "member" / "snap" / "db")
    own = NodeId(OWN.member_id)
    store.bootstrap(ClusterId(OWN.cluster_id), {own: Member(id=own)}, ConfState(voters=(own,)), index=Index(1), term=Term(1))
    wal = Wal.create(root / "member" / "wal", OWN, marker=Marker(Index(1), Term(1)), segment_size_bytes=4096)
    applier = Applier(store)
    for index in range(2, LAST + 1):
        wal.save([entry(index)], HardState(term=Term(2), vote=own, commit=Index(index - 1)), sync=True)
        applier.apply_entry(Index(index), Term(2), entry(index).data)
    wal.close()
    await store.close()
    return root


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def content_of(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(root.rglob("*")) if path.is_file()}


def flip_last(path: Path, text: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(text)] ^= 1
    path.write_bytes(content)


def segment(root: Path, position: int = 0) -> Path:
    return sorted((root / "member" / "wal").glob("*.wal"))[position]


def test_sound_directory_is_sound_and_untouched(directory: Path, look: Run) -> None:
    before = content_of(directory)
    code, said, _ = look("wal", directory)
    assert (code, "Verdict: the log is sound; a server would start" in said, "previous checksum ok" in said) == (0, True, True)
    assert "offset" not in said, "records are shown when asked for"
    code, said, _ = look("check", directory)
    assert (code, said.splitlines()[-1]) == (0, "Verdict: sound; a server would start")
    assert content_of(directory) == before


def test_both_speak_json_lines(directory: Path, look: Run) -> None:
    code, said, _ = look("wal", directory, "--json", "--records")
    told = lines(said)
    assert code == 0
    assert [each["index"] for each in told if each["kind"] == "record" and each["type"] == "entry"] == list(range(2, LAST + 1))
    summary = told[-1]
    assert (summary["kind"], summary["sound"], summary["verdict"]) == ("summary", True, "ok")
    assert (summary["member_id"], summary["last_index"], summary["store_applied_index"]) == ("51", LAST, LAST)
    assert sum(each["entries"] for each in told if each["kind"] == "segment") == LAST - 1
    code, said, _ = look("check", directory, "--json")
    (summary,) = lines(said)
    assert (code, summary["sound"], summary["keys"], summary["revision"]) == (0, True, LAST - 1, LAST)
    assert isinstance(summary["hash_kv"], int)


def test_records_can_be_chosen_by_index(directory: Path, look: Run) -> None:
    _, said, _ = look("wal", directory, "--json", "--records", "--from", 10, "--to", 12)
    assert [each["index"] for each in lines(said) if each["kind"] == "record"] == [10, 11, 12]
    _, said, _ = look("wal", directory, "--records", "--from", LAST)
    assert f"index {LAST} term 2" in said
    assert f"index {LAST - 1} term 2" not in said


def test_damaged_log_is_marked_with_the_text_of_a_start(directory: Path, look: Run) -> None:
    flip_last(segment(directory), b"value" * 30)
    code, said, _ = look("wal", directory, "--json")
    told = lines(said)
    (damage,) = (each for each in told if each["kind"] == "damage")
    assert code == 1
    assert damage["file"] == str(segment(directory))
    assert f"damaged at offset {damage['offset']}, behind index {damage['after_index']}" in told[-1]["text"]
    code, said, _ = look("check", directory)
    assert code == 1
    assert f"damaged at offset {damage['offset']}" in said
    assert "docs/operations/corruption.md" in said


@pytest.mark.parametrize("is_behind", [True, False], ids=["beyond the default window", "within it"])
def test_damage_that_a_start_passes_over_is_told_and_predicted_as_it_comes(
    directory: Path, look: Run, monkeypatch: pytest.MonkeyPatch, is_behind: bool
) -> None:
    window_bytes = 8_192 if is_behind else 1 << 20
    monkeypatch.setattr("kvserver.inspect.start.WindowLimits", lambda: WindowLimits(max_bytes=window_bytes))
    flip_last(segment(directory, 1), b"value" * 30)
    store = read_position(directory / "member" / "snap" / "db")
    assert store is not None
    code, said, _ = look("wal", directory, "--json")
    (damage,) = (each for each in lines(said) if each["kind"] == "damage")
    summary = lines(said)[-1]
    assert (code, summary["sound"], summary["verdict"]) == (1, False, "ok" if is_behind else "refuse")
    what = f"damaged at offset {damage['offset']}, behind index {damage['after_index']}"
    words = "a server would start (with the default --log-window-bytes" if is_behind else "would refuse to start (with a --log-window-bytes"
    for command in ("wal", "check"):
        code, said, _ = look(command, directory)
        assert (code, what in said, words in said, "docs/operations/" in said) == (1, True, True, True), said
    code, said, _ = look("check", directory, "--json")
    assert (code, lines(said)[-1]["problems"]) == (1, 1)
    opening = partial(Wal.open, directory / "member" / "wal", OWN, lambda entry: None, segment_size_bytes=4096)
    with nullcontext() if is_behind else pytest.raises(DamagedError):
        opening(applied_index=store.index, applied_term=store.term, recent_bytes=window_bytes)[0].close()


def test_damage_that_every_start_reads_depends_on_no_window(directory: Path, look: Run) -> None:
    flip_last(segment(directory, -1), b"value" * 10)
    for command in ("wal", "check"):
        code, said, _ = look(command, directory)
        assert (code, "would refuse to start" in said, "--log-window-bytes" in said) == (1, True, False)


def test_damaged_store_is_marked_with_file_and_offset(directory: Path, look: Run) -> None:
    store = directory / "member" / "snap" / "db"
    content = bytearray(store.read_bytes())
    place = content.index(b"value" * 30 + b"33")
    content[place] ^= 1
    store.write_bytes(content)
    code, said, _ = look("check", directory, "--json")
    told = lines(said)
    problem = told[0]
    assert [each["kind"] for each in told] == ["problem", "note", "summary"], "one damage is told once"
    assert "a server would start, and refuse to serve what is damaged" in told[-1]["verdict"]
    assert code == 1
    assert problem["file"] == str(store)
    assert place - 200 < problem["offset"] < place
    assert problem["reason"] == "the record of revision 33.0 fails its checksum"


@pytest.mark.parametrize("length", [0, 100, 4096, 8192, 9000, 20_000])
def test_truncated_store_is_told_and_kills_nobody(directory: Path, look: Run, length: int) -> None:
    os.truncate(directory / "member" / "snap" / "db", length)
    code, said, _ = look("check", directory)
    assert length == 0 or (code == 1 and "DAMAGED" in said)


def test_what_is_missing_is_told(directory: Path, look: Run, tmp_path: Path) -> None:
    shutil.move(directory / "member" / "wal", tmp_path / "away")
    code, said, _ = look("wal", directory)
    assert (code, "put the WAL back" in said) == (1, True)
    code, said, _ = look("check", directory)
    assert (code, "put the WAL back" in said) == (1, True)
    assert look("check", directory, "--wal-dir", tmp_path / "away")[0] == 0
    assert look("wal", directory, "--wal-dir", tmp_path / "away")[0] == 0
    shutil.move(tmp_path / "away", directory / "member" / "wal")
    (directory / "member" / "snap" / "db").unlink()
    code, said, _ = look("check", directory)
    assert (code, "built again from the log" in said) == (0, True)
    segment(directory).unlink()
    assert look("check", directory)[0] == 1


def test_log_behind_the_store_is_told(directory: Path, look: Run) -> None:
    for path in sorted((directory / "member" / "wal").glob("*.wal"))[1:]:
        path.unlink()
    code, said, _ = look("check", directory)
    assert (code, "refuse" in said or "missing" in said or "lost" in said) == (1, True)


async def test_gap_between_store_and_log_is_told(directory: Path, look: Run) -> None:
    path = directory / "member" / "snap" / "db"
    path.unlink()
    store = Store.open(path)
    store.bootstrap(ClusterId(OWN.cluster_id), {}, ConfState(), index=Index(1), term=Term(1))
    await store.close()
    assert look("check", directory)[0] == 0
    segment(directory).unlink()
    code, said, _ = look("check", directory)
    assert (code, "what lies between is lost on this member" in said) == (1, True)


def test_directory_in_use_is_read_by_one_and_politely_refused_by_the_other(directory: Path, look: Run) -> None:
    with (directory / "member" / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, said, _ = look("wal", directory)
        assert (code, "A server is using this directory" in said, "provisional" in said) == (0, True, True)
        code, said, error = look("check", directory)
        assert (code, said) == (2, "")
        assert "in use by a running kvserver: stop it first" in error


def test_neither_keeps_the_directory_locked(directory: Path, look: Run) -> None:
    look("wal", directory)
    look("check", directory)
    with (directory / "member" / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_leftovers_are_listed_and_snapshots_among_them_checked(directory: Path, look: Run) -> None:
    snap = directory / "member" / "snap"
    (snap / "outgoing-1.tmp").write_bytes(b"half")
    shutil.copy(snap / "db", snap / f"received-{LAST:016x}-{2:016x}.snap")
    code, said, _ = look("check", directory)
    assert (code, "outgoing-1.tmp" in said, "a whole snapshot at index 80" in said) == (0, True, True)
    flip_last(snap / f"received-{LAST:016x}-{2:016x}.snap", b"key02")
    shutil.copy(snap / "db", snap / f"received-{7:016x}-{2:016x}.snap")
    code, said, _ = look("check", directory)
    assert (code, "its name says 7" in said) == (1, True)


@pytest.mark.parametrize("arguments", [["wal"], ["check"], ["wal", "--nonsense", "x"], ["check", "x", "y"], ["wal", "x", "--from", "z"]])
def test_bad_usage_is_one_message_and_exit_code_2(look: Run, arguments: list[str]) -> None:
    code, said, error = look(*arguments)
    assert (code, said) == (2, "")
    assert "usage: kvserver" in error


@pytest.mark.parametrize("command", ["wal", "check"])
def test_what_is_no_data_directory_is_said(look: Run, tmp_path: Path, command: str) -> None:
    for path in (tmp_path, tmp_path / "none"):
        code, _, error = look(command, path)
        assert (code, "is no data directory" in error) == (2, True)


def test_help_names_every_option(look: Run) -> None:
    for command, options in (("wal", ("--wal-dir", "--records", "--from", "--to", "--json")), ("check", ("--wal-dir", "--json"))):
        code, said, _ = look(command, "--help")
        assert code == 0
        assert all(option in said for option in options)
    assert "kvserver wal DATA-DIR" in look("--help")[1]


def test_help_without_dashes_and_unknown_commands(look: Run) -> None:
    code, said, error = look("foo", "--json")
    assert (code, said) == (2, "")
    assert error.startswith("kvserver: unknown command 'foo'\nusage: kvserver [flags]")
    assert look("help") == look("--help")
