"""How a snapshot file is cut into chunks, and what an offer of one must look like. Pure: no IO.

Rules
- Every chunk but the last has the same size and starts at a multiple of it; the plan follows from (size, chunk size), so both sides
  compute it.
- A transfer resumes at a chunk's start, or at the whole size (nothing but the verdict is missing).
- The id is derived from the content: the same id means the same bytes, whoever sends them and after whatever restart.

Bounds: chunk size in [4 KiB, 4 MiB]; file size in [1 B, the receiver's limit].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvserver.snapshot.errors import SnapshotOfferError
from raft.types import SnapshotMetadata

DEFAULT_CHUNK_SIZE_BYTES: Final = 256 * 1024
MIN_CHUNK_SIZE_BYTES: Final = 4 * 1024
MAX_CHUNK_SIZE_BYTES: Final = 4 * 1024 * 1024
DEFAULT_MAX_SNAPSHOT_SIZE_BYTES: Final = 64 * 1024 * 1024 * 1024

SHA256_SIZE_BYTES: Final = 32
ID_SIZE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOffer:
    """What a sender announces: the content (`id`, `size_bytes`, `sha256`), how it is cut, and the position and configuration it covers."""

    id: bytes
    size_bytes: int
    sha256: bytes
    chunk_size_bytes: int
    metadata: SnapshotMetadata


def content_id(sha256: bytes) -> bytes:
    """The id of the content with this checksum."""
    return sha256[:ID_SIZE_BYTES]


def check_offer(offer: SnapshotOffer, *, max_size_bytes: int = DEFAULT_MAX_SNAPSHOT_SIZE_BYTES) -> None:
    """Raise SnapshotOfferError unless a transfer may begin with this offer."""
    if len(offer.sha256) != SHA256_SIZE_BYTES or offer.id != content_id(offer.sha256):
        raise SnapshotOfferError("the snapshot's id and checksum don't belong together")
    if not 0 < offer.size_bytes <= max_size_bytes:
        raise SnapshotOfferError(f"a snapshot of {offer.size_bytes} bytes is outside 1..{max_size_bytes}")
    if not MIN_CHUNK_SIZE_BYTES <= offer.chunk_size_bytes <= MAX_CHUNK_SIZE_BYTES:
        raise SnapshotOfferError(
            f"a chunk size of {offer.chunk_size_bytes} bytes is outside {MIN_CHUNK_SIZE_BYTES}..{MAX_CHUNK_SIZE_BYTES}"
        )
    if offer.metadata.index < 1 or offer.metadata.term < 1:
        raise SnapshotOfferError(f"a snapshot at index {offer.metadata.index}, term {offer.metadata.term} covers nothing")
    if not offer.metadata.conf_state.voters:
        raise SnapshotOfferError("a snapshot without voters can't be installed")


def chunk_length_bytes(offset: int, offer: SnapshotOffer) -> int:
    """Length of the chunk that starts at `offset`, which must be a chunk's start; 0 at the end of the file."""
    check_offset(offset, offer)
    return min(offer.chunk_size_bytes, offer.size_bytes - offset)


def check_offset(offset: int, offer: SnapshotOffer) -> None:
    """Raise SnapshotOfferError unless a chunk starts at `offset` or the file ends there."""
    if offset == offer.size_bytes:
        return
    if not 0 <= offset < offer.size_bytes or offset % offer.chunk_size_bytes:
        raise SnapshotOfferError(f"no chunk starts at offset {offset} (size {offer.size_bytes}, chunks of {offer.chunk_size_bytes})")


def check_chunk(offset: int, length_bytes: int, expected_offset: int, offer: SnapshotOffer) -> None:
    """Raise SnapshotOfferError unless this is the one chunk that comes next."""
    if offset != expected_offset:
        raise SnapshotOfferError(f"chunk at offset {offset} where {expected_offset} comes next")
    if expected_offset == offer.size_bytes or length_bytes != chunk_length_bytes(offset, offer):
        raise SnapshotOfferError(f"chunk of {length_bytes} bytes at offset {offset} is not of the plan")


def resume_offset(kept_bytes: int, offer: SnapshotOffer) -> int:
    """Where to go on with `kept_bytes` of the same content at hand: the last chunk's start at or below it; 0 if it is more than there can
    be.
    """
    if kept_bytes > offer.size_bytes:
        return 0
    if kept_bytes == offer.size_bytes:
        return kept_bytes
    return kept_bytes - kept_bytes % offer.chunk_size_bytes
