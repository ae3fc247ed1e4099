"""The state machine's store: engine, mvcc and meta as one thing, which is also what a snapshot is.

Purpose: opens the file, keeps what the node asks for at hand (applied index and term, configuration, members, revisions, sizes), and copies
and replaces the whole.

Rules
- Every applied entry ends with `end_entry`, which writes index, term and revision next to the entry's data: one batch, one transaction.
  One that takes several slices ends each of the others with `end_slice`: batches end there, too, and mvcc.unfinished says how far it is.
- Only the Applier (and `bootstrap`, and the removal slices) writes. All methods belong to the loop, except `copy_to` (any thread) and what
  runs on views.
- Large reads leave the loop (answering.py), to views in a small thread pool.
- A read sees one whole state, also while a snapshot takes the store's place: on the loop the old one until the turn in which the new one
  is in force; in a thread it ends with RequestTimeoutError, and may be tried again.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from kvserver.apply import leases, meta
from kvserver.apply.alarms import Alarms, encode_alarms
from kvserver.apply.answering import AnswerRoom, Unbounded, answer, measure_answer
from kvserver.apply.errors import ApplyMetDamageError
from kvserver.apply.inspection import damaged, inspect, inspect_checked, position_of, read_meta
from kvserver.apply.meta import Membership, Meta
from kvserver.apply.reading import READ_THREADS, HashResult, ThreadedReads
from kvserver.apply.removal import Removal
from kvserver.errors import CorruptError, RequestError, StoppedError
from kvserver.lease import LeaseTable
from kvserver.mvcc import LEASE, LEASE_KEY, META, TABLES, Allowance, KvHash, Mvcc, Snapshot, describe_row, execute_range, measure
from kvserver.pb.rpc_pb2 import DeleteRangeRequest, LeaseLeasesResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse
from kvserver.storage import (
    DamagedRowError,
    Engine,
    EngineConfig,
    EngineHooks,
    ReadView,
    StoreDamagedError,
)
from kvserver.types import ClusterId, ConfState, Index, LeaseId, Member, NodeId, Revision, Term
from raft.types import SnapshotMetadata
from wal import Files, OsFiles

OS_FILES: Final = OsFiles()
NEWEST: Final = Revision(0)
UNBOUNDED: Final = Unbounded()
_Answer = TypeVar("_Answer")


def _ignore(text: str) -> None:
    del text


def _ignore_lease(lease: LeaseId, ttl_s: int | None) -> None:
    del lease, ttl_s


class Store:
    """One member's replicated state."""

    def __init__(self, engine: Engine, on_corrupt: Callable[[str], None]) -> None:
        self._engine = engine
        self.report_corrupt = on_corrupt
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(READ_THREADS, "store-read")
        self._threaded_reads = ThreadedReads(self.read_view, self._threads)
        self._refusal: type[RequestError] | None = None
        self._removal = Removal(engine, lambda: self._index)
        self._closed = False
        self._initialised = False
        self._index = self._opened_index = Index(0)
        self._term = Term(0)
        self._conf_state = ConfState()
        self._membership = Membership()
        self._alarms: Alarms = ()
        self._kinds_version = 1
        self.on_lease: Callable[[LeaseId, int | None], None] = _ignore_lease
        """Told, within the entry, of every lease that is granted (with its TTL) or ended (None)."""
        self._told_revision = Revision(0)
        self._on_revision: Callable[[Revision, int], None] | None = None
        self.mvcc: Mvcc
        self.leases: LeaseTable
        self._load()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        config: EngineConfig | None = None,
        hooks: EngineHooks | None = None,
        on_corrupt: Callable[[str], None] = _ignore,
        system: Files = OS_FILES,
        checked: bool = False,
    ) -> Store:
        """Open or create the store in the file `path`, on the running loop. Blocks while the file is checked, unless that was done.

        Args:
            on_corrupt: told (from any thread) which record failed its checksum.
            system: through what the file is replaced when a snapshot is installed.
            checked: the caller has run `check_structure` over the file just now.

        Raises:
            StoreUnreadableError: not a store, truncated, of another format, or not accessible.
        """
        hooks = hooks or EngineHooks()
        hooks.on_damage = lambda table, key, reason: on_corrupt(f"{path}: {describe_row(table, key)} {reason}")
        engine = Engine.open(path, tables=TABLES, config=config, hooks=hooks, system=system, checked=checked)
        try:
            return cls(engine, on_corrupt)
        except BaseException:
            engine.abandon()
            raise

    # --- what the node asks for ----------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The store's file."""
        return self._engine.path

    @property
    def applied_index(self) -> Index:
        """The last entry applied, durable or not."""
        return self._index

    @property
    def applied_term(self) -> Term:
        """Its term."""
        return self._term

    @property
    def durable_index(self) -> Index:
        """The last entry whose effect is committed and fsynced."""
        return self._durable_index

    @property
    def conf_state(self) -> ConfState:
        """The configuration as of the applied index."""
        return self._conf_state

    @property
    def cluster_id(self) -> ClusterId:
        """0 until bootstrapped."""
        return self._membership.cluster_id

    @property
    def members(self) -> Mapping[NodeId, Member]:
        """The members as of the applied index; not to be changed."""
        return self._membership.members

    @property
    def removed_ids(self) -> frozenset[NodeId]:
        """Ids of members that were removed and may not come back."""
        return self._membership.removed_ids

    @property
    def alarms(self) -> Alarms:
        """The alarms that are raised, as of the applied index; not to be changed."""
        return self._alarms

    @property
    def kinds_version(self) -> int:
        """The lowest version of the commands' kinds that every member must know already, as such were applied."""
        return self._kinds_version

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written: neither bootstrapped nor applied."""
        return not self._initialised

    @property
    def current_revision(self) -> Revision:
        """The newest revision."""
        return self.mvcc.current_revision

    @property
    def compacted_revision(self) -> Revision:
        """Older revisions can't be read; -1 before the first compaction."""
        return self.mvcc.compacted_revision

    @property
    def size_bytes(self) -> int:
        """Status.dbSize: bytes of the file."""
        return self._engine.size_bytes

    @property
    def size_in_use_bytes(self) -> int:
        """Status.dbSizeInUse: bytes of pages in use."""
        return self._engine.size_in_use_bytes

    @property
    def buffered_bytes(self) -> int:
        """Bytes in the write buffer, overhead included."""
        return self._engine.buffered_bytes

    @property
    def buffered_payload_bytes(self) -> int:
        """Bytes of keys and values in the write buffer, which the next commits add to the file."""
        return self._engine.buffered_payload_bytes

    @property
    def has_room(self) -> bool:
        """False: await `wait_room` before applying the next entry."""
        return self._engine.has_room

    async def wait_room(self) -> None:
        """Return when the write buffer is below its hard bound. Raises FatalError."""
        await self._engine.wait_room()

    def request_commit(self) -> None:
        """Commit what is buffered as soon as possible."""
        self._engine.request_commit()

    async def commit(self) -> None:
        """Commit everything written so far; return when it is on disk. Raises FatalError."""
        await self._engine.commit()

    async def wait_durable(self, index: Index) -> None:
        """Return when the effects of all entries up to `index` are on disk; asks for no commit itself. Raises FatalError."""
        if index > self._durable_index:
            await self._engine.wait_durable(index)

    # --- reading -------------------------------------------------------------------------------------------------------------------------

    def range(self, request: RangeRequest) -> RangeResponse:
        """Answer a range on the loop, however large. See mvcc.execute_range for errors."""
        self._check_readable()
        return self.mvcc.range(request)

    async def read(self, request: RangeRequest, room: AnswerRoom = UNBOUNDED) -> RangeResponse:
        """Answer a range as of one state not older than the call, when there is room for the answer (answering.py).

        Raises:
            EmptyKeyError, FutureRevisionError, CompactedError, CorruptError.
            RangeTooSlowError: it takes longer than a view may live.
            RequestTimeoutError: the store is being closed or replaced.
        """
        return await answer(self, lambda state: execute_range(state, request), room)

    async def read_txn(self, request: TxnRequest, room: AnswerRoom = UNBOUNDED) -> TxnResponse:
        """Answer a transaction that writes nothing; as `read`. Raises also what a transaction raises."""
        return await answer(self, lambda state: self.mvcc.read_txn(request, state), room)

    async def read_leases(self, room: AnswerRoom = UNBOUNDED) -> LeaseLeasesResponse:
        """All leases, ascending; as `read`."""
        return await answer(self, leases.list_leases, room)

    async def read_lease(self, lease: LeaseId, room: AnswerRoom = UNBOUNDED, *, with_keys: bool = True) -> leases.LeaseKeys:
        """A lease's TTL, and if wanted the keys attached to it, in byte order; as `read`."""
        return await answer(self, lambda state: leases.read_lease(state, lease, with_keys=with_keys), room)

    async def measure(self, request: TxnRequest | DeleteRangeRequest, limit_bytes: int) -> int:
        """What a write would answer if it were applied now, in bytes; exact up to the limit. Raises as `read` does."""
        return await measure_answer(self, lambda state: measure(state, request), limit_bytes)

    def snapshot(self, allowance: Allowance) -> Snapshot:
        """The present state, for the loop, within the allowance. Raises as `read_view`."""
        self._check_readable()
        return self.mvcc.snapshot(None, allowance)

    async def run_on_view(self, work: Callable[[Snapshot], _Answer], allowance: Allowance) -> _Answer:
        """Have a thread do `work` on a view of the present state. Raises RequestTimeoutError as `read`, and what `work` raises."""
        return await self._threaded_reads.run(work, allowance)

    def read_view(self) -> tuple[ReadView, Snapshot]:
        """The present state for another thread: a view, which the caller closes, and the snapshot that reads through it.

        Raises:
            ViewExpiredError: the store is just being replaced, or closed; try again.
            CorruptError, StoppedError: an entry failed half-way; what it wrote is not for readers.
        """
        self._check_readable()
        view = self._engine.read_view()
        return view, self.mvcc.snapshot(view)

    async def hash_kv(self, revision: Revision = NEWEST) -> HashResult:
        """The hash of everything up to `revision` (0: the newest), computed in a thread.

        Raises:
            FutureRevisionError, CompactedError (also when a compaction passes while it is being computed), CorruptError.
            RequestTimeoutError: the store is being closed or replaced.
        """
        self._check_readable()
        return await self._threaded_reads.hash_kv(KvHash(self.mvcc.snapshot(), revision), self.current_revision)

    def _check_readable(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    # --- writing, for the Applier --------------------------------------------------------------------------------------------------------

    def bootstrap(
        self,
        cluster_id: ClusterId,
        members: Mapping[NodeId, Member],
        conf_state: ConfState,
        *,
        index: Index = Index(0),
        term: Term = Term(0),
        cluster_token: str = "",
    ) -> None:
        """Give a new store its cluster: the state through `index`, before the first entry that is applied.

        Raises:
            ValueError: the store isn't empty.
        """
        if self._initialised:
            raise ValueError("only an empty store can be bootstrapped")
        self.set_conf_state(conf_state)
        self.set_membership(Membership(cluster_id=cluster_id, members=dict(members), cluster_token=cluster_token))
        self.end_entry(index, term)

    def end_entry(self, index: Index, term: Term) -> None:
        """The entry at `index` is applied: record that in the same batch as its effects. Raises FatalError if the store has failed."""
        engine = self._engine
        if not self._initialised:
            engine.put(META, meta.FORMAT_KEY, meta.encode_format())
            self._initialised = True
        self._index, self._term = index, term
        mvcc = self.mvcc
        revision = mvcc.current_revision
        engine.put(META, meta.STATE_KEY, meta.encode_state(index, term, revision))
        engine.end_entry(index)
        if revision != self._told_revision:
            self._told_revision = revision
            if self._on_revision is not None:
                self._on_revision(revision, mvcc.last_changes)

    def end_slice(self) -> None:
        """A part of the entry behind the applied index is written. Raises FatalError if the store has failed."""
        self._engine.end_entry(self._index)

    def set_conf_state(self, conf_state: ConfState) -> None:
        """Change the configuration within an entry."""
        self._conf_state = conf_state
        self._engine.put(META, meta.CONF_STATE_KEY, meta.encode_conf_state(conf_state))

    def set_membership(self, membership: Membership) -> None:
        """Change the members within an entry."""
        self._membership = membership
        self._engine.put(META, meta.MEMBERSHIP_KEY, meta.encode_membership(membership))

    def set_alarms(self, alarms: Alarms) -> None:
        """Change the alarms within an entry."""
        self._alarms = alarms
        self._engine.put(META, meta.ALARMS_KEY, encode_alarms(alarms))

    def need_kinds(self, version: int) -> None:
        """A command that only this version of the kinds (and later ones) knows is being applied, within its entry."""
        if version > self._kinds_version:
            self._kinds_version = version
            self._engine.put(META, meta.KINDS_KEY, meta.encode_kinds_version(version))

    @property
    def membership(self) -> Membership:
        """The members, the removed ids and the cluster's id."""
        return self._membership

    def poison(self, cause: BaseException) -> None:
        """An entry failed half-way: what it wrote must never be committed nor read. The store takes no more, and answers no reads."""
        is_damaged = isinstance(cause, ApplyMetDamageError)
        self._refusal = CorruptError if is_damaged else StoppedError
        self._removal.stop(is_damaged=is_damaged)
        self._engine.poison(cause)

    def on_revision(self, callback: Callable[[Revision, int], None] | None) -> None:
        """Have `callback` told of each revision that an entry makes, and how many changes it has, when the entry has ended."""
        self._on_revision = callback

    # --- compaction ----------------------------------------------------------------------------------------------------------------------

    def on_compacted(self, callback: Callable[[Revision], None] | None) -> None:
        """Have `callback` told when a compaction's removal is complete, and through which revision."""
        self._removal.on_finished = callback

    def start_removal(self) -> None:
        """Begin (or go on with) removing what compaction made unreachable, in slices between entries."""
        self._removal.start()

    async def wait_compacted(self, revision: Revision) -> None:
        """Return when the removal for a compaction at `revision` is complete (a `physical` compaction), committed or not.

        Raises:
            CorruptError: the removal met damage.
        """
        await self._removal.wait(revision)

    # --- the whole -----------------------------------------------------------------------------------------------------------------------

    def copy_to(self, path: Path) -> SnapshotMetadata:
        """Write a consistent copy of what is committed to the new file `path`; returns the position of the copy, read back from it.

        No damage is passed on: one walk over the copy looks at every page and every row of it (its order, its seal, that it is reached
        once, the counts). A second walk would find nothing that this one did not, so the position is read without. What happens to the
        file afterwards shows in its SHA-256, and in the check before it is installed. Blocking: call it in a thread.

        Raises:
            OSError: it can't be written.
            StoreUnreadableError: the store is closed, or the copy holds no state.
            StoreDamagedError: says where in this store's file the damage is, and has been reported; nothing is left of the copy.
        """
        try:
            self._engine.copy_to(path, describe_row)
        except StoreDamagedError as error:
            self.report_corrupt(error.place)
            raise
        return position_of(inspect_checked(path))

    async def install(self, path: Path, found: Meta | None = None) -> SnapshotMetadata:
        """Replace everything by the copy `path`; it must lie on the store's file system and is moved away.

        Reads go on meanwhile, the file work is a thread's. Cancelled, either the old store goes on or the new one is in force, whole.

        Args:
            found: what `inspect` said of the file just before; None: that is done here.

        Raises:
            StoreUnreadableError: it is no intact store; this one goes on unchanged.
            FatalError: the files could not be exchanged; this store takes no more.
        """
        if found is None:
            found = await self._loop.run_in_executor(self._threads, inspect, path)
        index = found.index

        def take_up() -> None:
            self._load()
            self._engine.hooks.on_durable(index)

        self._removal.pause()
        try:
            await self._engine.replace_with(path, mark=index, on_swapped=take_up)
        finally:
            self._removal.resume()
        return position_of(found)

    async def close(self, *, commit: bool = True) -> None:
        """Commit what is buffered (unless told not to) and close; reads in threads are ended first."""
        if self._closed:
            return
        self._closed = True
        self._removal.close()
        await self._engine.close(commit=commit)
        await self._loop.run_in_executor(None, functools.partial(self._threads.shutdown, wait=True))

    @property
    def _durable_index(self) -> Index:
        return Index(max(self._opened_index, self._engine.durable_mark))

    def _load(self) -> None:
        found = read_meta(self._engine.reader, self._engine.path)
        self._initialised = found is not None
        state = found or Meta()
        self._index, self._term = state.index, state.term
        self._opened_index = state.index
        self._conf_state, self._membership, self._alarms = state.conf_state, state.membership, state.alarms
        self._kinds_version = state.kinds_version
        self.leases = LeaseTable(self._engine, leases=LEASE, keys=LEASE_KEY)
        try:
            self.mvcc = Mvcc(self._engine, current_revision=state.revision, on_corrupt=self.report_corrupt, leases=self.leases)
        except DamagedRowError as error:
            raise damaged(self._engine.path, error) from error
        self._told_revision = state.revision
        self._removal.load(self.mvcc.compactor)
