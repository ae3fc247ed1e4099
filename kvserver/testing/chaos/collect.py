"""The end of a run: what every member says once everything has settled, and what its store holds.

Order: wait until all members answer the same revision twice in a row (or stay apart); ask each for HashKV, its member list and, page by
page, all its keys; stop all (SIGTERM, exit code 0); then read every store's changes from its file, which nobody has open any more.

Rules: the file is read by the store's byte layout (mvcc.layout), row by row with their checksums, not through mvcc's read path; that path
is asked over gRPC before, and the checker compares the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvserver.client import EVERYTHING_FROM_KEY, Client, ClientConfig, ClientError, methods, parse_endpoint
from kvserver.errors import KvError
from kvserver.mvcc import TABLES, layout
from kvserver.pb import rpc_pb2 as pb
from kvserver.pb.kv_pb2 import KeyValue
from kvserver.storage import LayeredReader, existing_tables, read_only_env
from kvserver.testing.chaos.model import Change, MemberEnd, Revised
from kvserver.testing.chaos.replica import Digest
from kvserver.testing.chaos.wire import kv_of

SETTLE_S: Final = 60.0
APART_S: Final = 8.0
"""Members that rest at different revisions for so long won't meet any more."""
_ROUND_S: Final = 0.5
_CALL_S: Final = 20.0
_PAGE_KEYS: Final = 500


class NotSettledError(KvError):
    """The members did not come to rest at one revision; the text says where they were."""


async def ask_members(endpoints: dict[str, str]) -> dict[str, MemberEnd]:
    """What every member says about the state in which all have come to rest.

    Raises:
        NotSettledError: they don't within `SETTLE_S`.
        ClientError: one does not answer.
    """
    parsed = tuple(parse_endpoint(endpoint) for endpoint in endpoints.values())
    async with Client(ClientConfig(endpoints=parsed, dial_timeout_s=_CALL_S, call_timeout_s=_CALL_S)) as client:
        revision = await _settled_revision(client, endpoints)
        return {member: await _ask(client, endpoint, revision) for member, endpoint in endpoints.items()}


async def _settled_revision(client: Client, endpoints: dict[str, str]) -> int:
    """The revision at which all have come to rest; the lowest, if they rest at different ones: the checker will say so."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SETTLE_S
    previous: dict[str, int] = {}
    since_s = loop.time()
    while True:
        found, why = await _revisions_of(client, endpoints)
        if found != previous:
            previous, since_s = found, loop.time()
        elif len(found) == len(endpoints) and (len(set(found.values())) == 1 or loop.time() > since_s + APART_S):
            return min(found.values())
        if loop.time() > until_s:
            raise NotSettledError(f"{SETTLE_S:.0f} s after the last write the members are at revisions {found}{why}")
        await asyncio.sleep(_ROUND_S)


async def _revisions_of(client: Client, endpoints: dict[str, str]) -> tuple[dict[str, int], str]:
    """Where each member is that answers a linearizable read, and why the others don't."""
    found: dict[str, int] = {}
    why = ""
    for member, endpoint in endpoints.items():
        try:
            answer = await client.call_endpoint(endpoint, methods.RANGE, pb.RangeRequest(key=b"\0", count_only=True))
        except ClientError as error:
            why += f"; {member}: {error}"
        else:
            found[member] = answer.header.revision
    return found, why


async def _ask(client: Client, endpoint: str, revision: int) -> MemberEnd:
    hashed = await client.call_endpoint(endpoint, methods.HASH_KV, pb.HashKVRequest(revision=revision))
    listed = await client.call_endpoint(endpoint, methods.MEMBER_LIST, pb.MemberListRequest(linearizable=False))
    members = sorted(f"{each.ID:x} {each.name} {' '.join(each.peerURLs)} {' '.join(each.clientURLs)}" for each in listed.members)
    digest = Digest()
    key = b"\0"
    while True:
        request = pb.RangeRequest(key=key, range_end=EVERYTHING_FROM_KEY, revision=revision, limit=_PAGE_KEYS, serializable=True)
        page = await client.call_endpoint(endpoint, methods.RANGE, request)
        for message in page.kvs:
            digest.add(kv_of(message))
        if not page.more:
            break
        key = page.kvs[-1].key + b"\0"
    return MemberEnd(
        revision=page.header.revision,
        hash_revision=revision,
        hash_kv=hashed.hash,
        member_list=tuple(members),
        state_digest=digest.hex(),
        key_count=digest.count,
    )


def changes_in(store: Path) -> Iterator[Revised]:
    """All revisions of a store that nobody has open, in order.

    Raises:
        KvError: a row fails its checksum, or the file is no store.
    """
    env = read_only_env(store, tables=len(TABLES))
    try:
        reader = LayeredReader(env, existing_tables(env, TABLES), ())
        try:
            yield from _stored(reader)
        finally:
            reader.close()
    finally:
        env.close()


def _stored(reader: LayeredReader) -> Iterator[Revised]:
    current = 0
    changes: list[Change] = []
    for revision, record in reader.iterate(layout.REV):
        main = layout.main_of(revision)
        if main != current:
            if changes:
                yield Revised(current, tuple(changes))
            current, changes = main, []
        changes.append(_change(record))
    if changes:
        yield Revised(current, tuple(changes))


def _change(record: bytes) -> Change:
    kv = KeyValue()
    layout.parse_key_value(record, kv)
    if layout.unpack_header(record).tombstone:
        return Change(kv.key, None)
    return Change(kv.key, kv.value, kv.create_revision, kv.version)
