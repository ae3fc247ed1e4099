"""kvserver whose store hangs: no commit goes on while the file named by STORE_STALLS exists."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from kvserver.__main__ import run
from kvserver.storage import batch

_write = batch.write


def write(*arguments: Any) -> float:
    while Path(os.environ["STORE_STALLS"]).exists():
        time.sleep(0.02)
    return _write(*arguments)


if __name__ == "__main__":
    batch.write = write
    sys.exit(run(sys.argv[1:]))
