"""The life of a member, as a script: founded, 200 puts, cuts, an overwrite, snapshots sent and received, compaction, restarts.

Rules: deterministic, whatever the disk does, up to the first failure that ends the process. A failure of a snapshot file ends that transfer
only; it is begun anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kvserver.apply import Applier
from kvserver.snapshot import SnapshotOffer
from kvserver.testing.faults import RecordingFiles
from raft.types import Entry, Index, SnapshotMetadata
from tests.durability.io.history import History, command
from tests.durability.io.judging import judge
from tests.durability.io.member import CHUNK_BYTES, Member, Opened, boot, read_file
from wal import Files, OsFiles

JUMP = 40
"""How far the installed snapshot is ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donation:
    """A snapshot from another member that is further ahead, and the entries that it covers."""

    content: bytes
    offer: SnapshotOffer
    metadata: SnapshotMetadata
    committed: dict[int, Entry]


class Life:
    """The script on one disk. `history` outlives the processes."""

    def __init__(self, root: Path, recorder: RecordingFiles, files: Files, donor_root: Path) -> None:
        self.history = History()
        self.member: Member | None = None
        self._root = root
        self._recorder = recorder
        self._files = files
        self._donor_root = donor_root
        self._donations = 0

    async def run(self) -> None:
        """All of it. Raises what ends a process: EndedError, WalError, OSError."""
        member = await self._start()
        await member.save([], term=2, vote=1)
        await self._puts(member, 2, 60)
        await self._overwrite(member, 61)
        await member.send_snapshot()
        await member.stop()
        member = await self._start()
        await self._puts(member, 64, 110)
        await member.kill()
        self.member = None
        member = await self._start()
        await self._transfer(member)
        await self._puts(member, member.opened.origin.wal.last_index + 1, 180)
        await self._transfer(member, is_installed=False)
        await member.kill()
        self.member = None
        member = await self._start()
        await self._puts(member, 181, 240)
        await self._transfer(member, until=2 * CHUNK_BYTES, is_installed=False)
        await member.kill()
        self.member = None
        member = await self._start()
        await member.send_snapshot()
        await self._puts(member, 241, 250)
        await member.stop()
        self.member = None

    async def _start(self) -> Member:
        opened = await boot(self._root, self._files)
        self._adopt(opened)
        self.member = Member(opened, self._recorder, self._files, self.history)
        return self.member

    def _adopt(self, opened: Opened) -> None:
        """The start is judged as after a crash, and what it found is how it goes on."""
        state = judge(opened, self.history, self.history.promise())
        self.history.adopt(state.with_hard_state(opened.origin.hard_state))
        self._recorder.note(self.history.promise())

    async def _puts(self, member: Member, first: int, last: int) -> None:
        """Puts [first, last]: one by one, sometimes three at once; the commit index trails, the store commits now and then."""
        term = self.history.state.hard_state.term
        index = first
        while index <= last:
            count = 3 if index % 17 == 0 and index + 2 <= last else 1
            entries = [command(each, term) for each in range(index, index + count)]
            await member.save(entries, commit=index - 1)
            index += count
            if index % 23 == 0 and index <= last:
                following = index
                await member.commit(during=lambda following=following: member.save([command(following, term)], commit=following - 1))
                index += 1
            if index % 29 == 0:
                await member.commit()
                member.release()

    async def _overwrite(self, member: Member, index: int) -> None:
        """A leader loses what it had not committed."""
        await member.save([command(each, 2) for each in range(index, index + 5)], commit=index - 1)
        await member.save([command(each, 3) for each in range(index + 1, index + 3)], term=3, vote=2, commit=index)

    async def _transfer(self, member: Member, *, until: int | None = None, is_installed: bool = True) -> None:
        """A snapshot arrives, in two parts; it is installed, or not."""
        await member.save([], commit=self.history.state.last_index)
        donation = await self._donate()
        if until is not None:
            member.receive(donation.content, donation.offer, until=until)
            return
        member.receive(donation.content, donation.offer, until=len(donation.content) // 2 // CHUNK_BYTES * CHUNK_BYTES)
        for _ in range(3):
            if member.receive(donation.content, donation.offer):
                break
        else:
            raise AssertionError("one fault ends one transfer")
        if is_installed:
            behind = [
                command(index, self.history.state.hard_state.term)
                for index in range(donation.metadata.index + 1, donation.metadata.index + 3)
            ]
            await member.install(donation.metadata, behind, donation.committed)

    async def _donate(self) -> Donation:
        """Another member's store at `JUMP` entries ahead."""
        self._donations += 1
        root = self._donor_root / f"donor-{self._donations}"
        root.mkdir()
        opened = await boot(root, OsFiles())
        applier = Applier(opened.store)
        state = self.history.state
        ahead = {index: command(index, state.hard_state.term) for index in range(state.last_index + 1, state.last_index + 1 + JUMP)}
        committed = {**self.history.committed, **ahead}
        for index in range(2, state.last_index + 1 + JUMP):
            applier.apply_entry(Index(index), committed[index].term, committed[index].data)
        await opened.store.commit()
        metadata = opened.store.copy_to(root / "copy")
        await opened.close()
        content = read_file(root / "copy")
        sha256 = hashlib.sha256(content).digest()
        offer = SnapshotOffer(id=sha256[:16], size_bytes=len(content), sha256=sha256, chunk_size_bytes=CHUNK_BYTES, metadata=metadata)
        return Donation(content=content, offer=offer, metadata=metadata, committed=ahead)
