"""A member without clock, network and threads of its own: the real log, store, snapshot files and queues on a disk that is watched.

What is real: data directory, store (LMDB), bootstrap, WAL, append queue, apply queue, installer, releaser's rule, snapshot copies and
incoming files. What is not: raft (the script says what it would), and threads (the WAL's worker runs in place), so that the same script
does the same operations in the same order.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from kvserver.apply import Applier, Store
from kvserver.config import ServerConfig, parse
from kvserver.logs import Logger
from kvserver.metrics import Metrics
from kvserver.node import bootstrap
from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.compaction import WindowLimits
from kvserver.node.directory import DataDirectory, open_data_directory
from kvserver.node.transfers import Installer
from kvserver.pb import rpc_pb2
from kvserver.snapshot import IncomingFile, OutgoingFile, SnapshotCopies, SnapshotError, SnapshotOffer, SnapshotStorageError
from kvserver.storage import EngineConfig
from kvserver.testing.faults import RecordingFiles
from raft.messages import LOCAL_APPEND_THREAD, Message, MessageType
from raft.types import Entry, HardState, Index, NodeId, Snapshot, SnapshotMetadata, Term
from tests.durability.io.history import History
from wal import Files, Marker, Wal

SEGMENT_BYTES = 8192
LIMITS = WindowLimits(max_entries=1_000, max_bytes=1 << 20, grace_s=10.0)
ENGINE = EngineConfig(quota_bytes=1 << 20, interval_s=3600.0, commit_count=1_000_000)
CHUNK_BYTES = 4096


class Silence:
    """A log output that keeps nothing."""

    def write_line(self, line: str) -> None:
        del line


LOG = Logger(Silence())


class EndedError(Exception):
    """The member stopped, as it must when its log fails."""


class InlineWorker:
    """`kvserver.node.worker.Worker` without its thread."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as failure:  # noqa: BLE001 - it goes to the caller, as from the thread
            error = failure
        done(result, error)

    def run(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(work, lambda result, error: future.set_result(result) if error is None else future.set_exception(error))
        return future


class WatchedWal:
    """The log as the queues see it; the history hears what it is told to write."""

    def __init__(self, wal: Wal, history: History, recorder: RecordingFiles) -> None:
        self._wal = wal
        self._history = history
        self._recorder = recorder

    def save(self, entries: list[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        self._history.write(list(entries), hard_state)
        self._recorder.note(self._history.promise())
        self._wal.save(entries, hard_state, sync=sync)

    def save_marker(self, marker: Marker, hard_state: HardState) -> None:
        self._history.write_marker(marker, hard_state)
        self._recorder.note(self._history.promise())
        self._wal.save_marker(marker, hard_state)


def config_for(root: Path) -> ServerConfig:
    flags = [
        "--name=a",
        f"--data-dir={root / 'data'}",
        "--initial-cluster=a=http://127.0.0.1:12380",
        "--initial-advertise-peer-urls=http://127.0.0.1:12380",
    ]
    config: ServerConfig = parse(flags, {}).config  # type: ignore[union-attr]
    object.__setattr__(config, "wal_segment_bytes", SEGMENT_BYTES)  # smaller than the flag permits: many cuts in a short life
    return config


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory, if there is such a file system: durability is simulated, so fsync may be fast."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="kvserver-io-", dir=parent))
    try:
        yield path
    finally:
        rmtree(path)


@dataclass(slots=True)
class Opened:
    """What a start gives: the parts that are open, to be closed with `close`."""

    directory: DataDirectory
    store: Store
    origin: bootstrap.Origin

    async def close(self) -> None:
        self.origin.wal.close()
        await self.abandon()

    async def abandon(self) -> None:
        """As a killed process: nothing is written any more."""
        await self.store.close(commit=False)
        self.directory.close()


async def boot(root: Path, files: Files) -> Opened:
    """Start from the directory, as `Node.start` does."""
    config = config_for(root)
    directory = open_data_directory(config.data_dir, config.wal_dir, files=files)
    store = None
    try:
        store = Store.open(directory.store, config=ENGINE, system=files)
        origin = await bootstrap.begin(config, directory, store, LIMITS, LOG)
    except BaseException:
        if store is not None:
            await store.close(commit=False)
        directory.close()
        raise
    return Opened(directory, store, origin)


class Member:
    """One process: from a start to a stop, a kill or a failure. `recorder` is the disk itself, `files` what the member sees of it."""

    def __init__(self, opened: Opened, recorder: RecordingFiles, files: Files, history: History) -> None:
        self.opened = opened
        self.store = opened.store
        self.history = history
        self._recorder = recorder
        self._files = files
        self._failure: Exception | None = None
        self._applier = Applier(self.store)
        self._hard_state = opened.origin.hard_state
        self._answers = 0
        self._expected = 0
        self._executor = ThreadPoolExecutor(1)
        worker: Any = InlineWorker()
        wal: Any = WatchedWal(opened.origin.wal, history, recorder)
        self._apply = ApplyQueue(
            store=self.store,
            apply_slice=lambda entry: self._applier.apply_slice(entry.index, entry.term, entry.data) is not None,
            on_applied=lambda responses: None,
            on_fatal=self._fail,
        )
        self._append = AppendQueue(
            wal=wal,
            window=opened.origin.window,
            worker=worker,
            hard_state=opened.origin.hard_state,
            install=lambda message, hard_state: self._installer.install(message, hard_state),  # noqa: PLW0108 - made below
            on_saved=self._saved,
            on_fatal=self._fail,
        )
        self._installer = Installer(
            directory=opened.directory.snap,
            wal=wal,
            write=self._append.run_patiently,
            store=self.store,
            window=opened.origin.window,
            apply_queue=self._apply,
            on_installed=lambda metadata: None,
            metrics=Metrics(version="test"),
            log=LOG,
            files=files,
        )
        self.copies = SnapshotCopies(opened.directory.snap, self._copy_store, self._executor, files=files)

    # --- what raft would ask for -----------------------------------------------------------------------------------------------------

    async def save(self, entries: list[Entry], *, term: int | None = None, vote: int | None = None, commit: int | None = None) -> None:
        """Append, wait for the answer, then take in what is committed."""
        old = self._hard_state
        self._hard_state = new = HardState(
            term=Term(old.term if term is None else term),
            vote=NodeId(old.vote if vote is None else vote),
            commit=Index(old.commit if commit is None else commit),
        )
        message = Message(type=MessageType.STORAGE_APPEND, entries=entries, term=new.term, vote=new.vote, commit=new.commit)
        await self._submit(message, must_answer=bool(entries) or (new.term, new.vote) != (old.term, old.vote))
        await self.apply_committed()

    async def apply_committed(self) -> None:
        """Apply what is committed and in the log."""
        window, first = self.opened.origin.window, self.store.applied_index + 1
        last = min(self._hard_state.commit, window.last_index())
        if last >= first:
            entries = list(window.entries(Index(first), Index(last + 1), 1 << 30))
            for entry in entries:
                self.history.committed[entry.index] = entry
            self._apply.submit(Message(type=MessageType.STORAGE_APPLY, entries=entries))
            await self._apply.wait_idle()

    async def install(self, metadata: SnapshotMetadata, entries: list[Entry], committed: dict[int, Entry]) -> None:
        """Put a received snapshot in force, with entries behind it in the same message."""
        old = self._hard_state
        self._hard_state = new = HardState(term=old.term, vote=old.vote, commit=metadata.index)
        self.history.committed.update(committed)
        snapshot = Snapshot(metadata=metadata)
        await self._submit(
            Message(type=MessageType.STORAGE_APPEND, snapshot=snapshot, entries=entries, term=new.term, vote=new.vote, commit=new.commit)
        )

    async def _submit(self, message: Message, *, must_answer: bool = True) -> None:
        message.to = LOCAL_APPEND_THREAD
        if must_answer:  # raft waits for no answer to a commit index alone
            self._expected += 1
            message.responses = [Message(type=MessageType.APP_RESP)]
        self._append.submit(message)
        while self._answers < self._expected:
            self._check()
            await asyncio.sleep(0)

    def _saved(self, responses: list[Message]) -> None:
        if responses:
            self._answers += len(responses)
            self.history.answer()
            self._recorder.note(self.history.promise())

    # --- store ----------------------------------------------------------------------------------------------------------------------------

    async def commit(self, during: Callable[[], Any] | None = None) -> None:
        """Commit the store; `during` runs while the transaction is under way."""
        since = len(self._recorder.journal)
        self.store.request_commit()
        sealed_index = self.store.applied_index
        if during is not None:
            await during()
        while self.store.durable_index < sealed_index:
            await self.store.wait_durable(Index(sealed_index))
        self._recorder.committed(self.opened.directory.store, since=since)

    def release(self) -> int:
        """Drop what the log need not keep, by the node's rule: below the window, durable in the store, committed in the log."""
        window = self.opened.origin.window
        window.compact(Index(min(self.store.durable_index, window.last_index())))
        return self.opened.origin.wal.release(Index(min(window.first_index() - 1, self.store.durable_index, self._append.saved_commit)))

    def _copy_store(self, path: Path) -> SnapshotMetadata:
        metadata = self.store.copy_to(path)
        self._recorder.adopt(path)
        return metadata

    # --- snapshots -------------------------------------------------------------------------------------------------------------------

    async def send_snapshot(self) -> bytes | None:
        """Take a copy and read it as a peer would get it; None if the disk refused."""
        try:
            copy = await self.copies.acquire(Index(1))
        except SnapshotError:
            return None
        try:
            file = self.copies.open(copy)
            try:
                return file.read(0, copy.size_bytes)
            finally:
                file.close()
        except SnapshotError:
            return None
        finally:
            await self.copies.release(copy)

    def receive(self, content: bytes, offer: SnapshotOffer, *, until: int | None = None) -> bool:
        """Receive a snapshot, all of it or up to a position; whether it is whole. The disk may refuse: then nothing is kept."""
        keep = True
        incoming = None
        try:
            incoming = IncomingFile.open(self.opened.directory.snap, NodeId(7), offer, files=self._files)
            while incoming.offset < (len(content) if until is None else until):
                incoming.write(incoming.offset, content[incoming.offset : incoming.offset + CHUNK_BYTES])
            if until is None:
                incoming.finish()
        except SnapshotStorageError:
            keep = False
            return False
        finally:
            if incoming is not None:
                incoming.close(keep=keep)
        return until is None

    # --- the end ---------------------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """An orderly stop."""
        await self._append.wait_idle()
        self._check()
        await self.copies.close()
        await self.commit()
        self.opened.origin.wal.close()
        self.history.answer()
        self._recorder.note(self.history.promise())
        await self.kill()

    async def kill(self) -> None:
        """The process is gone; what it wrote is seen by the next one."""
        self._apply.stop()
        self._executor.shutdown()
        await self.opened.abandon()
        self._recorder.end_process()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise EndedError from self._failure


def content_of(store: Store) -> dict[bytes, bytes]:
    """Everything in the store."""
    found = store.range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
    return {pair.key: pair.value for pair in found.kvs}


def read_file(path: Path) -> bytes:
    """A file's bytes, as a sender reads them."""
    file = OutgoingFile(path)
    try:
        return file.read(0, path.stat().st_size)
    finally:
        file.close()
