"""`kvserver check`: whether store, log and snapshot files are sound, each for itself and together.

Order: the file's pages and every row's seal, without LMDB; only if no page is damaged the rest of the store through LMDB: that the tables
agree with each other (mvcc.integrity), revision and compaction, HashKV; then the log as a start would judge it; then what lies beside the
store. One problem is one line, written when it is found.

Memory: that of one page of each level, one row, and one bit per page of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvserver.apply import LeaseCheck
from kvserver.apply import inspect as inspect_copy
from kvserver.apply.meta import Meta
from kvserver.inspect.output import Output, Progress, count_of
from kvserver.inspect.place import Place, hold
from kvserver.inspect.position import meta_of
from kvserver.inspect.start import Start, judge_start
from kvserver.inspect.wal_report import LATER, SMALLER, UNREAD, WHAT_TO_DO
from kvserver.mvcc import TABLES, KvHash, Mvcc, Snapshot, describe_row
from kvserver.mvcc.compaction import NEVER
from kvserver.mvcc.integrity import CrossCheck, Pass, check_numbers
from kvserver.snapshot.files import list_received
from kvserver.storage import (
    DamagedRowError,
    LayeredReader,
    StoreDamagedError,
    StoreUnreadableError,
    check_structure,
    existing_tables,
    read_only_env,
)
from kvserver.storage.page_format import Row, Tree
from kvserver.storage.pages import PageFile, check_all
from kvserver.types import Revision
from wal import WalError

SLICE_ROWS: Final = 5_000
REV_TABLE: Final = "rev"


@dataclass(slots=True)
class _Findings:
    """What has been found so far."""

    output: Output
    progress: Progress
    problems: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def problem(self, path: Path, reason: str, offset_bytes: int | None = None) -> None:
        """Tell one problem. `reason` may name the offset itself."""
        self.problems += 1
        self.progress.clear()
        self.output.record("problem", {"file": str(path), "offset": offset_bytes, "reason": reason})
        at = "" if offset_bytes is None or f"offset {offset_bytes}" in reason else f"at offset {offset_bytes}: "
        self.output.text(f"DAMAGED {path}: {at}{reason}")

    def note(self, text: str) -> None:
        """Tell something that is worth knowing and no damage."""
        self.progress.clear()
        self.output.record("note", {"text": text})
        self.output.text(text)


def report_check(place: Place, output: Output, progress: Progress) -> int:
    """Write the report; returns the exit code: 0 sound, 1 damaged. Raises InUseError, UnusablePlaceError."""
    findings = _Findings(output, progress)
    with hold(place):
        _check_store(place, findings)
        start = judge_start(place)
        _check_start(place, start, findings)
        _check_leftovers(place, findings)
        verdict = _verdict(place, start, findings)
    progress.clear()
    sound = findings.problems == 0
    output.record("summary", {"sound": sound, "problems": findings.problems, "verdict": verdict, **findings.facts})
    for name, value in findings.facts.items():
        output.text(f"{name.replace('_', ' ')}: {'none' if value is None else value}")
    output.text(f"Verdict: {verdict}")
    return 0 if sound else 1


def _verdict(place: Place, start: Start, findings: _Findings) -> str:
    """The last line: whether all is sound, and what a start would do."""
    if findings.problems:
        return f"not sound, {count_of(findings.problems, 'problem')}; {_would(place, start, findings)}. {WHAT_TO_DO}"
    if start.refusal is not None:
        return f"sound; a server would refuse to start: {start.refusal}"
    repaired = ", having repaired the end of the log" if start.repair is not None else ""
    return f"sound; a server would start{repaired}"


def _would(place: Place, start: Start, findings: _Findings) -> str:
    """What a server would do with what is not sound."""
    if _would_refuse(place, start):
        return f"a server would refuse to start{SMALLER if start.depends_on_window else ''}"
    if start.passed_over is not None and findings.problems == 1:
        return f"{UNREAD}. {LATER}"
    return "a server would start, and refuse to serve what is damaged"


def _would_refuse(place: Place, start: Start) -> bool:
    """Whether a start would end at what was found: it looks at every page of the store, and not at every row."""
    if start.refusal is not None:
        return True
    if start.store is None:
        return False
    try:
        check_structure(place.store, TABLES)
    except StoreUnreadableError:
        return True
    return False


def _check_store(place: Place, findings: _Findings) -> None:
    path = place.store
    if not path.exists():
        findings.note(f"There is no store at {path}.")
        return
    if path.stat().st_size == 0:
        findings.note(f"The store {path} is empty: a start takes it for one that isn't there.")
        return
    try:
        with PageFile.open(path, describe_row) as file:
            meta = _check_pages(file, findings)
    except StoreDamagedError as error:
        findings.problem(path, error.reason, error.offset_bytes)
        return
    except StoreUnreadableError as error:
        findings.problem(path, error.reason)
        return
    except OSError as error:
        findings.problem(path, f"reading it failed: {error.strerror or error}")
        return
    if findings.problems or meta is None:
        findings.note("What the tables say to each other was not looked at.")
        return
    with _state(path, meta, findings) as state:
        _check_tables(state, path, findings)
        _hash(state, path, findings)


def _check_pages(file: PageFile, findings: _Findings) -> Meta | None:
    """Every page and every row; then the meta, if nothing is wrong."""
    total = sum(tree.entries for tree in file.trees(TABLES, lambda offset_bytes, reason: None))
    rows = 0
    highest = 0

    def report(offset_bytes: int, reason: str) -> None:
        findings.problem(file.path, reason, offset_bytes)

    def count(tree: Tree, row: Row) -> None:
        nonlocal rows, highest
        rows += 1
        if tree.name == REV_TABLE:
            highest = int.from_bytes(row.key[:8], "big")
        if rows % 1_000 == 0:
            findings.progress.show("rows", rows, total)

    lost = check_all(file, TABLES, report, count)
    findings.facts["pages"] = file.last_page + 1
    findings.facts["rows"] = rows
    if findings.problems:
        return None  # pages that were not reached may hang under a damaged one: nothing can be said of them
    if lost:
        are = "is" if lost == 1 else "are"
        findings.note(f"{count_of(lost, 'page')} of {file.path} {are} neither in use nor listed as free: space is lost, no data.")
    meta = meta_of(file)
    if meta is None:
        findings.note(f"The store {file.path} is empty.")
    elif meta.revision + meta.is_unfinished < highest:
        findings.problem(file.path, f"its revision is {meta.revision}, and it holds a change of revision {highest}")
    if meta is not None and meta.is_unfinished:
        findings.note(f"A request that changes very many keys is half applied in {file.path}: the next start goes on with it.")
    return meta


@contextmanager
def _state(path: Path, meta: Meta, findings: _Findings) -> Iterator[Snapshot]:
    """The store's newest state through LMDB, which may be trusted with the file by now."""
    env = read_only_env(path, tables=len(TABLES))
    try:
        reader = LayeredReader(env, existing_tables(env, TABLES), ())
        try:
            mvcc = Mvcc(_ReadOnly(reader), current_revision=meta.revision, on_corrupt=lambda text: findings.problem(path, text))
            compactor = mvcc.compactor
            reason = check_numbers(meta.revision, compactor.scheduled, compactor.finished, compactor.target)
            if reason is not None:
                findings.problem(path, reason)
            findings.facts |= {
                "applied_index": meta.index,
                "applied_term": meta.term,
                "revision": meta.revision,
                "compacted_revision": None if compactor.scheduled == NEVER else compactor.scheduled,
            }
            yield mvcc.snapshot()
        finally:
            reader.close()
    finally:
        env.close()


class _ReadOnly:
    """A store that nobody writes, as mvcc wants it."""

    def __init__(self, reader: LayeredReader) -> None:
        self.reader = reader

    def put(self, table: int, key: bytes, value: bytes) -> None:
        raise AssertionError("a check writes nothing")

    def delete(self, table: int, key: bytes) -> None:
        raise AssertionError("a check writes nothing")


def _check_tables(state: Snapshot, path: Path, findings: _Findings) -> None:
    check = CrossCheck(lambda text: findings.problem(path, text))
    total = 0
    while check.run_slice(state, SLICE_ROWS):
        total = sum(check.rows.values())
        findings.progress.show("rows compared", total, 2 * findings.facts["rows"])
    leases = LeaseCheck(lambda text: findings.problem(path, text))
    while leases.run_slice(state, SLICE_ROWS):
        findings.progress.show("rows compared", total + leases.rows, 2 * findings.facts["rows"])
    findings.facts["keys"] = check.rows[Pass.INDEX]
    findings.facts["changes"] = check.rows[Pass.CHANGES]


def _hash(state: Snapshot, path: Path, findings: _Findings) -> None:
    """HashKV of the newest revision, which other members can be asked for (kvctl endpoint hashkv)."""
    if findings.problems:
        return
    try:
        hasher = KvHash(state, Revision(0))
        while hasher.run_slice(state, SLICE_ROWS):
            findings.progress.show("hashing", 0, 0)
    except DamagedRowError as error:
        findings.problem(path, f"{describe_row(error.table, error.key)} {error.reason}")
        return
    findings.facts["hash_kv"] = hasher.value


def _check_start(place: Place, start: Start, findings: _Findings) -> None:
    """The log, and whether store and log belong together. What is wrong with the store by itself has been told."""
    if (log_error := start.log_error or start.passed_over) is not None:
        _tell_log(log_error, place, findings)
    if start.refusal is not None and start.log_error is None and start.store_error is None and not start.is_removed:
        findings.problem(place.root, start.refusal)
    if start.store_error is not None and not findings.problems:
        findings.problem(place.store, start.store_error.reason)
    if start.repair is not None:
        findings.note(f"A start would repair the end of the log: {start.repair}.")
    if start.note is not None:
        findings.note(f"{start.note[0].upper()}{start.note[1:]}.")
    metadata, store, log = start.metadata, start.store, start.log
    if log is not None and log.refusal is None:
        findings.facts |= {"log_first_index": log.first_index, "log_last_index": log.last_index}
        if log.hard_state is not None:
            findings.facts |= {"log_commit_index": log.hard_state.commit, "term": log.hard_state.term}
    if metadata is None:
        return
    findings.facts |= {"cluster_id": f"{metadata.cluster_id:x}", "member_id": f"{metadata.member_id:x}"}
    members = store.membership.members if store is not None else {}
    if members and metadata.member_id not in members and not start.is_removed:
        findings.note(f"The log's member, {metadata.member_id:x}, is not among the store's members (not yet, if it is joining).")


def _tell_log(error: WalError, place: Place, findings: _Findings) -> None:
    """What is wrong with the log: the file that the error names, or the directory."""
    path: Path = getattr(error, "path", place.wal)  # some leaves are about a file, some about a place in it, some about the directory
    offset_bytes: int | None = getattr(error, "offset_bytes", None)
    findings.problem(path, error.what or str(error).removeprefix(f"{path}: "), offset_bytes)
    findings.note("The log was read up to there; `kvserver wal` shows all of it.")


def _check_leftovers(place: Place, findings: _Findings) -> None:
    """What lies beside the store."""
    if not place.snap.is_dir():
        return
    received = {found.path: found for found in list_received(place.snap)}
    for path in sorted(place.snap.iterdir()):
        if path in (place.store, place.store.with_name(place.store.name + "-lock")):
            continue
        found = received.get(path)
        if found is None:
            findings.note(f"{path} is no part of the store; a start removes what an interrupted transfer left.")
            continue
        try:
            check_structure(path, TABLES, every_row=True, describe_row=describe_row)
            meta = inspect_copy(path)
        except StoreDamagedError as error:
            findings.problem(path, f"the received snapshot is damaged: {error.reason}", error.offset_bytes)
            continue
        except StoreUnreadableError as error:
            findings.problem(path, f"the received snapshot can't be read: {error.reason}")
            continue
        if (meta.index, meta.term) != (found.index, found.term):
            findings.problem(path, f"the snapshot holds index {meta.index}, term {meta.term}; its name says {found.index}, {found.term}")
        else:
            findings.note(f"{path} is a whole snapshot at index {found.index}; a start installs it if the log says so, or removes it.")
