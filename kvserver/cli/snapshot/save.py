"""snapshot save: one server's store, to a file.

Rules
- One endpoint: a snapshot is one member's state, so it must be clear whose.
- No time limit unless `--command-timeout` was given; a server that is gone is noticed by the connection's keepalive.
- The file appears under its name only when the stream is whole and its checksum right (part_file.py); an existing file is replaced then, as
  etcdctl does.

Caveat: the checksum proves the transfer and the server's disk since the copy was made, not what the server held: `snapshot status` reads
every record.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from pathlib import Path
from typing import Final

import click

from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.golang import humanize_bytes
from kvserver.cli.progress import Progress
from kvserver.cli.run import execute, is_timeout_given, settings_of, write
from kvserver.cli.snapshot.part_file import PartFile, PartInUseError, UnusableTargetError
from kvserver.client import Client
from kvserver.client.saved import DamagedSnapshotError, SnapshotChecksum

SAVE_HELP: Final = """Stores a server's snapshot to a given file.

Exactly one endpoint must be given. The file is written as FILE.part and gets its name when it is complete and its checksum is right.
"""


def _save(arguments: tuple[str, ...]) -> None:
    ctx = click.get_current_context()
    settings = settings_of(ctx)
    if len(arguments) != 1:
        raise CliError("snapshot save expects one argument", ExitCode.BAD_ARGUMENTS)
    if not arguments[0]:
        raise CliError("snapshot save: no file name", ExitCode.BAD_ARGUMENTS)
    if len(settings.endpoints) != 1:
        text = f"snapshot must be requested to one selected node, not multiple [{' '.join(settings.endpoints)}]"
        raise CliError(text, ExitCode.TRANSFER_FAILED)
    (endpoint,) = settings.endpoints
    timeout_s = settings.command_timeout_s if is_timeout_given(ctx) else None
    target = Path(arguments[0])
    progress = Progress()
    try:
        execute(settings, lambda client: save_to(client, endpoint, target, progress, timeout_s))
    except (DamagedSnapshotError, PartInUseError, UnusableTargetError) as error:
        raise CliError(str(error), ExitCode.TRANSFER_FAILED) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CliError(f"could not save to {target}: {reason}", ExitCode.TRANSFER_FAILED) from None
    except CliError as error:
        # What the server refused and what broke on the way has etcdctl's code for a transfer; "nobody there" keeps its own.
        raise CliError(error.text, ExitCode.TRANSFER_FAILED if error.code is ExitCode.ERROR else error.code) from None
    finally:
        progress.end()
    write(f"Snapshot saved at {arguments[0]}\n".encode("utf-8", "surrogateescape"))


async def save_to(client: Client, endpoint: str, target: Path, progress: Progress, timeout_s: float | None) -> None:
    """Fetch the snapshot of the server at `endpoint` into the file `target`, or leave `target` as it was.

    Raises ClientError, OSError, PartInUseError, UnusableTargetError, DamagedSnapshotError.
    """
    started_s = time.monotonic()
    checksum = SnapshotChecksum()
    with PartFile(target) as part:
        progress.event("created temporary db file", path=str(part.path))
        async with aclosing(client.snapshot(endpoint, timeout_s=timeout_s)) as answers:
            progress.event("fetching snapshot", endpoint=endpoint)
            remaining_bytes = 0
            async for answer in answers:
                part.write(answer.blob)
                checksum.update(answer.blob)
                remaining_bytes = answer.remaining_bytes
                progress.show("saving", checksum.size_bytes, checksum.size_bytes + remaining_bytes)
        if remaining_bytes:
            raise DamagedSnapshotError(f"the server's stream ended {remaining_bytes} bytes early")
        try:
            checksum.check()
        except DamagedSnapshotError as error:
            raise DamagedSnapshotError(f"what {endpoint} sent is no snapshot: {error}") from None
        took_s = time.monotonic() - started_s
        progress.event("fetched snapshot", endpoint=endpoint, size=humanize_bytes(checksum.size_bytes), took=f"{took_s:.3f}s")
        part.finish()
    progress.event("saved", path=str(target))


save = make_command("save", arguments="<filename>", summary="Stores a server's snapshot to a given file", help_text=SAVE_HELP, run=_save)
