"""Faults in words, and the server that they are given to."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvserver.testing.faults import OPERATIONS, SYNCS, WRITES, Fault, SpecificationError, parse_fault
from kvserver.testing.faulty_server import main


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("any:EIO", Fault(operations=OPERATIONS)),
        ("fdatasync:EIO:after=100", Fault(operations=frozenset({"fdatasync"}), after=100)),
        ("sync:EIO:count=1:path=*.wal", Fault(operations=SYNCS, count=1, path="*.wal")),
        ("space:ENOSPC:when=/run/full", Fault(operations=WRITES, errno=errno.ENOSPC, when=Path("/run/full"))),
        ("pwritev,rename:EIO:partial", Fault(operations=frozenset({"pwritev", "rename"}), partial=0.5)),
    ],
)
def test_words_become_a_fault(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fsync", "errno"),
        ("fsync:EWHAT", "errno"),
        ("flush:EIO", "no file operations"),
        (":EIO", "no file operations"),
        ("any:EIO:after=-1", "at least 0"),
        ("any:EIO:after=x", "invalid literal"),
        ("any:EIO:count=0", "at least 1"),
        ("any:EIO:later=3", "none of"),
        ("any:EIO:after", "none of"),
        ("any:EIO:partial=2", "none of"),
    ],
)
def test_other_words_are_refused(text, reason):
    with pytest.raises(SpecificationError, match=reason):
        parse_fault(text)


def test_a_trigger_file_begins_and_ends_the_trouble(tmp_path):
    fault = parse_fault(f"any:EIO:when={tmp_path / 'now'}")
    assert not fault.concerns("rename", Path("/x"))
    (tmp_path / "now").touch()
    assert fault.concerns("rename", Path("/x"))


def test_the_launcher_passes_flags_and_exit_codes_on(capsys):
    assert main(["--fail", "any:EIO", "--", "--version"]) == 0
    assert "kvserver" in capsys.readouterr().out
    assert main(["--", "--nonsense=1"]) == 2
    with pytest.raises(SystemExit) as refused:
        main(["--fail", "any:EWHAT", "--", "--version"])
    assert refused.value.code == 2
