"""What the inspectors say of damaged, half-made and mistyped directories: once, with file and offset, in plain numbers, and what to do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from kvserver import commands, streams
from kvserver.__main__ import run
from kvserver.apply import Applier, Membership, Store
from kvserver.commands import CommandKind, ProposalId
from kvserver.inspect.check_report import report_check
from kvserver.inspect.output import Output, Progress
from kvserver.inspect.place import Place, find_place
from kvserver.inspect.start import Start
from kvserver.mvcc import TABLES
from kvserver.node.directory import DataDirectoryError, open_data_directory
from kvserver.pb.rpc_pb2 import PutRequest
from kvserver.storage.pages import PageFile
from kvserver.types import ClusterId, ConfState, Member, NodeId
from raft.types import HardState, Index, Term
from tests.kvserver.inspect.test_commands import LAST, OWN, Run, directory, entry, lines, look, segment
from wal import Marker, Wal

__all__ = ["directory", "look"]  # fixtures

PAGE = 4096
CORRUPTION = "docs/operations/corruption.md, printed by `kvserver docs corruption`"


def store_of(root: Path) -> Path:
    return root / "member" / "snap" / "db"


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes((byte ^ 1 << bit,)))


def root_page(path: Path, name: str) -> int:
    with PageFile.open(path) as file:
        return next(tree.root for tree in file.trees(TABLES, lambda offset, reason: None) if tree.name == name)


def problems(look: Run, root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The problems that `check` tells, and its summary."""
    code, said, _ = look("check", root, "--json")
    told = lines(said)
    found = [each for each in told if each["kind"] == "problem"]
    assert code == (1 if found else 0)
    assert told[-1]["problems"] == len(found)
    return found, told[-1]


@pytest.mark.parametrize("page", [0, 1])
def test_damaged_meta_page_is_one_problem_with_its_offset_and_the_text_of_a_start(directory: Path, look: Run, page: int) -> None:
    flip(store_of(directory), page * PAGE + 10)
    (problem,), summary = problems(look, directory)
    assert (problem["file"], problem["offset"]) == (str(store_of(directory)), page * PAGE)
    assert "refuse to start" in summary["verdict"]
    assert CORRUPTION in summary["verdict"]
    code, said, _ = look("wal", directory)
    assert code == 1
    assert f"the store {store_of(directory)} is damaged: at offset {page * PAGE}: its meta page {page} is damaged" in said
    assert "restore a single node from a backup" in said


def test_damaged_page_is_one_problem_and_nothing_is_called_lost_space(directory: Path, look: Run) -> None:
    page = root_page(store_of(directory), "rev")
    flip(store_of(directory), page * PAGE + 10)
    (problem,), summary = problems(look, directory)
    assert problem["offset"] == page * PAGE
    assert "refuse to start" in summary["verdict"]
    assert "space is lost" not in look("check", directory)[1]


def test_tree_that_counts_wrong_is_told_at_its_head(directory: Path, look: Run) -> None:
    path = store_of(directory)
    with PageFile.open(path) as file:
        head = next(tree for tree in file.trees(TABLES, lambda offset, reason: None) if tree.name == "key")
    content = path.read_bytes()
    assert struct.unpack_from("<Q", content, head.head_offset + 32)[0] == LAST - 1, "the number of entries stands there"
    flip(path, head.head_offset + 32)
    (problem,), _ = problems(look, directory)
    assert problem["offset"] == head.head_offset
    assert problem["reason"].startswith("the tree of key should have")


def test_lost_pages_of_a_sound_store_are_a_note(directory: Path, look: Run) -> None:
    path = store_of(directory)
    with PageFile.open(path) as file:
        last_page = file.last_page
    with path.open("r+b") as file:  # one more page than there is, in both meta pages
        for page in (0, 1):
            file.seek(page * PAGE + 16 + 120)
            file.write(struct.pack("<Q", last_page + 1))
    code, said, _ = look("check", directory)
    assert (code, "1 page of" in said, "is neither in use nor listed as free: space is lost, no data" in said) == (0, True, True)


def test_damage_in_store_and_log_are_two_problems(directory: Path, look: Run) -> None:
    flip(store_of(directory), PAGE + 10)
    flip(segment(directory), 0)
    found, _ = problems(look, directory)
    assert [each["offset"] for each in found] == [PAGE, 0]
    assert found[1]["reason"] == "at offset 0: the file does not begin as a WAL segment"


@pytest.mark.parametrize(
    ("offset", "told_offset", "text"),
    [
        (3, 0, "at offset 0: the file does not begin as a WAL segment"),
        (9, 8, "at offset 8: WAL format version"),
        (13, 0, "damaged at offset 0, behind index"),
        (20, 0, "damaged at offset 0, behind index"),
        (60, 0, "damaged at offset 0, behind index"),
    ],
)
def test_damaged_head_of_a_segment_names_its_offset(directory: Path, look: Run, offset: int, told_offset: int, text: str) -> None:
    path = segment(directory, 1)
    flip(path, offset)
    (problem,), _ = problems(look, directory)
    assert (problem["file"], problem["offset"]) == (str(path), told_offset)
    assert text in problem["reason"]
    first_index = int(path.name[17:33], 16)
    assert "behind" not in text or f"behind index {first_index - 1}:" in problem["reason"]


async def test_numbers_are_plain_and_words_fit_them(tmp_path: Path, look: Run) -> None:
    """Offsets above a thousand, one segment, one entry."""
    root = tmp_path / "data"
    (root / "member" / "snap").mkdir(parents=True)
    wal = Wal.create(root / "member" / "wal", OWN, marker=Marker(Index(1), Term(1)))
    wal.save([entry(2)], HardState(term=Term(2), vote=NodeId(OWN.member_id), commit=Index(1)), sync=True)
    wal.close()
    code, said, _ = look("wal", root, "--records")
    assert code == 0
    assert "16777216 bytes" in said
    assert not re.search(r"[0-9],[0-9]", said)
    assert "1 segment;" in said
    assert ", 1 entry," in said
    assert not re.search(r"\b1 (segments|entries|records|bytes)\b", said)


def test_compacted_revision_of_a_store_that_never_was_is_none(directory: Path, look: Run) -> None:
    assert "compacted revision: none" in look("check", directory)[1]
    assert problems(look, directory)[1]["compacted_revision"] is None


def test_unfinished_restore_is_told_as_a_server_tells_it(tmp_path: Path, look: Run) -> None:
    (tmp_path / "member.restoring" / "snap").mkdir(parents=True)
    with pytest.raises(DataDirectoryError) as refused:
        open_data_directory(tmp_path, tmp_path / "member" / "wal")
    for command in ("wal", "check"):
        code, said, error = look(command, tmp_path)
        assert (code, said, error) == (2, "", f"kvserver {command}: {refused.value}\n")
    assert "run `kvctl snapshot restore` again" in str(refused.value)


def test_mistyped_paths_are_no_damage(directory: Path, look: Run, tmp_path: Path) -> None:
    a_file = tmp_path / "a file"
    a_file.touch()
    for command in ("wal", "check"):
        for path, text in ((tmp_path / "typo", "does not exist"), (a_file, "is not a directory")):
            code, said, error = look(command, directory, "--wal-dir", path)
            assert (code, said) == (2, "")
            assert f"--wal-dir: {path} {text}" in error
            code, said, error = look(command, path)
            assert (code, said) == (2, "")
            assert str(path) in error
            assert text in error
    with pytest.raises(DataDirectoryError, match=r"data directory .*a file can't be used: it is not a directory"):
        open_data_directory(a_file, a_file / "member" / "wal")
    with pytest.raises(DataDirectoryError, match=r"WAL directory .*a file can't be used: it is not a directory"):
        open_data_directory(tmp_path / "new", a_file)
    assert not (tmp_path / "new").exists(), "nothing is made beside it"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--from", "3"], "give --records, too"),
        (["--to", "3"], "give --records, too"),
        (["--records", "--from", "5", "--to", "4"], "--from 5 is above --to 4"),
        (["--records", "--from", "-1"], "not negative"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(directory: Path, look: Run, arguments: list[str], text: str) -> None:
    code, said, error = look("wal", directory, *arguments)
    assert (code, said) == (2, "")
    assert text in error


async def test_member_that_was_removed_is_sound_and_would_be_refused(directory: Path, look: Run) -> None:
    store = Store.open(store_of(directory))
    removed = frozenset({NodeId(OWN.member_id)})
    store.set_membership(Membership(cluster_id=store.membership.cluster_id, removed_ids=removed))
    store.end_entry(store.applied_index, store.applied_term)
    await store.close()
    found, summary = problems(look, directory)
    assert found == []
    assert summary["verdict"].startswith("sound; a server would refuse to start: data directory")
    code, said, _ = look("wal", directory)
    assert (code, "has been removed from the cluster" in said) == (0, True)


@pytest.mark.parametrize("command", ["wal", "check"])
def test_interrupt_is_one_line_and_130(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def interrupt(place: Place) -> Start:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"kvserver.inspect.{command}_report.judge_start", interrupt)
    name = f"kvserver {command}"
    assert streams.ended(name, lambda: run([command, str(directory)])) == 130
    assert capsys.readouterr().err == f"{name}: interrupted\n"


@pytest.mark.process
def test_interrupted_process_ends_with_130_and_one_line(tmp_path: Path) -> None:
    """It is sure to be at work: it has more to write than the pipe takes, and we have read its first bytes."""
    (tmp_path / "member").mkdir()
    wal = Wal.create(tmp_path / "member" / "wal", OWN, marker=Marker(Index(1), Term(1)))
    wal.save([entry(index) for index in range(2, 1500)], HardState(term=Term(2), commit=Index(1)), sync=True)
    wal.close()
    command = [sys.executable, "-m", "kvserver", "wal", str(tmp_path), "--records", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, error) == (130, b"kvserver wal: interrupted\n")


@pytest.mark.process
def test_reader_that_leaves_and_closed_streams_are_no_traceback(directory: Path) -> None:
    inspector = f"{sys.executable} -m kvserver"
    for line, code in (
        (f"{inspector} wal {directory} --records --json | head -c 10; exit ${{PIPESTATUS[0]}}", 141),
        (f"{inspector} check {directory} >&-", 0),
        (f"{inspector} check {directory}/none 2>&-", 2),
        (f"{inspector} docs corruption | head -1 >/dev/null", 0),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (code, b""), line


def test_copy_of_a_directory_whose_name_is_no_text(directory: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(directory, odd)
    flip(store_of(odd), PAGE + 10)
    done = subprocess.run([sys.executable, "-m", "kvserver", "check", odd], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"DAMAGED" in done.stdout


@pytest.mark.slow
async def test_memory_of_a_check_does_not_grow_with_the_keys(tmp_path: Path) -> None:
    peaks_bytes = []
    for keys in (1_000, 8_000):
        root = tmp_path / str(keys)
        (root / "member" / "snap").mkdir(parents=True)
        store = Store.open(store_of(root))
        own = NodeId(OWN.member_id)
        store.bootstrap(ClusterId(OWN.cluster_id), {own: Member(id=own)}, ConfState(voters=(own,)), index=Index(1), term=Term(1))
        applier = Applier(store)
        for index in range(2, keys + 2):
            data = PutRequest(key=b"key%08d" % index, value=b"v" * 100).SerializeToString()
            applier.apply_entry(Index(index), Term(2), commands.encode(CommandKind.PUT, ProposalId(own, 1, index), data))
        await store.close()
        tracemalloc.start()
        try:
            with (tmp_path / "said").open("w") as said:
                report_check(find_place(root, None), Output(said, as_json=False), Progress(said))
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert f"keys: {keys}" in (tmp_path / "said").read_text()
    assert peaks_bytes[1] < peaks_bytes[0] + 100_000, peaks_bytes
