"""The file format of data-driven tests: stanzas of a command, its input, and the output that is expected.

    # comment
    command argument key=value key=(a,b)
    input, if any
    ----
    expected output, up to an empty line (or, behind a second `----`, up to two more of them)

Rules: everything between stanzas is kept byte for byte, so that `--rewrite` changes nothing but outputs. A command line that ends in a
backslash goes on in the next line.

Source: the format of cockroachdb/datadriven, which etcd-io/raft's data files use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEPARATOR = "----"


class ScriptError(Exception):
    """A file is not in the format, or a command has arguments that make no sense."""


@dataclass(frozen=True, slots=True)
class Argument:
    """`key`, or `key=value`, or `key=(value, ...)`."""

    key: str
    values: tuple[str, ...] = ()


@dataclass(slots=True)
class Stanza:
    """One command with its input and the expected output, and where it stands."""

    line: int
    command: str
    arguments: list[Argument]
    input: str
    expected: str
    head: list[str] = field(default_factory=list)
    """The lines of the file from the end of the stanza before to the separator, inclusive."""
    tail: str = ""
    """What follows the last stanza of a file."""

    def value(self, key: str) -> str | None:
        """The value of `key=value`; None without it."""
        for argument in self.arguments:
            if argument.key == key and argument.values:
                return argument.values[0]
        return None

    def positional(self, position: int = 0) -> str:
        """The key of an argument without value.

        Raises:
            ScriptError: there is none at this position.
        """
        plain = [argument.key for argument in self.arguments if not argument.values]
        if position >= len(plain):
            raise ScriptError(f"line {self.line}: {self.command} needs an argument at position {position + 1}")
        return plain[position]


def parse_arguments(text: str) -> list[Argument]:
    """The words of a command line behind the command; blanks inside parentheses don't separate."""
    arguments = []
    for word in _words(text):
        key, has_value, value = word.partition("=")
        if not has_value:
            arguments.append(Argument(word))
        elif value.startswith("(") and value.endswith(")"):
            arguments.append(Argument(key, tuple(part.strip() for part in value[1:-1].split(","))))
        else:
            arguments.append(Argument(key, (value,)))
    return arguments


def _words(text: str) -> Iterator[str]:
    word, depth = "", 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character.isspace() and depth <= 0:
            if word:
                yield word
            word = ""
        else:
            word += character
    if word:
        yield word


class _Lines:
    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0

    def next(self) -> str | None:
        if self.at >= len(self.lines):
            return None
        self.at += 1
        return self.lines[self.at - 1]


def parse(text: str) -> list[Stanza]:
    """The stanzas of a file.

    Raises:
        ScriptError: a command has no separator.
    """
    lines = _Lines(text)
    stanzas: list[Stanza] = []
    head: list[str] = []
    while (line := lines.next()) is not None:
        head.append(line)
        if not line.strip() or line.startswith("#"):
            continue
        number = lines.at
        while line.endswith("\\") and (more := lines.next()) is not None:
            head.append(more)
            line = line[:-1] + " " + more.strip()
        given = _input(lines, head, number)
        command, _, arguments = line.strip().partition(" ")
        stanzas.append(Stanza(number, command, parse_arguments(arguments), given, _expected(lines), head))
        head = []
    if stanzas:
        stanzas[-1].tail = "\n".join(head)
    return stanzas


def _input(lines: _Lines, head: list[str], number: int) -> str:
    given: list[str] = []
    while (line := lines.next()) is not None:
        head.append(line)
        if line == SEPARATOR:
            return "\n".join(given)
        given.append(line)
    raise ScriptError(f"line {number}: no {SEPARATOR} behind the command")


def _expected(lines: _Lines) -> str:
    expected: list[str] = []
    first = lines.next()
    if first == SEPARATOR:
        while (line := lines.next()) is not None:
            if line == SEPARATOR and lines.at < len(lines.lines) and lines.lines[lines.at] == SEPARATOR:
                lines.at += 1
                break
            expected.append(line)
    else:
        line = first
        while line:
            expected.append(line)
            line = lines.next()
        if line == "":
            lines.at -= 1
    return "".join(line + "\n" for line in expected)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stanza gave."""

    stanza: Stanza
    actual: str

    @property
    def passed(self) -> bool:
        """It gave what was expected."""
        return self.actual == self.stanza.expected


def run(text: str, execute: Callable[[Stanza], str]) -> list[Outcome]:
    """Execute every stanza of a file in order; an output that doesn't end its last line is ended."""
    outcomes = []
    for stanza in parse(text):
        actual = execute(stanza)
        if actual and not actual.endswith("\n"):
            actual += "\n"
        outcomes.append(Outcome(stanza, actual))
    return outcomes


def rewrite(path: Path, outcomes: list[Outcome]) -> None:
    """Put what came out where the expectations are."""
    parts: list[str] = []
    for outcome in outcomes:
        parts.extend(line + "\n" for line in outcome.stanza.head)
        has_blank = "\n\n" in "\n" + outcome.actual
        fence = f"{SEPARATOR}\n"
        parts.append(f"{fence}{outcome.actual}{fence}{fence}" if has_blank else outcome.actual)
        parts.append(outcome.stanza.tail)
    path.write_text("".join(parts), encoding="utf-8")
