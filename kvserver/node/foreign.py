"""Telling etcd's data directory from ours, before anything in it is touched.

Purpose: whoever moves over from etcd points kvserver at etcd's directory sooner or later. The two look alike (`member/wal/*.wal`,
`member/snap/db`) and share not one byte of their formats; the answer must say that, and not what LMDB thinks of the file.

Rules: reads two dozen bytes and changes nothing. What is neither ours nor etcd's is left to the store and the WAL to refuse.

Source: bbolt's page layout (a 16-byte page header, then the meta's magic number, little-endian on the machines that both run on);
etcd's WAL frame (8 bytes), whose first record is a checksum record, protobuf field 1 = 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BOLT_MAGIC: Final = (0xED0CDAED).to_bytes(4, "little")
_BOLT_MAGIC_OFFSET: Final = 16
_ETCD_FIRST_RECORD: Final = b"\x08\x04"
_ETCD_RECORD_OFFSET: Final = 8


def find_etcd_file(store: Path, wal: Path) -> Path | None:
    """A file that etcd wrote: the store or a WAL segment; None if there is none. Raises OSError."""
    if store.is_file() and _bytes_at(store, _BOLT_MAGIC_OFFSET, len(_BOLT_MAGIC)) == _BOLT_MAGIC:
        return store
    segments = sorted(wal.glob("*.wal")) if wal.is_dir() else []
    for segment in segments[:1]:
        if segment.is_file() and _bytes_at(segment, _ETCD_RECORD_OFFSET, len(_ETCD_FIRST_RECORD)) == _ETCD_FIRST_RECORD:
            return segment
    return None


def _bytes_at(path: Path, offset_bytes: int, length_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset_bytes)
        return file.read(length_bytes)
