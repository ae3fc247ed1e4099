"""What a server would come to if it were started on this directory: the store's position and the log, judged as a start judges them.

Rules: the texts are those of the start itself (wal.errors, node.refusals, storage). What depends on flags and on the other members is left
out: whether the directory belongs to the cluster that the flags mean. Of the store only what it says about itself is read; a start looks at
every page of it (`kvserver check` does).

Old segments that a start passes over (`wal.reader.Unread`) are read here all the same: damage in them is told, and is no refusal. How far a
start reads depends on `--log-window-bytes`; the default is assumed, and whether a smaller one would pass over the damage is told, too. A
larger one reads more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kvserver.apply.meta import Meta
from kvserver.inspect.place import Place
from kvserver.inspect.position import read_position
from kvserver.node import refusals
from kvserver.node.bootstrap import FOUNDING
from kvserver.node.compaction import WindowLimits
from kvserver.snapshot import list_received
from kvserver.storage import StoreUnreadableError
from raft.types import Index
from wal import Metadata, Wal, WalError, read_metadata
from wal.inspect import Verdict, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The judgement. `refusal` is the text with which a start would end, None if it would begin; `repair` what it would repair first.

    `store_error` and `log_error` say what is wrong with each by itself: a start ends at the first of them. `is_removed`: nothing is wrong,
    and a start would refuse all the same, because the member was removed from the cluster. `passed_over` is damage of the log that a start
    does not read; `depends_on_window`: that holds only with a smaller `--log-window-bytes` than the default, and this is a refusal.
    """

    refusal: str | None
    store_error: StoreUnreadableError | None = None
    log_error: WalError | None = None
    passed_over: WalError | None = None
    depends_on_window: bool = False
    is_removed: bool = False
    repair: str | None = None
    note: str | None = None
    metadata: Metadata | None = None
    store: Meta | None = None
    log: Verdict | None = None


def judge_start(place: Place) -> Start:
    """What a start would come to now."""
    store_error: StoreUnreadableError | None = None
    store: Meta | None = None
    try:
        store = read_position(place.store)
    except StoreUnreadableError as error:
        store_error = error
    try:
        exists = Wal.exists(place.wal)
        metadata = read_metadata(place.wal) if exists else None
    except WalError as error:
        return Start(refusal=str(store_error or error), store_error=store_error, log_error=error, store=store)
    if metadata is not None:
        return _with_log(place, metadata, store, store_error)
    if store_error is not None:
        return Start(refusal=str(store_error), store_error=store_error)
    applied = store.index if store is not None else Index(0)
    if applied > FOUNDING.index:
        return Start(refusal=refusals.wal_missing(place.wal, place.store, applied), store=store)
    return Start(refusal=None, note="there is no log: a start would be this member's first one", store=store)


def _with_log(place: Place, metadata: Metadata, store: Meta | None, store_error: StoreUnreadableError | None) -> Start:
    """Judge the log, against the store's position if that is known."""
    log, passed_over, depends_on_window = _judge_log(place, store)
    note = None
    is_removed = store is not None and metadata.member_id in store.membership.removed_ids
    if store_error is not None:
        refusal: str | None = str(store_error)
    elif store is not None and store.membership.cluster_id not in (0, metadata.cluster_id):
        refusal = refusals.other_cluster(place.root, store.membership.cluster_id, metadata.cluster_id)
    elif log.refusal is not None:
        refusal = str(log.refusal)
    else:
        refusal = _missing(place, store, log)
        note = "the store is gone: it would be built again from the log" if store is None and refusal is None else None
    is_removed = is_removed and refusal is None
    if is_removed:
        refusal = refusals.removed(place.root, metadata.member_id)
    return Start(
        refusal=refusal,
        store_error=store_error,
        log_error=log.refusal,
        passed_over=passed_over,
        depends_on_window=depends_on_window,
        is_removed=is_removed,
        repair=log.torn if refusal is None else None,
        note=note,
        metadata=metadata,
        store=store,
        log=log,
    )


def _judge_log(place: Place, store: Meta | None) -> tuple[Verdict, WalError | None, bool]:
    """The verdict of a start with the default window, the damage that it passes over, and whether only one with a smaller window would."""
    judge = partial(verdict, place.wal)
    if store is not None:
        judge = partial(judge, applied_index=store.index, applied_term=store.term)
    whole = judge()
    if whole.refusal is None:
        return whole, None, False
    by_default = judge(recent_bytes=WindowLimits().max_bytes)
    if by_default.refusal is None:
        return by_default, whole.refusal, False
    return by_default, None, judge(recent_bytes=0).refusal is None


def _missing(place: Place, store: Meta | None, log: Verdict) -> str | None:
    """What lies neither in the store nor in the log; None if nothing is missing."""
    marker = log.marker
    applied = store.index if store is not None else Index(0)
    if marker is not None and marker.index > applied and (store is not None or _has_received(place, marker.index)):
        return None if _has_received(place, marker.index) else refusals.snapshot_missing(marker, place.store, applied, place.snap)
    if store is None:
        if log.first_index != FOUNDING.index + 1 or marker != FOUNDING:
            return refusals.store_missing(place.store, place.wal, log.first_index)
        return None
    return refusals.gap(place.wal, log.first_index, place.store, applied) if log.first_index > applied + 1 else None


def _has_received(place: Place, index: Index) -> bool:
    return place.snap.is_dir() and any(found.index == index for found in list_received(place.snap))
