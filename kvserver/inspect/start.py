"""What a server would come to if it were started on this directory: the store's position and the log, judged as a start judges them.

Rules: the texts are those of the start itself (wal.errors, node.refusals, storage). What depends on flags and on the other members is left
out: whether the directory belongs to the cluster that the flags mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvserver.apply.meta import Meta
from kvserver.inspect.place import Place
from kvserver.inspect.position import read_position
from kvserver.node import refusals
from kvserver.node.bootstrap import FOUNDING
from kvserver.snapshot import list_received
from kvserver.storage import StoreUnreadableError
from raft.types import Index, Term
from wal import Metadata, Wal, WalError, read_metadata
from wal.inspect import Verdict, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The judgement. `refusal` is the text with which a start would end, None if it would begin; `repair` what it would repair first."""

    refusal: str | None
    repair: str | None = None
    note: str | None = None
    metadata: Metadata | None = None
    store: Meta | None = None
    log: Verdict | None = None


def judge_start(place: Place) -> Start:
    """What a start would come to now."""
    try:
        store = read_position(place.store)
    except StoreUnreadableError as error:
        return _with_log(place, Start(refusal=str(error)), None)
    applied = store.index if store is not None else Index(0)
    try:
        exists = Wal.exists(place.wal)
    except WalError as error:
        return Start(refusal=str(error), store=store)
    if not exists:
        if applied > FOUNDING.index:
            return Start(refusal=refusals.wal_missing(place.wal, place.store, applied), store=store)
        return Start(refusal=None, note="there is no log: a start would be this member's first one", store=store)
    return _with_log(place, None, store)


def _with_log(place: Place, begun: Start | None, store: Meta | None) -> Start:
    """Judge the log, against the store's position if that is known (`begun` is None)."""
    try:
        metadata = read_metadata(place.wal)
    except WalError as error:
        return Start(refusal=begun.refusal if begun else str(error), store=store)
    applied_index, applied_term = (store.index, store.term) if store is not None else (Index(0), Term(0))
    log = verdict(place.wal, applied_index=applied_index, applied_term=applied_term)
    if begun is not None:
        refusal = begun.refusal
    elif store is not None and store.membership.cluster_id not in (0, metadata.cluster_id):
        refusal = refusals.other_cluster(place.root, store.membership.cluster_id, metadata.cluster_id)
    elif log.refusal is not None:
        refusal = str(log.refusal)
    else:
        refusal = _missing(place, store, log)
    note = "the store is gone: it would be built again from the log" if store is None and refusal is None else None
    return Start(refusal=refusal, repair=log.torn if refusal is None else None, note=note, metadata=metadata, store=store, log=log)


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
