"""The help text and the flag tables of docs/flags.md, both from the table of flags."""

from __future__ import annotations

from collections.abc import Iterator

from kvserver.config.flags import FLAGS, Flag, Group, Treatment, environment_name

__all__ = ["help_text", "markdown_tables"]

_USAGE = """\
Usage:

  kvserver [flags]
    Start a member. Without flags: a single node on 127.0.0.1:2379 with default.kvserver as its data directory.

  kvserver wal DATA-DIR [--wal-dir DIR] [--records [--from INDEX] [--to INDEX]] [--json]
    Show the write-ahead log of a member, and what a server would make of it. Changes nothing.

  kvserver check DATA-DIR [--wal-dir DIR] [--json]
    Check store, log and snapshot files of a member that is stopped. Changes nothing.

  kvserver docs [PAGE]
    Print a page of the operator's guide, as errors name them; without a name list them.

  kvserver --version
    Show the version of kvserver.

  kvserver -h | --help
    Show this text.

Flags take one or two dashes, and their value behind a blank or '='. Each can be given as an environment variable instead:
--data-dir is ETCD_DATA_DIR. The same flag in both places is an error.
"""


def help_text() -> str:
    """What `--help` prints; flags without effect and refused flags are only listed."""
    return "\n".join(_help_lines()) + "\n"


def _help_lines() -> Iterator[str]:
    yield _USAGE
    for group in Group:
        flags = [flag for flag in FLAGS if flag.group is group]
        yield f"{group.value}:"
        if group in (Group.ACCEPTED, Group.REFUSED):
            yield from _wrapped([f"--{flag.name}" for flag in flags])
        else:
            for flag in flags:
                yield f"  --{flag.name} '{flag.default}'"
                yield f"    {flag.help}"
        yield ""


def _wrapped(words: list[str]) -> Iterator[str]:
    line = " "
    for word in words:
        if len(line) + 1 + len(word) > 120:
            yield line
            line = " "
        line += f" {word}"
    yield line


def markdown_tables() -> str:
    """The tables of docs/flags.md, one per group."""
    return "\n".join(line for group in Group for line in _table(group))


def _table(group: Group) -> Iterator[str]:
    yield f"## {group.value}\n"
    yield "| flag | environment | default | meaning |"
    yield "|---|---|---|---|"
    for flag in FLAGS:
        if flag.group is group:
            yield f"| `--{flag.name}` | `{environment_name(flag.name)}` | {_default_cell(flag)} | {_meaning_cell(flag)} |"
    yield ""


def _default_cell(flag: Flag) -> str:
    return f"`{flag.default}`" if flag.default else ""


def _meaning_cell(flag: Flag) -> str:
    if flag.treatment is Treatment.REFUSED:
        allowed = [f"`{value}`" for value in flag.harmless if value]
        return flag.help + (f" Accepted: {', '.join(allowed)}." if allowed else "")
    choices = f" One of {', '.join(f'`{choice}`' for choice in flag.choices)}." if flag.choices else ""
    return flag.help + choices
