"""snapshot save: FILE is what it was or the whole new snapshot, whatever happens on the way."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from kvserver.cli.progress import Progress, render
from kvserver.cli.snapshot.part_file import PartFile, PartInUseError, UnusableTargetError
from kvserver.cli.snapshot.save import save_to
from kvserver.client import ServerError
from kvserver.client.errors import UNAVAILABLE
from kvserver.client.saved import DamagedSnapshotError
from kvserver.pb import rpc_pb2

CONTENT = os.urandom(4096 * 3)
SUM = hashlib.sha256(CONTENT).digest()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeClient:
    """Streams the content in blobs of 1000 bytes; `change` spoils the list of answers."""

    def __init__(self, *, checksum: bytes = SUM, keep: int = 1000, error: Exception | None = None, hang: bool = False) -> None:
        self.checksum, self.keep, self.error, self.hang = checksum, keep, error, hang
        self.closed = False
        self.hangs = asyncio.Event()
        self.timeouts_s: list[float | None] = []

    async def snapshot(self, endpoint: str, *, timeout_s: float | None = None) -> AsyncGenerator[rpc_pb2.SnapshotResponse, None]:
        self.timeouts_s.append(timeout_s)
        blobs = [CONTENT[at : at + 1000] for at in range(0, len(CONTENT), 1000)]
        left = len(CONTENT)
        try:
            for blob in blobs[: self.keep]:
                left -= len(blob)
                yield rpc_pb2.SnapshotResponse(remaining_bytes=left, blob=blob)
            if self.hang:
                self.hangs.set()
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            if self.keep >= len(blobs):
                yield rpc_pb2.SnapshotResponse(blob=self.checksum)
        finally:
            self.closed = True


async def save(client: Any, target: Path) -> None:
    await save_to(client, "127.0.0.1:1", target, Progress(io.StringIO()), None)


async def test_a_whole_stream_becomes_the_file(tmp_path: Path) -> None:
    target = tmp_path / "kv.snapshot"
    target.write_bytes(b"the old one")
    await save(FakeClient(), target)
    assert target.read_bytes() == CONTENT + SUM
    assert os.listdir(tmp_path) == ["kv.snapshot"]
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("client", "error"),
    [
        (FakeClient(checksum=bytes(32)), DamagedSnapshotError),
        (FakeClient(checksum=SUM[:-1]), DamagedSnapshotError),
        (FakeClient(keep=3), DamagedSnapshotError),
        (FakeClient(keep=0), DamagedSnapshotError),
        (FakeClient(keep=3, error=ServerError(UNAVAILABLE, "gone")), ServerError),
    ],
)
async def test_a_broken_stream_leaves_what_was_there(client: FakeClient, error: type[Exception], tmp_path: Path) -> None:
    target = tmp_path / "kv.snapshot"
    target.write_bytes(b"the old one")
    with pytest.raises(error):
        await save(client, target)
    assert target.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["kv.snapshot"]


async def test_an_interrupted_save_ends_the_call_and_leaves_nothing(tmp_path: Path) -> None:
    client = FakeClient(keep=3, hang=True)
    task = asyncio.create_task(save(client, tmp_path / "kv.snapshot"))
    await client.hangs.wait()
    assert (tmp_path / "kv.snapshot.part").stat().st_size == 3000
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.closed
    assert os.listdir(tmp_path) == []


def test_a_part_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * 100)
    with PartFile(tmp_path / "f") as part:
        part.write(b"new")
        part.finish()
    assert (tmp_path / "f").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


def test_two_saves_to_one_file_do_not_mix(tmp_path: Path) -> None:
    with PartFile(tmp_path / "f") as first:
        first.write(b"first")
        with pytest.raises(PartInUseError, match="is being written by another process"), PartFile(tmp_path / "f"):
            pytest.fail("both write")
        first.finish()
    assert (tmp_path / "f").read_bytes() == b"first"


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(UnusableTargetError, match="is not a regular file"), PartFile(tmp_path / "f"):
        pytest.fail("taken")
    assert (tmp_path / "f").is_fifo()
    assert os.listdir(tmp_path) == ["f"]


def test_behind_a_link_the_file_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with PartFile(tmp_path / "link") as part:
        part.write(b"new")
        part.finish()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_links_that_lead_to_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UnusableTargetError, match="leads nowhere"):
        PartFile(tmp_path / "a")


def test_an_empty_name_is_no_file(kvctl) -> None:
    answer = kvctl("snapshot", "save", "")
    assert (answer.code, answer.stderr) == (128, b"Error: snapshot save: no file name\n")


def test_the_command_line_is_checked_before_anything_is_dialled(kvctl, tmp_path: Path) -> None:
    target = str(tmp_path / "f")
    assert (kvctl("snapshot", "save").code, kvctl("snapshot", "save", "a", "b").code) == (128, 128)
    many = kvctl("--endpoints=127.0.0.1:1,127.0.0.1:2", "snapshot", "save", target)
    assert (many.code, many.stderr) == (
        5,
        b"Error: snapshot must be requested to one selected node, not multiple [127.0.0.1:1 127.0.0.1:2]\n",
    )
    nobody = kvctl("--endpoints=127.0.0.1:1", "--dial-timeout=100ms", "snapshot", "save", target)
    assert nobody.code == 2
    assert b"cannot connect" in nobody.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["missing/f", "."])
def test_a_file_that_can_not_be_written_is_an_error_with_its_name(kvctl, tmp_path: Path, target: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = kvctl("--endpoints=127.0.0.1:1", "--dial-timeout=100ms", "snapshot", "save", target)
    assert answer.code == 5
    assert answer.stderr.startswith(b"Error: could not save to " + target.encode())


def test_progress_is_one_line_on_a_terminal_and_events_elsewhere() -> None:
    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        progress = Progress(stream)
        progress.event("fetching snapshot", endpoint="e")
        progress.show("saving", 50, 100)
        progress.show("saving", 51, 100)  # too soon to draw
        progress.show("saving", 100, 100)
        progress.end()
    assert terminal.getvalue().count("saving [") == 2
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\n" not in terminal.getvalue()
    assert plain.getvalue().count("\n") == 1
    assert '"msg":"fetching snapshot","endpoint":"e"' in plain.getvalue()


def test_the_line_says_how_much_of_how_much() -> None:
    assert render("saving", 5_000_000, 20_000_000) == "saving [#######.......................] 25% 5.0 MB of 20 MB"
    assert "100%" in render("saving", 0, 0)
