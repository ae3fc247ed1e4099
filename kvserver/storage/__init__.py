"""The on-disk engine behind mvcc: sorted tables in an LMDB file, a write buffer that every reader sees through, fsynced batches.

Who uses it: mvcc reads through the `Reader` Protocol and writes with `put` and `delete`; apply ends entries; nobody else imports it.
"""

from __future__ import annotations

from kvserver.storage.checking import Checking, check_structure
from kvserver.storage.config import EngineConfig, EngineHooks
from kvserver.storage.engine import Engine
from kvserver.storage.errors import (
    DAMAGE_ADVICE,
    CheckStoppedError,
    DamagedRowError,
    StorageError,
    StorageNoSpaceError,
    StoreDamagedError,
    StoreFailedError,
    StoreUnreadableError,
    SwapFailedError,
    ViewExpiredError,
    ViewTooOldError,
)
from kvserver.storage.files import existing_tables, read_only_env
from kvserver.storage.page_format import StateGoneError
from kvserver.storage.reader import LayeredReader, Reader
from kvserver.storage.view import ReadView

__all__ = [
    "DAMAGE_ADVICE",
    "CheckStoppedError",
    "Checking",
    "DamagedRowError",
    "Engine",
    "EngineConfig",
    "EngineHooks",
    "LayeredReader",
    "ReadView",
    "Reader",
    "StateGoneError",
    "StorageError",
    "StorageNoSpaceError",
    "StoreDamagedError",
    "StoreFailedError",
    "StoreUnreadableError",
    "SwapFailedError",
    "ViewExpiredError",
    "ViewTooOldError",
    "check_structure",
    "existing_tables",
    "read_only_env",
]
