"""File systems that fail, lose power, and remember what was done to them: `wal.Files` for tests and the simulator.

| module | what it is |
|---|---|
| `operations` | what can be done to a disk, as values: a journal |
| `disk` | the model: what is seen, what is certain to be durable |
| `crash` | what a power loss may leave: enumerated, or drawn |
| `memory` | the model as `wal.Files` |
| `recording` | a real directory as `wal.Files`, with a journal of all that is done to it |
| `injection`, `specification`, `faulty` | which operation fails and how; in words; over any `wal.Files` |
"""

from kvserver.testing.faults.crash import SECTOR_BYTES, CrashStates, Tree, disk_of, write_tree
from kvserver.testing.faults.disk import Disk
from kvserver.testing.faults.faulty import FaultyFiles, Injector
from kvserver.testing.faults.injection import OPERATIONS, SYNCS, WRITES, Fault, Faults
from kvserver.testing.faults.memory import MemoryDisk
from kvserver.testing.faults.recording import RecordingFiles
from kvserver.testing.faults.specification import SpecificationError, parse_fault

__all__ = [
    "OPERATIONS",
    "SECTOR_BYTES",
    "SYNCS",
    "WRITES",
    "CrashStates",
    "Disk",
    "Fault",
    "Faults",
    "FaultyFiles",
    "Injector",
    "MemoryDisk",
    "RecordingFiles",
    "SpecificationError",
    "Tree",
    "disk_of",
    "parse_fault",
    "write_tree",
]
