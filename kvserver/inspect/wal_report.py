"""`kvserver wal`: what stands in the log, what is damaged, and what a start would make of it.

Rules: everything is written as it is read, so a log of any size takes the memory of one record. Records are shown only when asked for
(`--records`, `--from`, `--to`); segments, damage and the verdict always. JSON lines: kinds `log`, `segment`, `record`, `damage`,
`torn_tail`, `summary`, in this order within a segment but for `segment`, which comes at its end with all that is known of it.

The log of a running server is read as it is: its end may be half-written, so a refusal is looked at again a few times and the answer says
that it is provisional.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, assert_never

from kvserver.inspect.output import Output, count_of
from kvserver.inspect.place import Place, UnusablePlaceError, is_in_use
from kvserver.inspect.start import Start, judge_start
from raft.types import HardState
from wal import WalError, guide
from wal.inspect import Damage, Event, RecordSeen, SegmentEnd, SegmentStart, TornTail, inspect_log, list_log
from wal.record import RecordType

LIVE_ATTEMPTS: Final = 3
WHAT_TO_DO: Final = f"What to do: {guide('corruption')}"
UNREAD: Final = "a server would start (with the default --log-window-bytes, or a smaller one): it doesn't read what is damaged"
LATER: Final = "It can't feed members that are behind from there: replace it at a time that suits"
SMALLER: Final = " (with a --log-window-bytes below the default it may not read what is damaged, and start)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records are shown: none, or those with an index in [lowest, highest] (and, without bounds, those that have none).

    Bounds without `records` have no meaning; the command line refuses them.
    """

    records: bool = False
    lowest: int | None = None
    highest: int | None = None

    def takes(self, seen: RecordSeen) -> bool:
        """Whether this record is shown."""
        if not self.records or (self.lowest is None and self.highest is None):
            return self.records
        if seen.index is None:
            return False
        return (self.lowest is None or seen.index >= self.lowest) and (self.highest is None or seen.index <= self.highest)


@dataclass(slots=True)
class _Totals:
    segments: int = 0
    records: int = 0
    entries: int = 0
    used_bytes: int = 0
    size_bytes: int = 0
    damaged: int = 0
    hard_state: HardState | None = None
    markers: int = 0


def report_wal(place: Place, selection: Selection, output: Output) -> int:
    """Write the report; returns the exit code: 0 sound, 1 damaged. Raises UnusablePlaceError."""
    in_use = is_in_use(place)
    try:
        segments, others = list_log(place.wal)
    except WalError as error:
        start = judge_start(place)
        if start.refusal is None:
            raise UnusablePlaceError(str(error)) from error
        return _verdict(start, _Totals(), in_use, output)
    output.record("log", {"directory": str(place.wal), "in_use": in_use, "segments": len(segments), "other_files": others})
    output.text(f"WAL {place.wal}: {count_of(len(segments), 'segment')}{_others(others)}")
    if in_use:
        output.text("A server is using this directory: what follows is a moment's view, and its end may be half-written.")
    totals = _Totals()
    shown = _Shown(selection, output, totals)
    try:
        for event in inspect_log(place.wal):
            shown.event(event)
    except WalError as error:
        if not in_use:
            raise UnusablePlaceError(str(error)) from error
        output.text(f"The log changed while it was read: {error}")
    start = judge_start(place)
    for _ in range(LIVE_ATTEMPTS if in_use else 0):
        if start.refusal is None:
            break
        start = judge_start(place)
    return _verdict(start, totals, in_use, output)


def _others(names: list[str]) -> str:
    return f"; other files: {', '.join(names)}" if names else ""


class _Shown:
    """Writes the events, and counts."""

    def __init__(self, selection: Selection, output: Output, totals: _Totals) -> None:
        self._selection = selection
        self._output = output
        self._totals = totals
        self._start: SegmentStart | None = None

    def event(self, event: Event) -> None:
        """Write one event."""
        match event:
            case SegmentStart():
                self._begin(event)
            case RecordSeen():
                self._record(event)
            case Damage():
                self._damage(event)
            case TornTail():
                self._torn(event)
            case SegmentEnd():
                self._end(event)
            case unknown:
                assert_never(unknown)

    def _begin(self, event: SegmentStart) -> None:
        self._start = event
        self._totals.segments += 1
        self._totals.size_bytes += event.size_bytes
        header = event.header
        self._output.text()
        if header is None:
            self._output.text(f"{event.path.name}  {count_of(event.size_bytes, 'byte')}")
            return
        link = {None: "the oldest one kept", True: "previous checksum ok", False: "PREVIOUS CHECKSUM WRONG"}[event.follows]
        self._output.text(
            f"{event.path.name}  sequence {header.sequence}, first index {header.first_index}, {count_of(event.size_bytes, 'byte')}, {link}"
        )

    def _record(self, seen: RecordSeen) -> None:
        self._totals.records += 1
        if seen.hard_state is not None:
            self._totals.hard_state = seen.hard_state
        if seen.type == RecordType.MARKER:
            self._totals.markers += 1
        if not self._selection.takes(seen):
            return
        fields: dict[str, Any] = {
            "file": seen.path.name,
            "offset": seen.offset_bytes,
            "type": seen.type.name.lower(),
            "batch": seen.batch,
            "index": seen.index,
            "term": seen.term,
            "size": seen.size_bytes,
            "payload": seen.payload_bytes,
            "checksum_ok": True,
            "entry_type": seen.entry_type,
            "hard_state": _hard_state(seen.hard_state),
            "marker": None if seen.marker is None else asdict(seen.marker),
        }
        self._output.record("record", fields)
        position = f"index {seen.index} term {seen.term}" if seen.index is not None else ""
        state = f" {_state_text(seen.hard_state)}" if seen.hard_state is not None else ""
        kind = f" ({seen.entry_type})" if seen.entry_type not in (None, "normal") else ""
        self._output.text(
            f"  {seen.offset_bytes:>12}  {fields['type']:<10}{kind} batch {seen.batch} {position}{state}  "
            f"{count_of(seen.size_bytes, 'byte')}, checksum ok"
        )

    def _damage(self, event: Damage) -> None:
        self._totals.damaged += 1
        self._output.record(
            "damage",
            {
                "file": str(event.path),
                "offset": event.offset_bytes,
                "after_index": event.last_index,
                "reason": event.reason,
                "next_record_offset": event.next_offset_bytes,
            },
        )
        next_text = "no record follows" if event.next_offset_bytes is None else f"the next record is at offset {event.next_offset_bytes}"
        self._output.text(f"  DAMAGED at offset {event.offset_bytes}, behind index {event.last_index}: {event.reason}; {next_text}")

    def _torn(self, event: TornTail) -> None:
        self._output.record(
            "torn_tail",
            {"file": str(event.path), "offset": event.offset_bytes, "after_index": event.last_index, "reason": event.reason},
        )
        self._output.text(
            f"  torn at offset {event.offset_bytes}, behind index {event.last_index}: {event.reason}; "
            "a save that was never acknowledged, a start cuts it off"
        )

    def _end(self, event: SegmentEnd) -> None:
        totals, start = self._totals, self._start
        totals.entries += event.entries
        totals.used_bytes += event.used_bytes
        header = start.header if start is not None else None
        self._output.record(
            "segment",
            {
                "file": event.path.name,
                "sequence": None if header is None else header.sequence,
                "first_index": None if header is None else header.first_index,
                "last_index": event.last_index or None,
                "size": 0 if start is None else start.size_bytes,
                "used": event.used_bytes,
                "records": event.records,
                "entries": event.entries,
                "sealed": event.is_sealed,
                "previous_checksum_ok": None if start is None else start.follows,
            },
        )
        last = f", last index {event.last_index}" if event.last_index else ""
        sealed = ", sealed" if event.is_sealed else ""
        held = f"{count_of(event.records, 'record')}, {count_of(event.entries, 'entry')}{last}"
        self._output.text(f"  {held}; {count_of(event.used_bytes, 'byte')} used{sealed}")


def _verdict(start: Start, totals: _Totals, in_use: bool, output: Output) -> int:
    """The end of the report; returns the exit code."""
    is_sound = (start.refusal is None or start.is_removed) and start.passed_over is None and not totals.damaged
    log, metadata, store = start.log, start.metadata, start.store
    hard_state = log.hard_state if log is not None and log.hard_state is not None else totals.hard_state
    marker = log.marker if log is not None else None
    output.record(
        "summary",
        {
            "sound": is_sound,
            "provisional": in_use,
            "verdict": "refuse" if start.refusal else "repair" if start.repair else "ok",
            "text": start.refusal or start.repair or start.note or (UNREAD if start.passed_over is not None else ""),
            "cluster_id": None if metadata is None else f"{metadata.cluster_id:x}",
            "member_id": None if metadata is None else f"{metadata.member_id:x}",
            "segments": totals.segments,
            "records": totals.records,
            "entries": totals.entries,
            "used": totals.used_bytes,
            "size": totals.size_bytes,
            "damaged_places": totals.damaged,
            "first_index": None if log is None else log.first_index,
            "last_index": None if log is None else log.last_index,
            "last_term": None if log is None else log.last_term,
            "hard_state": _hard_state(hard_state),
            "marker": None if marker is None else asdict(marker),
            "store_applied_index": None if store is None else store.index,
            "store_applied_term": None if store is None else store.term,
        },
    )
    output.text()
    if metadata is not None:
        output.text(f"Member {metadata.member_id:x} of cluster {metadata.cluster_id:x}")
    output.text(
        f"{count_of(totals.segments, 'segment')}, {count_of(totals.records, 'record')}, {count_of(totals.entries, 'entry')}; "
        f"{totals.used_bytes} of {count_of(totals.size_bytes, 'byte')} used"
    )
    if log is not None and log.refusal is None:
        output.text(f"Readable entries: {log.first_index} to {log.last_index}, the last one of term {log.last_term}")
    if hard_state is not None:
        output.text(f"Hard state: {_state_text(hard_state)}")
    if marker is not None:
        output.text(f"Snapshot marker: index {marker.index}, term {marker.term} ({count_of(totals.markers, 'marker record')})")
    if store is not None:
        output.text(f"Store: applied index {store.index}, term {store.term}, revision {store.revision}")
    _say_verdict(start, totals, in_use, output)
    return 0 if is_sound else 1


def _say_verdict(start: Start, totals: _Totals, in_use: bool, output: Output) -> None:
    """The last line, in the words of `kvserver check`; it speaks of the log, as the store was asked for its position only."""
    certainty = " (provisional: the directory is in use)" if in_use else ""
    if start.is_removed and start.passed_over is None and not totals.damaged:
        output.text(f"Verdict{certainty}: the log is sound; a server would refuse to start:\n  {start.refusal}")
    elif start.refusal is not None:
        smaller = SMALLER if start.depends_on_window else ""
        output.text(f"Verdict{certainty}: not sound; a server would refuse to start{smaller}:\n  {start.refusal}")
    elif start.passed_over is not None:
        output.text(f"Verdict{certainty}: not sound; {UNREAD}: {_what_of(start.passed_over)}.\n  {LATER}. {WHAT_TO_DO}")
    elif totals.damaged:
        output.text(f"Verdict{certainty}: not sound; a server would start, it would not read what is damaged above. {WHAT_TO_DO}")
    elif start.repair is not None:
        output.text(f"Verdict{certainty}: the log is sound; a server would start, having repaired the end of the log:\n  {start.repair}")
    else:
        output.text(f"Verdict{certainty}: the log is sound; a server would start{f' ({start.note})' if start.note else ''}")


def _what_of(error: WalError) -> str:
    """What is wrong and where, without what a refused start says of it."""
    path = getattr(error, "path", None)
    return str(error) if path is None or not error.what else f"{path}: {error.what}"


def _hard_state(state: HardState | None) -> dict[str, Any] | None:
    return None if state is None else {"term": state.term, "vote": f"{state.vote:x}", "commit": state.commit}


def _state_text(state: HardState | None) -> str:
    return "" if state is None else f"term {state.term}, vote {state.vote:x}, commit {state.commit}"
