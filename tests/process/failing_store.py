"""kvserver whose store meets an IO error: every commit fails with EIO while the file named by STORE_FAILS exists.

LMDB does its own IO (docs/adr/0006), so the failure is put where its answer arrives.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import lmdb

from kvserver.__main__ import run
from kvserver.storage import batch

_write = batch.write


def write(*arguments: Any) -> float:
    if Path(os.environ["STORE_FAILS"]).exists():
        error = lmdb.Error("mdb_txn_commit", errno.EIO)
        error.code = errno.EIO
        raise error
    return _write(*arguments)


if __name__ == "__main__":
    batch.write = write
    sys.exit(run(sys.argv[1:]))
