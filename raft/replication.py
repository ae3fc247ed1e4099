"""How a leader brings its log to the others: appending, sending, and moving the commit index.

Rules
- The leader counts itself only when its own append is durable: `append` queues an MsgAppResp to itself, which is delivered after the write.
- A member whose next entry was compacted gets a snapshot, unless it was not heard from recently.
- A commit index is told with the next message; a message of its own is sent only if the member can use it and was not told yet.

Source: Ongaro's thesis, 3.5, 3.6.2, 10.2 (pipelining and writing in parallel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from raft.errors import CompactedError, SnapshotTemporarilyUnavailableError, UnavailableError
from raft.messages import Message, MessageType
from raft.progress import REPLICATE, Progress
from raft.sizes import payload_size_bytes
from raft.state import RaftState
from raft.types import Entry, Index, NodeId

_APP: Final = MessageType.APP
_APP_RESP: Final = MessageType.APP_RESP


def append(r: RaftState, entries: Sequence[Entry]) -> bool:
    """Append copies of `entries` at the leader's term and next indexes. False if the uncommitted tail has no room for them."""
    if not _reserve_uncommitted(r, payload_size_bytes(entries)):
        r.log_sink.debug(f"{r.id:x} appending new entries to log would exceed uncommitted entry size limit; dropping proposal")
        return False
    term, index = r.term, r.log.last_index
    placed = []
    for entry in entries:
        index = Index(index + 1)
        placed.append(Entry(term=term, index=index, type=entry.type, data=entry.data))
    r.log.append(placed)
    r.send(Message(type=_APP_RESP, to=r.id, index=index))
    return True


def _reserve_uncommitted(r: RaftState, size_bytes: int) -> bool:
    """Account for a proposal. Empty ones always pass, and anything passes into an empty tail, so that no proposal is refused for ever."""
    held = r.uncommitted_size_bytes
    if held > 0 and size_bytes > 0 and held + size_bytes > r.config.uncommitted_limit_bytes:
        return False
    r.uncommitted_size_bytes = held + size_bytes
    return True


def release_uncommitted(r: RaftState, size_bytes: int) -> None:
    """Entries were applied. What they did not reserve (before this leadership) can't make the account negative."""
    r.uncommitted_size_bytes = max(0, r.uncommitted_size_bytes - size_bytes)


def maybe_commit(r: RaftState) -> bool:
    """Raise the commit index to what a quorum holds, if that is of the current term."""
    return r.log.maybe_commit(r.tracker.committed_index(), r.term)


# --- sending --------------------------------------------------------------------------------------


def broadcast_append(r: RaftState) -> None:
    """Send every other member what it misses, at least the commit index, as far as its window allows."""
    for node in r.tracker.ids:
        if node != r.id:
            maybe_send_append(r, node, send_if_empty=True)


def maybe_send_append(r: RaftState, to: NodeId, *, send_if_empty: bool) -> bool:
    """Send `to` the next entries, or a snapshot if they are gone. False if nothing was sent (paused, nothing to send, nothing
    available)."""
    progress = r.tracker.progress[to]
    if progress.is_paused:
        return False
    log = r.log
    previous = Index(progress.next_index - 1)
    entries: list[Entry] = []
    try:
        previous_term = log.term(previous)
        # A full window lets only empty messages through: if all that filled it was lost, their rejection gets things going again.
        if progress.state is not REPLICATE or not progress.inflights.is_full:
            entries = log.entries(progress.next_index, r.config.max_size_per_msg_bytes)
    except CompactedError:
        return _maybe_send_snapshot(r, to, progress)
    except UnavailableError:
        return False  # a storage that reads from disk has to fetch it first: a heartbeat response asks again
    if not entries and not send_if_empty:
        return False
    commit = log.commit_index
    r.send(Message(type=_APP, to=to, index=previous, log_term=previous_term, entries=entries, commit=commit))
    progress.note_sent_entries(len(entries), payload_size_bytes(entries))
    progress.note_sent_commit(commit)
    return True


def retry_appends(r: RaftState) -> None:
    """Send every member what it misses and may be sent now; nothing empty."""
    for node in r.tracker.ids:
        if node != r.id:
            while maybe_send_append(r, node, send_if_empty=False):
                pass


def _maybe_send_snapshot(r: RaftState, to: NodeId, progress: Progress) -> bool:
    if not progress.is_recently_active:
        r.log_sink.debug(f"ignore sending snapshot to {to:x} since it is not recently active")
        return False
    try:
        snapshot = r.log.snapshot()
    except SnapshotTemporarilyUnavailableError:
        r.log_sink.debug(f"{r.id:x} failed to send snapshot to {to:x} because snapshot is temporarily unavailable")
        return False
    index, term = snapshot.metadata.index, snapshot.metadata.term
    if index == 0:
        r.log_sink.error(f"{r.id:x} has no snapshot to send to {to:x}, and its log begins behind what {to:x} needs")
        return False
    r.log_sink.debug(
        f"{r.id:x} [firstindex: {r.log.first_index}, commit: {r.log.commit_index}] "
        f"sent snapshot[index: {index}, term: {term}] to {to:x} [{progress}]"
    )
    progress.become_snapshot(index)
    r.log_sink.debug(f"{r.id:x} paused sending replication messages to {to:x} [{progress}]")
    r.send(Message(type=MessageType.SNAP, to=to, snapshot=snapshot))
    return True


def broadcast_heartbeat(r: RaftState) -> None:
    """Send every other member a heartbeat with the commit index it can use, and the newest waiting read."""
    context = r.read_only.heartbeat_context()
    for node in r.tracker.ids:
        if node != r.id:
            progress = r.tracker.progress[node]
            commit = Index(min(progress.match_index, r.log.commit_index))
            r.send(Message(type=MessageType.HEARTBEAT, to=node, commit=commit, context=context))
            progress.note_sent_commit(commit)


def send_timeout_now(r: RaftState, to: NodeId) -> None:
    """Ask `to` to campaign at once (leadership transfer)."""
    r.send(Message(type=MessageType.TIMEOUT_NOW, to=to))


# --- the configuration changed --------------------------------------------------------------------


def serve_new_configuration(r: RaftState) -> None:
    """A leader installed a configuration: commit what is now held by a quorum, probe new members, end a transfer to one that left."""
    if maybe_commit(r):
        broadcast_append(r)
    else:
        for node in r.tracker.ids:
            if node != r.id:
                maybe_send_append(r, node, send_if_empty=False)
    if r.lead_transferee not in r.tracker.config.voters:
        r.lead_transferee = NodeId(0)
