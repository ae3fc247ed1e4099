"""Reading a process's memory from /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvserver.metrics import ProcessMemory, process_memory

STATUS = "Name:\tpython3\nVmRSS:\t   1000 kB\nRssAnon:\t     700 kB\nRssFile:\t     300 kB\nRssShmem:\t0 kB\n"


def test_the_three_figures_are_in_bytes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    assert process_memory(status) == ProcessMemory(rss_bytes=1000 << 10, anonymous_bytes=700 << 10, file_bytes=300 << 10)


@pytest.mark.parametrize("text", ["", "VmRSS:\t1 kB\n", STATUS.replace("700 kB", "many"), STATUS.replace("     700 kB", "")])
def test_what_can_not_be_read_is_unknown(tmp_path: Path, text: str) -> None:
    status = tmp_path / "status"
    status.write_text(text)
    assert process_memory(status) is None


def test_without_a_proc_nothing_is_known(tmp_path: Path) -> None:
    assert process_memory(tmp_path / "none") is None


def test_this_process_has_memory() -> None:
    found = process_memory()
    assert found is not None
    assert 0 < found.anonymous_bytes < found.rss_bytes
