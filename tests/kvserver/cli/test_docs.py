"""docs/cli.md and the help pages cover every command and every flag."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvserver.cli.errors import ExitCode
from kvserver.cli.flags import FlagOption
from kvserver.cli.main import COMMANDS, make_root

pytestmark = pytest.mark.docs

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text()


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, groups included."""
    root = make_root()
    ctx = click.Context(root, info_name="kvctl")
    yield "", root
    for name in root.list_commands(ctx):
        command = root.get_command(ctx, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for child in command.list_commands(ctx):
                found = command.get_command(ctx, child)
                assert found is not None
                yield f"{name} {child}", found


ALL = dict(commands())
LEAVES = {name: command for name, command in ALL.items() if not isinstance(command, click.Group)}


def section(name: str) -> str:
    """The document's text under the command's heading."""
    found = re.search(rf"^### {re.escape(name)}$(.*?)(?=^##)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section '### {name}'"
    return found[1]


def test_the_commands_of_the_contract_are_there() -> None:
    groups = {
        "alarm": ("list", "disarm"),
        "bench": ("mixed", "put", "range"),
        "lease": ("grant", "keep-alive", "list", "revoke", "timetolive"),
        "member": ("add", "list", "promote", "remove", "update"),
        "endpoint": ("status", "health", "hashkv"),
        "snapshot": ("save", "status", "restore"),
    }
    leaves = {"put", "get", "del", "txn", "compaction", "memory", "move-leader", "top", "version", "watch"}
    assert set(LEAVES) == leaves | {f"{group} {name}" for group, names in groups.items() for name in names}


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_is_documented_with_its_usage(name: str) -> None:
    assert f"kvctl {name}" in section(name)


@pytest.mark.parametrize("name", LEAVES)
def test_every_flag_of_a_command_is_documented(name: str) -> None:
    own = [param for param in LEAVES[name].params if isinstance(param, FlagOption) and not param.is_global]
    text = section(name)
    for option in own:
        assert f"`--{option.flag.name}`" in text, f"--{option.flag.name} of {name}"


def test_every_global_flag_is_documented_with_its_default() -> None:
    for option in (param for command in ALL.values() for param in command.params if isinstance(param, FlagOption) and param.is_global):
        row = next((line for line in DOCUMENT.splitlines() if line.startswith("|") and f"`--{option.flag.name}`" in line), None)
        assert row is not None, option.flag.name
        if option.flag.default:
            assert f"`{option.flag.default}`" in row
        if option.flag.letter:
            assert f"`-{option.flag.letter}`" in row


def test_no_flag_is_documented_that_does_not_exist() -> None:
    real = {param.flag.name for command in ALL.values() for param in command.params if isinstance(param, FlagOption)} | {"help"}
    rows = [line.split("|")[1] for line in DOCUMENT.split("## Differences")[0].splitlines() if line.startswith("| `-")]
    assert {name for row in rows for name in re.findall(r"--([a-z-]+)", row)} == real


def test_every_exit_code_is_documented() -> None:
    table = DOCUMENT.split("## Exit codes")[1].split("##")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {int(code) for code in ExitCode}


@pytest.mark.parametrize("name", ALL)
def test_every_command_and_flag_has_help(name: str) -> None:
    command = ALL[name]
    assert command.help
    ctx = click.Context(command, info_name="kvctl")
    page = command.get_help(ctx)
    for option in (param for param in command.params if isinstance(param, FlagOption)):
        assert option.flag.help
        assert f"--{option.flag.name}" in page


def test_the_root_says_of_each_command_what_the_command_says_of_itself() -> None:
    for name, entry in COMMANDS.items():
        command = ALL[name]
        assert entry.summary == (command.short_help or command.help)
