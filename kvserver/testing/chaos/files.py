"""A history on disk: a directory that is written as the run goes and can be judged again at any time.

    operations.jsonl      one line per invocation and per completion, in the order in which they happened
        {"i": id, "c": client, "m": member, "t": ns, "q": Request}
        {"r": id, "t": ns, "o": outcome, "a": Answer}              outcome "ok"
        {"r": id, "t": ns, "o": outcome, "e": error text}          outcome "failed" or "unknown"
    faults.jsonl          one line per fault: {"kind", "kills", "began_ns", "ended_ns", "members"}
    <member>.changes.jsonl  every revision of the member's store: Revised (see codec)
    end.json              members, what each said at the end, trouble, facts of the run (seed, rate, ...)

Rules: the recorder holds no operation in memory, only counters; lines are buffered by the file and flushed by `flush`. Reading checks the
shape of every line: a damaged or half-written history is a `HistoryError` that names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from kvserver.errors import KvError
from kvserver.testing.chaos import codec
from kvserver.testing.chaos.model import Answer, Fault, History, MemberEnd, Operation, Outcome, Request, Revised

OPERATIONS: Final = "operations.jsonl"
FAULTS: Final = "faults.jsonl"
END: Final = "end.json"
_COMPACT: Final = (",", ":")

_T = TypeVar("_T")


class HistoryError(KvError):
    """A history can't be read; the text names file, line and reason."""


@dataclass(slots=True)
class Counters:
    """What the recorder has seen; writes are requests that may change something."""

    writes_ok: int = 0
    writes_unknown: int = 0
    writes_failed: int = 0
    reads_ok: int = 0
    reads_failed: int = 0

    def count(self, request: Request, outcome: Outcome) -> None:
        """Note a completion."""
        if not request.is_mutation:
            if outcome is Outcome.OK:
                self.reads_ok += 1
            else:
                self.reads_failed += 1
        elif outcome is Outcome.OK:
            self.writes_ok += 1
        elif outcome is Outcome.FAILED:
            self.writes_failed += 1
        else:
            self.writes_unknown += 1


class Recorder:
    """Streams a run to `directory`, which is made; one thread writes operations, another may write faults."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.counters = Counters()
        self._operations = (directory / OPERATIONS).open("w", encoding="ascii", buffering=1 << 20)
        self._faults = (directory / FAULTS).open("w", encoding="ascii")

    def invoked(self, operation_id: int, client: str, member: str, at_ns: int, request: Request) -> None:
        """A request is about to leave."""
        self._write({"i": operation_id, "c": client, "m": member, "t": at_ns, "q": codec.encode_request(request)})

    def answered(self, operation_id: int, at_ns: int, request: Request, answer: Answer) -> None:
        """A request was answered with success."""
        self.counters.count(request, Outcome.OK)
        self._write({"r": operation_id, "t": at_ns, "o": Outcome.OK.value, "a": codec.encode_answer(answer)})

    def not_answered(self, operation_id: int, at_ns: int, request: Request, outcome: Outcome, error: str) -> None:
        """A request failed, certainly or not."""
        self.counters.count(request, outcome)
        self._write({"r": operation_id, "t": at_ns, "o": outcome.value, "e": error})

    def fault(self, fault: Fault) -> None:
        """The nemesis is done with one of its deeds."""
        self._faults.write(json.dumps(asdict(fault), separators=_COMPACT) + "\n")
        self._faults.flush()

    def store(self, member: str, revisions: Iterable[Revised]) -> None:
        """What a member's store holds, revision by revision."""
        with self._path(member).open("w", encoding="ascii", buffering=1 << 20) as target:
            for revised in revisions:
                target.write(json.dumps(codec.encode_revised(revised), separators=_COMPACT) + "\n")

    def end(self, members: Iterable[str], ends: dict[str, MemberEnd], trouble: Iterable[str], facts: dict[str, int | str]) -> None:
        """The last word of a run."""
        self.flush()
        said = {member: asdict(end) for member, end in ends.items()}
        text = json.dumps({"members": list(members), "ends": said, "trouble": list(trouble), "facts": facts}, indent=2)
        (self.directory / END).write_text(text + "\n", encoding="ascii")

    def flush(self) -> None:
        """Hand everything noted so far to the operating system."""
        self._operations.flush()

    def close(self) -> None:
        """Close the files. May be called twice."""
        self._operations.close()
        self._faults.close()

    def _path(self, member: str) -> Path:
        return changes_path(self.directory, member)

    def _write(self, line: dict[str, object]) -> None:
        self._operations.write(json.dumps(line, separators=_COMPACT) + "\n")


def changes_path(directory: Path, member: str) -> Path:
    """Where a member's changes are."""
    return directory / f"{member}.changes.jsonl"


def load(directory: Path) -> History:
    """Read a history; the stores are read while the checker walks through them.

    Raises:
        HistoryError: something is missing or can't be read.
    """
    end = _end(directory / END)
    return History(
        members=end.members,
        operations=_operations(directory / OPERATIONS),
        stores={
            member: _StoreFile(path) for member in end.members if (path := changes_path(directory, member)).exists() or member in end.ends
        },
        ends=end.ends,
        faults=list(_lines(directory / FAULTS, _decode_fault)),
        trouble=end.trouble,
        facts=end.facts,
    )


@dataclass(frozen=True, slots=True)
class _End:
    members: tuple[str, ...]
    ends: dict[str, MemberEnd]
    trouble: tuple[str, ...]
    facts: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class _StoreFile:
    """The changes of one member; every iteration reads the file."""

    path: Path

    def __iter__(self) -> Iterator[Revised]:
        return _lines(self.path, codec.decode_revised)


def _end(path: Path) -> _End:
    try:
        data = json.loads(path.read_text(encoding="ascii"))
        ends = {member: _decode_end(said) for member, said in data["ends"].items()}
        return _End(tuple(data["members"]), ends, tuple(data["trouble"]), dict(data["facts"]))
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}; a run that was cut short has no end to judge") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HistoryError(f"{path}: not the end of a history: {error!r}") from error


def _decode_end(data: Any) -> MemberEnd:
    return MemberEnd(**{**data, "member_list": tuple(data["member_list"])})


def _decode_fault(data: Any) -> Fault:
    return Fault(**{**data, "members": tuple(data["members"])})


def _operations(path: Path) -> list[Operation]:
    """All operations, in order of invocation."""
    found: dict[int, Operation] = {}

    def take(line: Any) -> None:
        if "i" in line:
            operation = Operation(
                id=line["i"], client=line["c"], member=line["m"], request=codec.decode_request(line["q"]), invoked_ns=line["t"]
            )
            if operation.id in found:
                raise ValueError(f"operation {operation.id} begins twice")
            found[operation.id] = operation
            return
        operation = found[line["r"]]
        if operation.completed_ns is not None:
            raise ValueError(f"operation {operation.id} ends twice")
        operation.completed_ns, operation.outcome = line["t"], Outcome(line["o"])
        if operation.outcome is Outcome.OK:
            operation.answer = codec.decode_answer(line["a"])
        else:
            operation.error = line["e"]

    for _ in _lines(path, take):
        pass
    return list(found.values())


def _lines(path: Path, decode: Callable[[Any], _T]) -> Iterator[_T]:
    source: IO[str]
    try:
        source = path.open(encoding="ascii")
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}") from error
    with source:
        for number, line in enumerate(source, start=1):
            try:
                yield decode(json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise HistoryError(f"{path}, line {number}: not a line of a history: {error!r}") from error
