"""What a history is made of: requests, answers, operations, and what the members hold at the end.

Purpose: the values that the recorder writes, the reader reads and the checker judges; nothing here knows gRPC, processes or files.

Rules
- Every mutating request puts values that name it (`token`): whoever finds a value in a store knows which operation wrote it.
- Times are nanoseconds of the monotonic clock of one machine. A completion is noted after the answer arrived, an invocation before the
  request left; so "completed before another was invoked" is real-time order.
- A plain put, delete or range is a transaction without compares and with one operation; the checker judges them alike.
- An outcome is OK (with an answer), FAILED (certainly without effect) or UNKNOWN (may have happened, once, at any time after the
  invocation; an operation without a completion is one, too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

FIRST_REVISION: Final = 1
"""The revision of an empty store."""

_TOKEN: Final = re.compile(rb"(\d+)/(\d+)/\.*")


def value_of(operation_id: int, number: int, size_bytes: int) -> bytes:
    """The value of the `number`th put of an operation: a token, padded to `size_bytes` (a longer token stands alone)."""
    return b"%d/%d/" % (operation_id, number) + b"." * max(0, size_bytes - len(b"%d/%d/" % (operation_id, number)))


def writer_of(value: bytes) -> int | None:
    """The id of the operation that a value names; None if it names none."""
    found = _TOKEN.fullmatch(value)
    return None if found is None else int(found[1])


@dataclass(frozen=True, slots=True)
class Kv:
    """A key as a member shows it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


# --- requests ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set one key; with `wants_previous` the answer holds what was there."""

    key: bytes
    value: bytes
    wants_previous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete one key (empty `end`) or those in [key, end)."""

    key: bytes
    end: bytes = b""
    wants_previous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Read one key (empty `end`) or those in [key, end), at `revision` (0: the newest)."""

    key: bytes
    end: bytes = b""
    revision: int = 0


Action: TypeAlias = Put | Delete | Range


class Target(Enum):
    """What of a key is compared."""

    VALUE = "value"
    VERSION = "version"
    CREATE = "create"
    MOD = "mod"


class Relation(Enum):
    """How it must stand to the operand."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """A transaction's guard on one key; the operand is bytes for VALUE and a number for the others."""

    key: bytes
    target: Target
    relation: Relation
    operand: bytes | int


class Kind(Enum):
    """The RPC."""

    PUT = "put"
    DELETE = "delete"
    RANGE = "range"
    TXN = "txn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. `serializable` is for ranges only."""

    kind: Kind
    success: tuple[Action, ...]
    compares: tuple[Compare, ...] = ()
    failure: tuple[Action, ...] = ()
    serializable: bool = False

    @property
    def is_mutation(self) -> bool:
        """Whether either branch may change something."""
        return any(not isinstance(action, Range) for action in (*self.success, *self.failure))

    @property
    def read_revision(self) -> int:
        """The older revision that a range asks for; 0 for everything else."""
        first = self.success[0] if self.kind is Kind.RANGE else None
        return first.revision if isinstance(first, Range) else 0


# --- answers -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResult:
    """Of a Put: the previous key-value, if it was asked for and there was one."""

    previous: Kv | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResult:
    """Of a Delete: how many keys went, and, if asked for, what they were."""

    deleted: int
    previous: tuple[Kv, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeResult:
    """Of a Range: the keys found, and their count as the member gave it."""

    kvs: tuple[Kv, ...]
    count: int


Result: TypeAlias = PutResult | DeleteResult | RangeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful answer; `revision` is its header's, `succeeded` is True for what is no transaction."""

    revision: int
    results: tuple[Result, ...]
    succeeded: bool = True

    @property
    def claims_change(self) -> bool:
        """Whether the answer says that something was changed, which makes `revision` the change's own."""
        return any(isinstance(each, PutResult) or (isinstance(each, DeleteResult) and each.deleted > 0) for each in self.results)


class Outcome(Enum):
    """How an operation ended for its client."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request with what became of it. `completed_ns` is None while (or if) nothing was heard."""

    id: int
    client: str
    member: str
    request: Request
    invoked_ns: int
    completed_ns: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    answer: Answer | None = None
    error: str = ""

    def __str__(self) -> str:
        return f"operation {self.id} ({self.request.kind.value} by {self.client} at {self.member})"


# --- what the members hold -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change within a revision; a tombstone has no value and the numbers 0."""

    key: bytes
    value: bytes | None
    create_revision: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Revised:
    """All changes of one revision, in their order."""

    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEnd:
    """What one member said after everything had settled.

    Attributes:
        revision: of its store.
        hash_revision, hash_kv: HashKV and the revision that it is of.
        member_list: the cluster's members as it lists them, sorted.
        state_digest: `replica.Digest` of all its keys as its Range serves them.
        key_count: how many they are.
    """

    revision: int
    hash_revision: int
    hash_kv: int
    member_list: tuple[str, ...]
    state_digest: str
    key_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the nemesis did, for the summary: `kills` SIGKILLs of the `kind`, from `began_ns` until everybody was back."""

    kind: str
    kills: int
    began_ns: int
    ended_ns: int
    members: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class History:
    """A whole run. `stores` may be lazy: each is iterated once per check, in order of revision.

    `trouble` is what the run itself could not get over (a member that didn't come back, no progress): each is a violation.
    """

    members: tuple[str, ...]
    operations: Sequence[Operation]
    stores: Mapping[str, Iterable[Revised]]
    ends: Mapping[str, MemberEnd]
    faults: Sequence[Fault] = ()
    trouble: Sequence[str] = ()
    facts: Mapping[str, int | str] = field(default_factory=dict)
