"""The commands `kvctl snapshot status` and `kvctl snapshot restore`; kvctl loads them by name.

Rules: the flags of `restore` are those that the server will be started with, read by the server's own parser, so that what is restored is
what the server accepts. Errors are one line; 128 for arguments, 4 for an output format that there is not, else 1, as etcdutl's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from kvserver.backup.errors import BackupError
from kvserver.backup.restoring import RestoreOrder
from kvserver.backup.restoring import restore as restore_snapshot
from kvserver.backup.saved_file import SnapshotSummary, summarize
from kvserver.cli.command import make_command
from kvserver.cli.errors import CliError, ExitCode
from kvserver.cli.flags import Flag
from kvserver.cli.golang import humanize_bytes, to_bytes
from kvserver.cli.output.json import dump
from kvserver.cli.output.table import render
from kvserver.cli.progress import Progress
from kvserver.cli.run import settings_of, write, write_error
from kvserver.config import ConfigError, Run, ServerConfig, parse
from kvserver.node.bootstrap import DEFAULT_CLUSTER_TOKEN
from wal import guide

STATUS_HELP: Final = """Verifies a saved snapshot and shows what it holds.

In the simple format the line holds: hash, revision, total keys, total size.
"""

RESTORE_HELP: Final = """Restores a saved snapshot to a new data directory, for one member of a new cluster.

Every member is restored from the same snapshot, with the flags that it is started with afterwards. The members of the old cluster are
forgotten.

Give every restore of a cluster an --initial-cluster-token that was never used before, the same for all its members: members of an earlier
restore of this snapshot with the same token count as members of this one, with other data.
"""

RESTORE_FLAGS: Final = (
    Flag(name="data-dir", help="data directory to make (default: NAME.kvserver)"),
    Flag(name="wal-dir", help="directory for the WAL, if it shall not lie in --data-dir"),
    Flag(name="name", default="default", help="this member's name"),
    Flag(name="initial-cluster", help="the new cluster's members: NAME=PEER-URL, separated by commas (default: this member alone)"),
    Flag(name="initial-cluster-token", default="etcd-cluster", help="the new cluster's token: one that was never used before"),
    Flag(name="initial-advertise-peer-urls", default="http://localhost:2380", help="this member's peer URLs, separated by commas"),
    Flag(name="skip-hash-check", kind="bool", help="take a file without a checksum, too: a copy of a stopped server's member/snap/db"),
    Flag(name="bump-revision", kind="int", default="0", help="raise the revision by so much (needs --mark-compacted)"),
    Flag(name="mark-compacted", kind="bool", help="mark all revisions up to the raised one as compacted (with --bump-revision only)"),
)

REUSED_TOKEN: Final = f"""Warning: no --initial-cluster-token was given, so every such restore of this snapshot founds the same cluster.
Members of an earlier one that still run, or come back, would count as members of this one, with other data. Stop them for good, or
restore all members again with a token that was never used before ({guide("backup-and-restore")}).
"""

_PARSED: Final = ("data-dir", "wal-dir", "name", "initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls")
_COLUMNS: Final = ("hash", "revision", "total keys", "total size")
_FORMATS: Final = ("simple", "json", "fields", "table")


def _status(arguments: tuple[str, ...]) -> None:
    settings = settings_of(click.get_current_context())
    if len(arguments) != 1:
        raise CliError("snapshot status requires exactly one argument", ExitCode.BAD_ARGUMENTS)
    if settings.write_out not in _FORMATS:
        raise CliError(f"{settings.write_out} not supported as output format", ExitCode.BAD_FEATURE)
    progress = Progress()
    try:
        found = summarize(Path(arguments[0]), lambda done, total: progress.show("verifying", done, total))
    except BackupError as error:
        raise CliError(str(error)) from None
    finally:
        progress.end()
    write(render_status(found, settings.write_out))


def render_status(found: SnapshotSummary, write_out: str) -> bytes:
    """The summary in one of the four formats."""
    row = (f"{found.hash:x}", str(found.revision), str(found.total_keys), humanize_bytes(found.size_bytes))
    match write_out:
        case "json":
            return dump({"hash": found.hash, "revision": found.revision, "totalKey": found.total_keys, "totalSize": found.size_bytes})
        case "fields":
            fields = {"Hash": found.hash, "Revision": found.revision, "Keys": found.total_keys, "Size": found.size_bytes}
            return "".join(f'"{name}" : {value}\n' for name, value in fields.items()).encode()
        case "table":
            return render(_COLUMNS, [row])
        case _:
            return (", ".join(row) + "\n").encode()


def _restore(arguments: tuple[str, ...], **flags: Any) -> None:
    settings_of(click.get_current_context())
    if len(arguments) != 1:
        raise CliError("snapshot restore requires exactly one argument", ExitCode.BAD_ARGUMENTS)
    bump, mark = flags["bump_revision"], flags["mark_compacted"]
    if bump < 0:
        raise CliError(f'invalid argument "{bump}" for "--bump-revision" flag: must not be negative')
    if bool(bump) is not mark:
        raise CliError("--bump-revision and --mark-compacted need each other", ExitCode.BAD_ARGUMENTS)
    progress = Progress()
    snapshot = Path(arguments[0])
    try:
        config = member_config(flags)
        order = RestoreOrder(snapshot=snapshot, config=config, skip_hash_check=flags["skip_hash_check"], bump_revision=bump)
        progress.event("restoring snapshot", path=str(snapshot), data_dir=str(config.data_dir), wal_dir=str(config.wal_dir))
        restored = restore_snapshot(order, progress.show)
    except (BackupError, ConfigError) as error:
        raise CliError(str(error)) from None
    finally:
        progress.end()
    for member in restored.members:
        progress.event("added member", cluster_id=f"{restored.cluster_id:x}", member_id=f"{member:x}")
    progress.event("restored snapshot", path=str(snapshot), data_dir=str(config.data_dir), wal_dir=str(config.wal_dir))
    who = f"member {restored.member_id:x} of the new cluster {restored.cluster_id:x}"
    write(to_bytes(f"Snapshot restored to {config.data_dir}: {who}, revision {restored.revision}\n"))
    if len(restored.members) > 1 and config.initial_cluster_token == DEFAULT_CLUSTER_TOKEN:
        write_error(REUSED_TOKEN.encode())


def member_config(flags: dict[str, Any]) -> ServerConfig:
    """What a server with these flags would be. Raises ConfigError."""
    typed = [f"--{name}={value}" for name in _PARSED if (value := flags[name.replace("-", "_")])]
    invocation = parse(typed, {})
    assert isinstance(invocation, Run)
    return invocation.config


status = make_command("status", arguments="<filename>", summary="Shows what a saved snapshot holds", help_text=STATUS_HELP, run=_status)

restore = make_command(
    "restore",
    flags=RESTORE_FLAGS,
    arguments="<filename>",
    summary="Restores a saved snapshot to a new data directory",
    help_text=RESTORE_HELP,
    run=_restore,
)
